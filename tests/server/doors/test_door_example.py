"""Tests that the example of an API in docs/extending.md works as it is printed there."""

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

import server.doors
import server.http.routes
import server.schemas
from tests.examples import added, files_in, write_files
from tests.server.conftest import MakeApp, client_of, error_of, events

ROOT = Path(__file__).parents[3]
FILES = files_in((ROOT / "docs" / "extending.md").read_text(encoding="utf-8"))
QUESTION = {"question": "Who is there?"}


@pytest.fixture
async def client(make_app: MakeApp, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of an app that has the example's files, and API keys."""
    write_files(tmp_path, FILES)
    with added(tmp_path, server.doors, server.http.routes, server.schemas):
        async with client_of(make_app(keys=("alpha",)), headers={"x-api-key": "alpha"}) as client:
            yield client


def test_the_document_has_all_files_of_the_example() -> None:
    assert set(FILES) == {
        "server/schemas/ask.py",
        "server/doors/ask/__init__.py",
        "server/doors/ask/request.py",
        "server/doors/ask/events.py",
        "server/http/routes/ask.py",
    }


async def test_the_example_answers_a_request(client: httpx.AsyncClient) -> None:
    for path in ("/v1/ask", "/ask"):
        answer = await client.post(path, json=QUESTION)
        assert (answer.status_code, answer.json()) == (200, {"text": "Hello there.", "tokens": 13})


async def test_the_example_streams_an_answer(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/ask", json=QUESTION | {"stream": True, "longest": 5})
    *more, end = events(answer.text)
    assert len(more) > 1
    assert {event["type"] for event in more} == {"more"}
    assert "".join(event["text"] for event in more) == "Hello"
    assert end == {"type": "end", "text": "Hello", "tokens": 5}
    assert "event: more\n" in answer.text


async def test_errors_have_the_shape_and_the_fields_of_the_example(
    client: httpx.AsyncClient,
) -> None:
    missing = await client.post("/v1/ask", json={})
    assert (missing.status_code, missing.json()["field"]) == (400, "question")
    long = await client.post("/v1/ask", json=QUESTION | {"longest": 10**6})
    assert (long.status_code, long.json()["field"]) == (400, "longest")
    assert set(long.json()) == {"problem", "field"}
    below = await client.post("/v1/ask/nothing", json=QUESTION)
    assert (below.status_code, set(below.json())) == (404, {"problem", "field"})
    client.headers.pop("x-api-key")
    refused = await client.post("/v1/ask", json=QUESTION)
    assert (refused.status_code, set(refused.json())) == (401, {"problem", "field"})
    error_of(await client.post("/v1/elsewhere", json=QUESTION), 401)


async def test_the_example_is_counted_in_metrics_and_in_openapi(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/ask", json=QUESTION)
    assert answer.headers["x-understudy-queue-ms"].isdigit()
    series = 'understudy_requests_total{model="main",outcome="stop",route="/ask"} 1.0'
    assert series in (await client.get("/metrics")).text
    document = (await client.get("/openapi.json")).json()
    assert "/v1/ask" in document["paths"]
    assert "/ask" not in document["paths"]
    assert {"AskRequest", "AskAnswer", "AskEvent", "AskError"} <= set(
        document["components"]["schemas"]
    )


async def test_the_example_leaves_nothing_after_its_tests(make_app: MakeApp) -> None:
    async with client_of(make_app()) as client:
        error_of(await client.post("/v1/ask", json=QUESTION), 404)


@pytest.mark.parametrize("command", [("check",), ("format", "--check")])
def test_the_example_passes_ruff(command: tuple[str, ...], tmp_path: Path) -> None:
    write_files(tmp_path, FILES)
    done = subprocess.run(
        [*(sys.executable, "-m", "ruff"), *command, "--config", ROOT / "pyproject.toml", tmp_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
