"""Tests of reasoning and tools with the official clients of other APIs, over two turns."""

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest

from tests.server.chat.test_tools import CALL, SUM, TEMPLATE
from tests.server.conftest import MakeApp, entry, serving
from tests.server.fake_engine import EOS, FakeEngines, ids_of

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
ANSWER = f"<think>Hm.</think>\n\nLet me see.\n{CALL}\n{SUM}"
RESPONSE_TOOLS: Any = [
    {"type": "function", "name": name, "parameters": SCHEMA, "strict": False}
    for name in ("get_time", "add")
]
MESSAGE_TOOLS: Any = [{"name": name, "input_schema": SCHEMA} for name in ("get_time", "add")]


@pytest.fixture
async def url(make_app: MakeApp, engines: FakeEngines) -> AsyncIterator[str]:
    engines.script.answers = lambda choice: (*ids_of(ANSWER), EOS)
    async with serving(make_app(entries=[entry("main", chat_template=TEMPLATE)])) as url:
        yield url


def prompt_of(engines: FakeEngines) -> str:
    return bytes(i for i in engines.engine.requests[-1].prompt if i < 256).decode()


async def test_openais_client_gets_calls_and_answers_them(url: str, engines: FakeEngines) -> None:
    arguments: Any = {"model": "main", "tools": RESPONSE_TOOLS, "input": "time?"}
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        answer = await client.responses.create(**arguments)
        async with client.responses.stream(**arguments) as stream:
            seen = [event async for event in stream]
            streamed = await stream.get_final_response()
        type(answer).model_validate(answer.model_dump())
        assert [item.type for item in answer.output] == [
            "reasoning",
            "message",
            "function_call",
            "function_call",
        ]
        assert [item.type for item in streamed.output] == [item.type for item in answer.output]
        assert reasoning_of(seen) == "Hm."
        assert answer.output_text == "Let me see."
        assert answer.usage is not None
        assert answer.usage.output_tokens_details.reasoning_tokens > 0
        calls: Any = answer.output[2:]
        assert [(c.name, c.arguments) for c in calls] == [
            ("get_time", '{"city": "Paris"}'),
            ("add", '{"a":  "é"}'),
        ]
        results = [
            {"type": "function_call_output", "call_id": call.call_id, "output": "14:05"}
            for call in calls
        ]
        turn: Any = [{"role": "user", "content": "time?"}, *answer.output, *results]
        await client.responses.create(**arguments | {"input": turn})
    prompt = prompt_of(engines)
    assert "assistant:Let me see.<tool_call>" in prompt
    assert prompt.count("tool:14:05") == 2


def reasoning_of(seen: list[Any]) -> str:
    return "".join(e.delta for e in seen if e.type == "response.reasoning_text.delta")


async def test_anthropics_client_gets_calls_and_answers_them(
    url: str, engines: FakeEngines
) -> None:
    user: Any = {"role": "user", "content": "time?"}
    arguments: Any = {"model": "main", "max_tokens": 500, "tools": MESSAGE_TOOLS}
    async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as client:
        answer = await client.messages.create(**arguments, messages=[user])
        async with client.messages.stream(**arguments, messages=[user]) as stream:
            streamed = await stream.get_final_message()
        assert answer.stop_reason == "tool_use"
        assert [block.type for block in answer.content] == [
            "thinking",
            "text",
            "tool_use",
            "tool_use",
        ]
        calls: Any = answer.content[2:]
        assert [c.input for c in calls] == [{"city": "Paris"}, {"a": "é"}]
        assert all(c.id.startswith("toolu_") for c in calls)
        assert shape_of(streamed.content) == shape_of(answer.content)
        results = [{"type": "tool_result", "tool_use_id": c.id, "content": "14:05"} for c in calls]
        turns: Any = [
            user,
            {"role": "assistant", "content": answer.content},
            {"role": "user", "content": [*results, {"type": "text", "text": "and?"}]},
        ]
        await client.messages.create(**arguments, messages=turns)
    prompt = prompt_of(engines)
    assert "assistant:Let me see.<tool_call>" in prompt
    assert prompt.count("tool:14:05") == 2
    assert prompt.endswith("user:and?")


def shape_of(content: list[Any]) -> list[dict[str, Any]]:
    return [block.model_dump(exclude={"id"}) for block in content]


async def test_the_setting_of_thinking_reaches_the_template(url: str, engines: FakeEngines) -> None:
    async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as client:
        for thinking, ending in (("enabled", "<think>"), ("disabled", "time?")):
            asked: Any = {"type": thinking, "budget_tokens": 1024}
            await client.messages.create(
                model="main",
                max_tokens=500,
                messages=[{"role": "user", "content": "time?"}],
                thinking=asked,
            )
            assert prompt_of(engines).endswith(ending)
