"""POST /v1/responses, with OpenAI's own client, and the errors of the route."""

import asyncio
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from engine.errors import EngineDied
from tests.server.conftest import MakeApp, error_of, events, serving
from tests.server.fake_engine import EOS, FakeEngines, ids_of


async def respond(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/v1/responses", json={"input": "hi", **fields})


async def test_the_official_client_reads_an_answer(openai_client: openai.AsyncOpenAI) -> None:
    answer = await openai_client.responses.create(
        model="main",
        input="hi",
        instructions="be brief",
        top_logprobs=1,
        include=["message.output_text.logprobs"],
        metadata={"a": "b"},
    )
    type(answer).model_validate(answer.model_dump())
    assert answer.output_text == "Hello there."
    assert answer.status == "completed"
    assert answer.id.startswith("resp_")
    assert answer.usage is not None
    assert answer.usage.output_tokens == 13
    assert answer.usage.input_tokens_details.cached_tokens == 2
    message: Any = answer.output[0]
    assert message.id.startswith("msg_")
    assert len(message.content[0].logprobs) == 13


async def test_the_official_client_reads_a_stream(openai_client: openai.AsyncOpenAI) -> None:
    async with openai_client.responses.stream(model="main", input="hi") as stream:
        seen = [event async for event in stream]
        final = await stream.get_final_response()
    assert final.output_text == "Hello there."
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    text = "".join(event.delta for event in seen if event.type == "response.output_text.delta")
    assert text == "Hello there."
    raw = await openai_client.responses.create(model="main", input="hi", stream=True)
    assert [event.type async for event in raw] == [event.type for event in seen]


async def test_a_stream_names_its_events_and_ends_without_done(client: httpx.AsyncClient) -> None:
    response = await respond(client, stream=True)
    streamed = events(response.text)
    names = [line[7:] for line in response.text.splitlines() if line.startswith("event: ")]
    assert names == [event["type"] for event in streamed]
    assert streamed[-1]["type"] == "response.completed"


async def test_the_whole_answer_is_the_end_of_the_stream(client: httpx.AsyncClient) -> None:
    whole = (await respond(client, seed=1)).json()
    streamed = events((await respond(client, seed=1, stream=True)).text)[-1]["response"]

    def shape(answer: Any) -> Any:
        unlike = {"id", "created_at"}
        items = [{k: v for k, v in item.items() if k != "id"} for item in answer["output"]]
        return {k: v for k, v in answer.items() if k not in unlike} | {"output": items}

    assert shape(whole) == shape(streamed)


async def test_a_limit_makes_an_answer_incomplete(client: httpx.AsyncClient) -> None:
    answer = (await respond(client, max_output_tokens=5)).json()
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert answer["output"][0]["content"][0]["text"] == "Hello"


async def test_items_reach_the_template(client: httpx.AsyncClient, engines: FakeEngines) -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "message", "role": "assistant", "content": "b"},
        {"type": "message", "role": "user", "content": "c"},
    ]
    assert (await respond(client, input=items, instructions="s")).status_code == 200
    expected = "system:s|user:a|assistant:b|user:c|assistant:"
    prompt = bytes(i for i in engines.engine.requests[0].prompt if i < 256).decode()
    assert prompt == expected.replace("|", "")


FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}
REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    ({"input": None}, "input", "invalid_type"),
    ({"input": []}, "input", "empty_array"),
    ({"input": 1}, "input", "invalid_type"),
    ({"input": [1]}, "input.0", "invalid_type"),
    ({"input": [{}]}, "input.0.type", "missing_required_parameter"),
    ({"input": [{"role": "user"}]}, "input.0.content", "missing_required_parameter"),
    ({"input": [{"role": "boss", "content": ""}]}, "input.0.role", "invalid_value"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type", "unsupported_content"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input.0.content.0.type",
        "unsupported_content",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": 1}]}]},
        "input.0.content.0.text",
        "invalid_type",
    ),
    (
        {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": [1]}]},
        "input.0.arguments",
        "invalid_type",
    ),
    ({"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
    ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
    ({"conversation": {"id": "c"}}, "conversation", "unsupported_parameter"),
    ({"background": True}, "background", "unsupported_parameter"),
    ({"prompt": {"id": "p"}}, "prompt", "unsupported_parameter"),
    ({"n": 2}, "n", "unsupported_parameter"),
    ({"tools": {}}, "tools", "invalid_type"),
    ({"tools": [{"name": "f"}]}, "tools.0.type", "missing_required_parameter"),
    ({"tools": [{"type": "function"}]}, "tools.0.name", "missing_required_parameter"),
    ({"tool_choice": {"type": "web_search"}}, "tool_choice.type", "unsupported_content"),
    ({"tool_choice": "always"}, "tool_choice", "invalid_value"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type", "invalid_value"),
    (
        {"text": {"format": {"type": "json_schema"}}},
        "text.format.name",
        "missing_required_parameter",
    ),
    (
        {"text": {"format": {"type": "json_schema", "name": "n", "schema": [None]}}},
        "text.format.schema",
        "invalid_type",
    ),
    (
        {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "x"}}}},
        "text.format.schema",
        "invalid_grammar",
    ),
    ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
    ({"input": "x" * 9000}, "input", "context_length_exceeded"),
    ({"temperature": 3}, "temperature", "invalid_value"),
    ({"top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
    ({"model": "nothing"}, "model", "model_not_found"),
]


async def test_the_error_names_a_mistake(client: httpx.AsyncClient) -> None:
    for fields, param, code in REFUSALS:
        for stream in (False, True):
            response = await respond(client, **fields, stream=stream)
            error = error_of(response, 404 if code == "model_not_found" else 400)
            assert (error["param"], error["code"]) == (param, code), fields


async def test_fields_without_effect_are_accepted(client: httpx.AsyncClient) -> None:
    harmless = {
        "store": True,
        "truncation": "auto",
        "service_tier": "flex",
        "background": False,
        "previous_response_id": None,
        "tools": [],
        "user": "me",
        "prompt_cache_key": "k",
    }
    answer = (await respond(client, **harmless)).json()
    assert answer["store"] is False
    assert answer["truncation"] == "disabled"


async def test_a_failure_in_a_stream_is_an_event(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.error, engines.script.error_after = EngineDied("gone"), 2
    streamed = events((await respond(client, stream=True)).text)
    assert streamed[-1]["type"] == "response.failed"
    assert streamed[-1]["response"]["error"] == {"code": "server_error", "message": "gone"}
    assert error_of(await respond(client), 503)["code"] == "engine_died"


async def test_the_official_client_raises_for_a_failure_before_the_answer(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    engines.script.error = EngineDied("gone")
    engines.script.gate = asyncio.Event()
    async with (
        serving(make_app(keepalive=0.01)) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        stream = await client.responses.create(model="main", input="hi", stream=True)
        engines.script.gate.set()
        with pytest.raises(openai.APIError, match="gone"):
            [event async for event in stream]


async def test_the_count_equals_the_tokens_of_the_prompt(
    openai_client: openai.AsyncOpenAI, engines: FakeEngines
) -> None:
    counted = await openai_client.responses.input_tokens.count(model="main", input="hi")
    answer = await openai_client.responses.create(model="main", input="hi")
    assert answer.usage is not None
    assert (
        counted.input_tokens == answer.usage.input_tokens == len(engines.engine.requests[0].prompt)
    )
    assert counted.object == "response.input_tokens"


async def test_an_answer_may_be_empty(client: httpx.AsyncClient, engines: FakeEngines) -> None:
    engines.script.answers = lambda choice: (*ids_of(""), EOS)
    assert (await respond(client)).json()["output"] == []


class City(BaseModel):
    name: str
    people: int


async def test_the_official_client_parses_an_answer_that_matches_a_schema(
    openai_client: openai.AsyncOpenAI, engines: FakeEngines
) -> None:
    engines.script.answers = lambda choice: (*ids_of('{"name": "Rome", "people": 3}'), EOS)
    answer = await openai_client.responses.parse(model="main", input="hi", text_format=City)
    assert answer.output_parsed == City(name="Rome", people=3)
    assert engines.engine.requests[0].params.grammar
    stream = openai_client.responses.stream(model="main", input="hi", text_format=City)
    async with stream as reader:
        assert (await reader.get_final_response()).output_parsed == answer.output_parsed
