"""Large bodies, which only a text process parses, are answered like small ones."""

import json
from typing import Any

import httpx
import pytest

from server.chat import token_calls
from server.text.limits import LARGE_BODY
from tests.server.conftest import error_of
from tests.server.fake_engine import FakeEngines

MESSAGES = [{"role": "user", "content": "hi"}]
PARAMETERS = {"type": "object", "properties": {"place": {"type": "string"}}}
TOOL = {"name": "look", "description": "Look up.", "parameters": PARAMETERS}
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 5, "seed": 1}),
    (
        "/v1/chat/completions",
        {"messages": MESSAGES, "tools": [{"type": "function", "function": TOOL}], "n": 2},
    ),
    ("/v1/completions", {"prompt": ["hi", [104, 105]], "echo": True, "max_tokens": 3}),
    (
        "/v1/messages",
        {
            "model": "main",
            "max_tokens": 5,
            "system": "Be kind.",
            "messages": MESSAGES,
            "tools": [{"name": "look", "input_schema": PARAMETERS}],
        },
    ),
    ("/v1/messages/count_tokens", {"model": "main", "messages": MESSAGES}),
    (
        "/v1/responses",
        {"input": "hi", "instructions": "Be kind.", "tools": [{"type": "function", **TOOL}]},
    ),
    ("/v1/responses/input_tokens", {"input": "hi"}),
    ("/v1/chat/completions/input_tokens", {"messages": MESSAGES}),
    ("/apply-template", {"messages": MESSAGES}),
    ("/tokenize", {"content": "hi", "with_pieces": True}),
    ("/tokenize", {"messages": MESSAGES}),
    ("/detokenize", {"tokens": [104, 105]}),
]


async def post(client: httpx.AsyncClient, path: str, data: str) -> httpx.Response:
    headers = {"content-type": "application/json"}
    return await client.post(path, content=data, headers=headers)


def without_names(answer: Any) -> Any:
    """Return an answer without ids and times, which differ between answers."""
    if isinstance(answer, dict):
        kept = {key: value for key, value in answer.items() if key not in ("id", "timings")}
        return {key: without_names(value) for key, value in kept.items() if "created" not in key}
    return [without_names(item) for item in answer] if isinstance(answer, list) else answer


@pytest.mark.parametrize(("path", "body"), REQUESTS)
async def test_a_large_body_is_answered_like_a_small_one(
    client: httpx.AsyncClient, engines: FakeEngines, path: str, body: dict[str, Any]
) -> None:
    data = json.dumps(body)
    small = await post(client, path, data)
    large = await post(client, path, data + " " * LARGE_BODY)
    assert (small.status_code, large.status_code) == (200, 200), large.text
    assert without_names(large.json()) == without_names(small.json())
    asked = [(request.prompt, request.n) for request in engines.engine.requests]
    assert asked[: len(asked) // 2] == asked[len(asked) // 2 :]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user"}]}, "messages.0.content"),
        ("/v1/completions", {"prompt": "hi", "best_of": 0}, "best_of"),
        ("/v1/responses", {"input": [{"role": "user", "content": 5}]}, "input.0.content"),
        ("/detokenize", {"tokens": [1, -1]}, "tokens.1"),
    ],
)
async def test_the_error_names_a_mistake_in_a_large_body(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], param: str
) -> None:
    error = error_of(await post(client, path, json.dumps(body) + " " * LARGE_BODY), 400)
    assert error["param"] == param


async def test_an_answer_of_token_ids_has_a_limit(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_calls, "LONGEST_ANSWER", 200)
    for text, status in (("x" * 20, 200), ("x" * 200, 400)):
        answer = await post(client, "/tokenize", json.dumps({"content": text}))
        assert answer.status_code == status
    assert error_of(answer, 400)["code"] == "answer_too_large"
