"""Tests of `return_token_ids`: the ids of prompts and answers, streamed and whole."""

import json
from typing import Any

import httpx
import pytest

from tests.server.conftest import chat, complete, events
from tests.server.fake_engine import EOS, FakeEngines, ids_of

CALL = '<tool_call>\n{"name": "f", "arguments": {"k": "v"}}\n</tool_call>'
TOOL = {"type": "function", "function": {"name": "f"}}
ANSWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("Hello there.", {}),
    "characters of several tokens": ("\N{SNOWMAN}\N{GRINNING FACE}é", {}),
    "text that may begin a stop string": ("Hello there.", {"stop": "there!"}),
    "a stop string": ("Hello there.", {"stop": "there"}),
    "the token limit": ("Hello there.", {"max_tokens": 4}),
    "a token at a time": ("Hello", {}),
}
MESSAGES = {"messages": [{"role": "user", "content": "hi"}]}


def joined(chunks: list[Any], field: str, index: int = 0) -> list[int]:
    """Return the ids of one choice, which every chunk of it has."""
    choices = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
    return [token for choice in choices for token in choice[field]]


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("ask", [chat, complete])
async def test_ids_are_those_that_the_engine_emitted(
    client: httpx.AsyncClient, engines: FakeEngines, ask: Any, name: str
) -> None:
    text, fields = ANSWERS[name]
    engines.script.answers = lambda _: (*ids_of(text), EOS)
    engines.script.burst = 1 if name == "a token at a time" else 3
    fields = {"max_tokens": 99, "return_token_ids": True, **fields}
    whole = (await ask(client, **fields)).json()
    options = {"include_usage": True}
    *chunks, _ = events((await ask(client, stream=True, stream_options=options, **fields)).text)
    ids = whole["choices"][0]["token_ids"]
    assert ids == [*ids_of(text), EOS][: len(ids)]
    assert len(ids) == whole["usage"]["completion_tokens"]
    assert joined(chunks, "token_ids") == ids
    sent = [c["token_ids"] for chunk in chunks for c in chunk["choices"]]
    passes = [part for part in sent if part]
    assert passes == [ids[i : i + engines.script.burst] for i in range(0, len(ids), len(passes[0]))]


async def test_ids_of_prompts(client: httpx.AsyncClient, engines: FakeEngines) -> None:
    for ask, stream in ((chat, False), (chat, True)):
        answer = await ask(client, stream=stream, n=2, return_token_ids=True)
        first, *others = events(answer.text)[:-1] if stream else [answer.json()]
        assert tuple(first["prompt_token_ids"]) == engines.engine.requests[-1].prompt
        assert not any("prompt_token_ids" in chunk for chunk in others)
    fields: dict[str, Any] = {"prompt": ["ab", "c"], "n": 2, "return_token_ids": True}
    expected = {0: ids_of("ab"), 1: ids_of("ab"), 2: ids_of("c"), 3: ids_of("c")}
    whole = (await complete(client, **fields)).json()
    streamed = events((await complete(client, stream=True, **fields)).text)[:-1]
    for chunks in ([whole], streamed):
        found = [c for chunk in chunks for c in chunk["choices"] if "prompt_token_ids" in c]
        assert {c["index"]: tuple(c["prompt_token_ids"]) for c in found} == expected
        assert len(found) == 4


@pytest.mark.parametrize("ask", [chat, complete])
async def test_there_are_no_ids_unless_asked_for(client: httpx.AsyncClient, ask: Any) -> None:
    for fields in ({}, {"return_token_ids": False}, {"stream": True}):
        assert "token_ids" not in (await ask(client, **fields)).text


async def test_ids_of_calls_and_reasoning(client: httpx.AsyncClient, engines: FakeEngines) -> None:
    engines.script.answers = lambda _: (*ids_of(f"I look.{CALL}"), EOS)
    answer = await chat(client, stream=True, tools=[TOOL], return_token_ids=True)
    chunks = events(answer.text)[:-1]
    assert any("tool_calls" in c["choices"][0]["delta"] for c in chunks)
    assert joined(chunks, "token_ids") == [*ids_of(f"I look.{CALL}"), EOS]


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/messages", MESSAGES | {"max_tokens": 99}), ("/v1/responses", {"input": "hi"})],
)
async def test_ids_on_the_other_apis(
    client: httpx.AsyncClient, engines: FakeEngines, path: str, body: dict[str, Any]
) -> None:
    body = {**body, "return_token_ids": True}
    whole = (await client.post(path, json=body)).json()
    lines = (await client.post(path, json={**body, "stream": True})).text.splitlines()
    streamed = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    expected = [*ids_of("Hello there."), EOS]
    assert tuple(whole["prompt_token_ids"]) == engines.engine.requests[-1].prompt
    assert whole["token_ids"] == expected
    assert streamed[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    sent = [event["token_ids"] for event in streamed if "token_ids" in event]
    assert [token for ids in sent for token in ids] == expected
    assert len(sent) > 2
    assert "token_ids" not in (await client.post(path, json=body | {"return_token_ids": None})).text
