"""Tests of thinking budgets with the demo model, over every API."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.demo_server import DemoServer
from tests.server.conftest import events
from tests.variations import variations

ASKED: Any = [{"role": "user", "content": "What is Understudy?"}]
WEATHER: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": CITY}}]
NUMBER = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "schema": NUMBER}}
PLAIN = {"method": "none"}
FIELDS: list[dict[str, Any]] = [
    {"temperature": 1, "n": 2, "top_p": 0.9},
    {"response_format": FORMAT},
    {"messages": WEATHER, "tools": TOOLS, "tool_choice": "required"},
    {"stop": ["full model"], "min_tokens": 9},
    {"messages": [*ASKED, {"role": "assistant", "content": "<think>\nThe user"}]},
    {"logprobs": True, "top_logprobs": 2, "provenance": False},
    {"temperature": 1, "frequency_penalty": 1, "logit_bias": {"300": 3}},
    {"messages": WEATHER, "tools": TOOLS, "temperature": 1},
    {"max_tokens": 6},
]


@pytest.fixture
def client(served_demo: DemoServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served_demo[1], timeout=120) as client:
        yield client


def post(client: httpx.Client, path: str, **fields: Any) -> Any:
    body: Any = {"model": "demo", "temperature": 0} | fields
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert "x-understudy-ignored" not in answer.headers
    return events(answer.text) if fields.get("stream") else answer.json()


def ask(client: httpx.Client, **fields: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the choices of a chat, without the ids of calls, and its usage."""
    answer = post(
        client, "/chat/completions", **{"messages": ASKED, "max_tokens": 50, "seed": 3} | fields
    )
    for choice in answer["choices"]:
        for call in choice["message"].get("tool_calls", ()):
            del call["id"]
    return answer["choices"], answer["usage"]


def reasoning_of(choice: dict[str, Any]) -> str:
    return str(choice["message"].get("reasoning_content", ""))


@pytest.fixture(scope="module")
def whole(shared_demo: Any) -> str:
    """Return the demo's reasoning without a limit."""
    with httpx.Client(base_url=shared_demo.get()[1], timeout=120) as client:
        ((choice,), _) = ask(client, enable_thinking=True)
    return reasoning_of(choice)


@pytest.mark.parametrize("tokens", variations([1, 4, 1000], quick=[4, 1000]))
def test_reasoning_has_as_many_tokens_as_its_budget(
    client: httpx.Client, whole: str, tokens: int
) -> None:
    ((choice,), usage) = ask(client, thinking_budget=tokens)
    reasoning = reasoning_of(choice)
    assert whole.startswith(reasoning) and choice["message"]["content"]
    used = usage["completion_tokens_details"]["reasoning_tokens"]
    assert used == tokens if reasoning != whole else used < tokens
    plain = ask(client, thinking_budget=tokens, speculation=PLAIN)
    assert plain[0] == [choice]
    chunks = post(
        client,
        "/chat/completions",
        messages=ASKED,
        max_tokens=50,
        thinking_budget=tokens,
        stream=True,
    )
    deltas = [c["choices"][0]["delta"] for c in chunks[:-1] if c["choices"]]
    assert "".join(d.get("reasoning_content") or "" for d in deltas) == reasoning
    assert "".join(d.get("content") or "" for d in deltas) == choice["message"]["content"]


def test_a_budget_of_0_is_an_answer_without_reasoning(client: httpx.Client) -> None:
    without = ask(client, enable_thinking=False)[0]
    assert ask(client, thinking_budget=0)[0] == without
    kept_open = {"chat_template_kwargs": {"enable_thinking": True}}
    ((choice,), usage) = ask(client, thinking_budget=0, **kept_open)
    assert "reasoning_content" not in choice["message"] and choice["message"]["content"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 0


@pytest.mark.parametrize("fields", variations(FIELDS, quick=FIELDS[:5]))
def test_speculation_does_not_change_the_answer(
    client: httpx.Client, fields: dict[str, Any]
) -> None:
    choices, _ = ask(client, thinking_budget=4, **fields)
    assert ask(client, thinking_budget=4, speculation=PLAIN, **fields)[0] == choices
    if "max_tokens" not in fields:
        assert all(c["message"]["content"] or c["message"]["tool_calls"] for c in choices)
    if "response_format" in fields:
        assert choices[0]["message"]["content"].startswith('{"a": ')
    if "tool_choice" in fields:
        assert choices[0]["message"]["tool_calls"][0]["function"]["name"] == "get_weather"


def test_closing_tokens_are_drafted(client: httpx.Client) -> None:
    answer = post(
        client,
        "/chat/completions",
        messages=ASKED,
        max_tokens=50,
        thinking_budget=3,
        provenance=True,
    )
    sources = [token["source"] for token in answer["choices"][0]["provenance"]]
    assert "grammar" in sources


@pytest.mark.parametrize("stream", [False, True])
def test_messages_and_responses_keep_the_budget(
    client: httpx.Client, whole: str, stream: bool
) -> None:
    thinking = {"type": "enabled", "budget_tokens": 4}
    answer = post(
        client, "/messages", messages=ASKED, max_tokens=50, thinking=thinking, stream=stream
    )
    if stream:
        deltas = [e["delta"] for e in answer if e["type"] == "content_block_delta"]
        thought = "".join(d.get("thinking", "") for d in deltas)
        text = "".join(d.get("text", "") for d in deltas)
    else:
        thought, text = answer["content"][0]["thinking"], answer["content"][1]["text"]
    ((choice,), _) = ask(client, thinking_budget=4)
    assert (thought, text) == (reasoning_of(choice), choice["message"]["content"])
    assert thought != whole
    answer = post(
        client,
        "/responses",
        input=ASKED,
        max_output_tokens=50,
        reasoning={"max_tokens": 4},
        stream=stream,
    )
    response = answer[-1]["response"] if stream else answer
    reasoned, said = response["output"]
    assert reasoned["content"][0]["text"] == thought and said["content"][0]["text"] == text
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] == 4
