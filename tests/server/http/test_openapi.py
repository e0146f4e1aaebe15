"""/openapi.json is correct: schemathesis sends requests that it allows and checks the answers."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.conftest import MakeApp, client_of

# What a schema allows can still be too long, name no token of this model, or ask for a feature that
# it lacks: only a loaded model decides on these 400s. All other checks of schemathesis run.
LEFT_OUT = "positive_data_acceptance"


@pytest.fixture
def url() -> Iterator[str]:
    command = [sys.executable, "-m", "tests.server.serve_fake"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        server.terminate()


# The first takes 60 requests, the second 6500: one for each way to break each bound.
@pytest.mark.slow
@pytest.mark.parametrize("phase", ["fuzzing", "coverage"])
def test_schemathesis_finds_no_failure(url: str, tmp_path: Path, phase: str) -> None:
    command = [
        *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"),
        *("run", f"{url}/openapi.json", "--exclude-checks", LEFT_OUT, "--no-color"),
        *("--wait-for-schema", "30", "--phases", phase, "--max-examples", "5"),
        *("--generation-deterministic", "--continue-on-failure"),
        *("--exclude-path", "/v1/status"),  # with `?watch` it is a stream without an end
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "Tested: 22" in done.stdout


def operations(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (path, operation)
        for path, methods in document["paths"].items()
        for operation in methods.values()
    ]


async def test_every_operation_states_its_errors_and_limits(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    for path, operation in operations(document):
        shape = "MessageErrorBody" if path.startswith("/v1/messages") else "ErrorBody"
        error = {"$ref": f"#/components/schemas/{shape}"}
        for status in ("401", "4XX", "5XX"):
            answer = operation["responses"][status]
            assert answer["content"]["application/json"]["schema"] == error
            assert "x-request-id" in answer["headers"]
    chat = document["components"]["schemas"]["ChatRequest"]["properties"]
    assert chat["n"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 128}


@pytest.mark.parametrize("keys", [(), ("alpha",)])
async def test_keys_are_in_the_document_when_they_are_set(
    make_app: MakeApp, keys: tuple[str, ...]
) -> None:
    async with client_of(make_app(keys=keys)) as client:
        client.headers["x-api-key"] = "alpha"
        document = (await client.get("/openapi.json")).json()
    protected = {path for path, operation in operations(document) if operation.get("security")}
    everything = {path for path, _ in operations(document)}
    assert protected == (everything - {"/health"} if keys else set())
    assert ("securitySchemes" in document["components"]) == bool(keys)
