"""Tests of the access log: one line for each request, with what the client saw."""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from engine.errors import PassFailed
from server.logs.access import LOGGER, OFF
from tests.server.conftest import MakeApp, chat, client_of, complete, serving
from tests.server.fake_engine import FakeEngines

CANARY = "canary-7f3a"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator["Lines"]:
    caplog.set_level(logging.DEBUG, "understudy")
    log = logging.getLogger(LOGGER)
    log.setLevel(logging.INFO)
    yield Lines(caplog)
    log.setLevel(OFF)


class Lines:
    """The lines of the access log, and the whole log."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    @property
    def records(self) -> list[logging.LogRecord]:
        return self._caplog.records

    def access(self) -> list[logging.LogRecord]:
        return [record for record in self.records if record.name == LOGGER]

    def last(self) -> dict[str, Any]:
        fields: dict[str, Any] = self.access()[-1].__dict__["fields"]
        return fields


async def test_a_line_has_method_path_status_model_tokens_and_client(
    client: httpx.AsyncClient, lines: Lines
) -> None:
    response = await chat(client)
    usage = response.json()["usage"]
    (record,) = lines.access()
    fields = dict(lines.last())
    for name in ("seconds", "queue_seconds", "first_token_seconds"):
        assert fields.pop(name) >= 0
    assert fields == {
        "client": "127.0.0.1",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "outcome": "stop",
        "model": "main",
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": usage["completion_tokens"],
    }
    assert record.__dict__["request_id"] == response.headers["x-request-id"]
    text = record.getMessage()
    assert text.startswith('127.0.0.1 "POST /v1/chat/completions" 200 in ')
    assert f", main, {usage['prompt_tokens']} tokens in, " in text and text.endswith("out, stop")


async def test_a_stream_that_ends_with_an_error_has_the_status_of_the_error(
    client: httpx.AsyncClient, engines: FakeEngines, lines: Lines
) -> None:
    engines.script.error = PassFailed("the disk is gone", "weights_unreadable")
    engines.script.error_after = 1
    response = await chat(client, stream=True)
    assert response.status_code == 200 and "weights_unreadable" in response.text
    assert (lines.last()["status"], lines.last()["outcome"]) == (500, "weights_unreadable")
    assert lines.last()["completion_tokens"] == engines.script.burst


async def test_a_mistake_of_ours_is_a_500_also_within_a_stream(
    client: httpx.AsyncClient, engines: FakeEngines, lines: Lines
) -> None:
    engines.script.error = RuntimeError("a bug")
    engines.script.error_after = 1
    for stream in (True, False):
        await asyncio.gather(chat(client, stream=stream), return_exceptions=True)
        assert (lines.last()["status"], lines.last()["outcome"]) == (500, "internal_error")


async def test_a_client_that_leaves_is_a_499(
    make_app: MakeApp, engines: FakeEngines, lines: Lines
) -> None:
    engines.script.pause = asyncio.Event()
    async with serving(make_app()) as url, httpx.AsyncClient(base_url=url) as client:
        body = {"prompt": "hi", "stream": True}
        async with client.stream("POST", "/v1/completions", json=body) as response:
            await anext(response.aiter_lines())
        while not lines.access():
            await asyncio.sleep(0)
    assert (lines.last()["status"], lines.last()["outcome"]) == (499, "client_left")


async def test_requests_that_reach_no_route_have_a_line_too(
    make_app: MakeApp, lines: Lines
) -> None:
    async with serving(make_app(keys=("secret",))) as url:
        async with httpx.AsyncClient(base_url=url) as client:
            await client.get("/v1/models?secret=query")
            await client.get("/nowhere%0A12:00:00%20ERROR%20forged%1b[31m")
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        writer.write(b"GET / HTTP/9\x00\r\n\r\n")
        await reader.read()
        writer.close()
    found = [record.__dict__["fields"] for record in lines.access()]
    assert [(own["path"], own["status"]) for own in found] == [
        ("/v1/models", 401),
        ("/nowhere\\n12:00:00 ERROR forged\\x1b[31m", 401),
        ("-", 400),
    ]
    assert all(record.getMessage().isprintable() for record in lines.records)


async def test_ids_of_clients_are_taken_only_if_they_are_well_formed(
    client: httpx.AsyncClient, lines: Lines
) -> None:
    for given in ("mine-1", "two words", "x" * 129, "a\u00e9"):
        client.headers["x-request-id"] = given.encode("latin-1").decode("latin-1")
        response = await complete(client)
        answered = response.headers["x-request-id"]
        assert lines.access()[-1].__dict__["request_id"] == answered
        assert (answered == given) == (given == "mine-1")


async def test_the_log_has_nothing_of_prompts_answers_or_keys(
    make_app: MakeApp, engines: FakeEngines, lines: Lines
) -> None:
    engines.script.answers = lambda choice: tuple(CANARY.encode())
    message = {"role": "user", "content": CANARY}
    bodies: list[Any] = [
        {"messages": [message]},
        {"messages": [{**message, "role": CANARY}]},
        {"messages": [{**message, "name": "nobody"}]},
        {"messages": CANARY},
        {"messages": [{"role": "user", "content": [{"type": CANARY, "text": CANARY}]}]},
        {"messages": [message], "temperature": CANARY},
        {"messages": [message], "tool_choice": {"type": "function", "function": {"name": CANARY}}},
        {"messages": [message], "response_format": {"type": CANARY}},
        {"messages": [message], "guided_regex": f"({CANARY}"},
        {"messages": [message], "stop": [CANARY], "logit_bias": {CANARY: 1}},
        {"messages": [message], "model": CANARY},
        {"prompt": CANARY},
    ]
    async with client_of(make_app(keys=(CANARY,))) as client:
        for key in (f"{CANARY}-wrong", CANARY):
            client.headers["authorization"] = f"Bearer {key}"
            for body in bodies:
                path = "completions" if "prompt" in body else "chat/completions"
                await client.post(f"/v1/{path}?q={CANARY}", json=body)
                await client.post(f"/v1/{path}", content=f'{{"{CANARY}'.encode())
    assert len(lines.access()) == 4 * len(bodies)
    for record in lines.records:
        shown = f"{record.getMessage()} {record.__dict__.get('fields')} {record.exc_info}"
        assert CANARY not in shown, shown


async def test_no_line_is_written_unless_the_settings_say_so(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "understudy"):
        await chat(client)
    assert not [record for record in caplog.records if record.name == LOGGER]


async def test_the_engine_gets_the_id_of_the_request(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    client.headers["x-request-id"] = "mine-1"
    await chat(client)
    await complete(client, prompt=["a", "b"])
    assert {request.http_id for request in engines.engine.requests} == {"mine-1"}
