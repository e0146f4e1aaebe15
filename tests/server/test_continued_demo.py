"""Streams of the real server that are cut and continued: joined, they are the unbroken ones."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.demo_server import DemoServer
from tests.server.continuing import chunks_of, ids_by_choice, joined, kept
from tests.server.test_demo import STARTERS, STORY, TOOLS

Body = dict[str, Any]

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 9},
        "tags": {"items": {"type": "number"}},
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}}
TOOL_CALL = next(starter for starter in STARTERS if starter["id"] == "tool_call")
SUM = [{"role": "user", "content": "What is 58 + 27?"}]
CHAT, TEXT = "/chat/completions", "/completions"
LOGPROBS = {"logprobs": True, "top_logprobs": 2}
PENALTIES = {"presence_penalty": 0.7, "frequency_penalty": 0.4, "repetition_penalty": 1.1}

# The path and the body of each kind of request.
KINDS: dict[str, tuple[str, Body]] = {
    "sampled": (CHAT, {**LOGPROBS, "top_p": 0.9}),
    "schema near its limit": (CHAT, {"response_format": SCHEMA, "max_tokens": 26, **LOGPROBS}),
    "tools": (CHAT, {"tools": TOOLS, "messages": TOOL_CALL["messages"], "max_tokens": 80}),
    "text": (TEXT, {"prompt": "Once upon a time", "logprobs": 1, "echo": True}),
    "greedy": (CHAT, {"temperature": 0, "seed": None}),
    "penalties": (CHAT, PENALTIES),
    "bias": (CHAT, {"logit_bias": {"40": 2, "50": -100}, "min_tokens": 40, "max_tokens": 50}),
    "stop": (CHAT, {"stop": [" the end", "zzz", " time, the"], **LOGPROBS}),
    "n": (CHAT, {"n": 3, **LOGPROBS}),
    "forced call": (CHAT, {"tools": TOOLS, "tool_choice": "required", "max_tokens": 60}),
    "thinking": (CHAT, {"messages": SUM, "reasoning_effort": "low", "max_tokens": 96}),
    "budget": (CHAT, {"messages": SUM, "thinking_budget": 7, "max_tokens": 60}),
    "prediction": (CHAT, {"prediction": {"type": "content", "content": "Once upon a time"}}),
    "several texts": (TEXT, {"prompt": ["Once", "The sky"], "n": 2, **PENALTIES}),
    "regex": (TEXT, {"prompt": "Say", "guided_regex": "[a-f]{20,300}-[0-9]+"}),
    "text of a schema": (TEXT, {"prompt": "A person:", "guided_json": PERSON, "logprobs": 0}),
    "text with stops": (TEXT, {"prompt": "Once", "stop": ["e", "the"], "min_tokens": 12}),
}
QUICK = list(KINDS)[:4]


@pytest.fixture
def client(served_demo: DemoServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served_demo[1], timeout=120) as client:
        yield client


def stream(client: httpx.Client, kind: str, more: Body) -> list[Any]:
    path, own = KINDS[kind]
    body: Body = {"model": "demo", "temperature": 1, "seed": 2, "max_tokens": 32}
    if path == CHAT:
        body["messages"] = STORY
    options = {"include_usage": True}
    body |= {"return_token_ids": True, "stream": True, "stream_options": options, **own, **more}
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return chunks_of(answer.text)


def places(chunks: list[Any], step: int) -> list[int]:
    """Return after how many chunks to cut, of which the client has a token of each prompt."""
    return sorted({*range(2, len(chunks), step), len(chunks) - 2, len(chunks) - 1})


def check(client: httpx.Client, kind: str, step: int, model: str) -> None:
    """Cut an answer at many places, and compare what another model continues with all of it."""
    whole = stream(client, kind, {"speculation": {"method": "none"}})  # a token at a time
    want, fingerprint = joined(whole), whole[0]["system_fingerprint"]
    for place in places(whole, step):
        before = kept(whole[:place])
        given = {"continue_tokens": ids_by_choice(before), "fingerprint": fingerprint}
        after = stream(client, kind, {"model": model, **given})
        assert joined([*before, *after]) == want, (kind, place)


@pytest.mark.parametrize("kind", QUICK)
def test_a_stream_that_is_cut_goes_on(client: httpx.Client, kind: str) -> None:
    check(client, kind, 9, "demo")


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_goes_on_after_every_token(client: httpx.Client, kind: str) -> None:
    check(client, kind, 1, "demo")


@pytest.mark.slow
def test_streams_go_on_in_an_engine_with_another_draft(client: httpx.Client) -> None:
    """All answers are begun before the model is changed, which takes seconds."""
    begun = {kind: stream(client, kind, {}) for kind in KINDS}
    for kind, whole in begun.items():
        before = kept(whole[: len(whole) // 2])
        given = {"continue_tokens": ids_by_choice(before)}
        after = stream(client, kind, {"model": "demo-plain", **given})
        assert after[0]["system_fingerprint"] == whole[0]["system_fingerprint"]
        assert joined([*before, *after]) == joined(whole), kind


def test_tokens_outside_the_grammar_are_refused(client: httpx.Client) -> None:
    given = {"continue_tokens": {"0": [5, 6, 7]}, "seed": 2, "model": "demo"}
    body = {"messages": STORY, "response_format": SCHEMA, "max_tokens": 60, **given}
    answer = client.post(CHAT, json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("continue_tokens", "invalid_value")
    assert "token 1 of 3 does not match the grammar" in error["message"]
