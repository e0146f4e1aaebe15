"""Tests of stop strings over HTTP: in chats they count in the content, elsewhere in all text."""

import json
from typing import Any

import httpx
import pytest

from engine.errors import PassFailed
from tests.server.conftest import MakeApp, chat, client_of, complete, entry, error_of, events
from tests.server.fake_engine import EOS, FakeEngines, ids_of

TOOLS = [{"type": "function", "function": {"name": "add"}}]
TEMPLATE = (
    "{% for t in tools or [] %}<tools>{{ t | tojson }}{% endfor %}"
    "{% for m in messages %}<turn>{{ m.role }}:{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}{% endfor %}"
    "{% if not (loop.last and m.role == 'assistant') %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant:{% if enable_thinking %}<think>{% endif %}"
    "{% endif %}"
)
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": "x\\n\\ny"}}\n</tool_call>'
THOUGHT = "<think>\nOne.\n\nTwo.\n</think>\n\n"


@pytest.fixture
async def client(make_app: MakeApp) -> Any:
    async with client_of(make_app(entries=[entry("main", chat_template=TEMPLATE)])) as client:
        yield client


def say(engines: FakeEngines, *texts: str) -> None:
    engines.script.answers = lambda k: (*ids_of(texts[k % len(texts)]), EOS)


@pytest.mark.parametrize("burst", [1, 3, 200])
async def test_the_thought_goes_on_and_the_content_ends(
    client: httpx.AsyncClient, engines: FakeEngines, burst: int
) -> None:
    say(engines, f"{THOUGHT}Sure.\n\nMore.")
    engines.script.burst = burst
    answer = (await chat(client, stop="\n\n", logprobs=True)).json()
    (choice,) = answer["choices"]
    assert choice["message"]["reasoning_content"] == "One.\n\nTwo."
    assert choice["message"]["content"] == "Sure."
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "\n\n")
    shown = b"".join(bytes(entry["bytes"]) for entry in choice["logprobs"]["content"])
    assert shown == b"Sure."
    assert answer["usage"]["completion_tokens"] == len(f"{THOUGHT}Sure.\n\n")
    streamed = events((await chat(client, stop="\n\n", stream=True)).text)[:-1]
    deltas = [chunk["choices"][0]["delta"] for chunk in streamed]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "One.\n\nTwo."
    assert "".join(delta.get("content", "") for delta in deltas) == "Sure."


@pytest.mark.parametrize("burst", [1, 3, 200])
async def test_a_call_is_read_to_its_end(
    client: httpx.AsyncClient, engines: FakeEngines, burst: int
) -> None:
    say(engines, f"{THOUGHT}Sure.\n\n{CALL}", "Sure.\n\n<tool", "Sure.\n\n<tool_bar>")
    engines.script.burst = burst
    stop = ["\n\n", "{", "</tool_call>"]
    choices = (await chat(client, tools=TOOLS, stop=stop, n=3)).json()["choices"]
    assert [choice["message"]["content"] for choice in choices] == ["Sure."] * 3
    assert [choice["finish_reason"] for choice in choices] == ["tool_calls", "stop", "stop"]
    assert [choice.get("stop_reason") for choice in choices] == [None, None, "\n\n"]
    (call,) = choices[0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"a": "x\n\ny"}


async def test_what_may_be_markup_is_content_where_the_rest_says_so(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    say(engines, "See <tool_bar> here")
    answer = (await chat(client, tools=TOOLS, stop="l_b")).json()["choices"][0]
    assert (answer["message"]["content"], answer["stop_reason"]) == ("See <too", "l_b")


async def test_a_continued_message_begins_where_it_ended(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    say(engines, "Two.\n\n</think>\n\nSo.\n\nNo.")
    user = {"role": "user", "content": "hi"}
    for begun, content in (("<think>\nOne.", "So."), ("Hm", "Two.")):
        messages = [user, {"role": "assistant", "content": begun}]
        answer = (await chat(client, messages=messages, stop="\n\n")).json()["choices"][0]
        assert (answer["message"]["content"], answer["stop_reason"]) == (content, "\n\n")


async def test_other_doors_have_the_same_rule(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    say(engines, f"{THOUGHT}Sure.\n\nMore.")
    body = {"model": "main", "max_tokens": 99, "messages": [{"role": "user", "content": "hi"}]}
    answer = (await client.post("/v1/messages", json=body | {"stop_sequences": ["\n\n"]})).json()
    assert answer["content"][-1]["text"] == "Sure."
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "\n\n")
    (text,) = (await complete(client, stop="\n\n")).json()["choices"]
    assert (text["text"], text["finish_reason"]) == ("<think>\nOne.", "stop")


async def test_only_chats_with_stop_strings_send_their_format(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    await chat(client, tools=TOOLS, stop=[])
    await complete(client, stop="x")
    await chat(client, tools=TOOLS, stop="x")
    *others, last = [request.answer_format for request in engines.engine.requests]
    assert others == [None, None]
    assert last is not None
    assert (last.calls, last.reasoning, list(last.tools)) == ("hermes", "think", ["add"])
    assert last.before.endswith("<turn>assistant:")


async def test_a_parser_that_fails_in_the_engine_is_a_500(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.error = PassFailed("the parser failed", "answer_unreadable")
    error = error_of(await chat(client, stop="x"), 500)
    assert error["code"] == "answer_unreadable"
