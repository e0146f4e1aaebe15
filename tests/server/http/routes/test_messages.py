"""POST /v1/messages, with Anthropic's own client, and the errors of the route."""

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx
import pytest
from pydantic import BaseModel

from engine.errors import EngineDied, QueueFull
from tests.server.conftest import MakeApp, client_of, events, serving
from tests.server.fake_engine import EOS, FakeEngines, ids_of

USER: Any = {"role": "user", "content": "hi"}


@pytest.fixture
async def anthropic_client(make_app: MakeApp) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with (
        serving(make_app()) as url,
        anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as client,
    ):
        yield client


async def message(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    body = {"messages": [USER], "max_tokens": 100, **fields}
    return await client.post("/v1/messages", json=body)


def message_error_of(response: httpx.Response, status: int) -> tuple[str, str]:
    """Return type and message of an error after checking its format."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"type", "error", "request_id"}
    assert body["type"] == "error"
    assert body["request_id"] == response.headers["x-request-id"]
    assert set(body["error"]) == {"type", "message"}
    return body["error"]["type"], body["error"]["message"]


async def test_the_official_client_reads_an_answer(
    anthropic_client: anthropic.AsyncAnthropic,
) -> None:
    answer = await anthropic_client.messages.create(
        model="main",
        max_tokens=100,
        messages=[USER],
        system="be brief",
        extra_body={"temperature": 0.5, "top_k": 5},
    )
    type(answer).model_validate(answer.model_dump())
    assert [block.type for block in answer.content] == ["text"]
    assert answer.content[0].type == "text"
    assert answer.content[0].text == "Hello there."
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    assert answer.usage.output_tokens == 13
    assert answer.usage.cache_read_input_tokens == 2
    assert answer.id.startswith("msg_")


async def test_the_official_client_reads_a_stream(
    anthropic_client: anthropic.AsyncAnthropic,
) -> None:
    arguments: Any = {"model": "main", "max_tokens": 100, "messages": [USER]}
    async with anthropic_client.messages.stream(**arguments) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        final = await stream.get_final_message()
    whole = await anthropic_client.messages.create(**arguments)
    assert text == "Hello there."
    assert final.model_dump(exclude={"id"}) == whole.model_dump(exclude={"id"})
    raw = await anthropic_client.messages.create(**arguments, stream=True)
    assert [event.type async for event in raw][-2:] == ["message_delta", "message_stop"]


async def test_the_first_event_has_the_tokens_of_the_prompt(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    whole = (await message(client)).json()["usage"]
    streamed = events((await message(client, stream=True)).text)
    assert streamed[0]["type"] == "message_start"
    assert whole["input_tokens"] == len(engines.engine.requests[0].prompt) - 2
    assert streamed[0]["message"]["usage"] == whole | {"output_tokens": 3}
    last = next(event for event in streamed if event["type"] == "message_delta")
    assert last["usage"] == whole


async def test_the_official_client_counts_tokens(
    anthropic_client: anthropic.AsyncAnthropic, engines: FakeEngines
) -> None:
    counted = await anthropic_client.messages.count_tokens(
        model="main", messages=[USER], system="be brief"
    )
    await anthropic_client.messages.create(
        model="main", messages=[USER], system="be brief", max_tokens=1
    )
    assert counted.input_tokens == len(engines.engine.requests[0].prompt)


async def test_the_official_client_gets_typed_errors(
    anthropic_client: anthropic.AsyncAnthropic,
) -> None:
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        await anthropic_client.messages.create(model="main", max_tokens=0, messages=[USER])
    with pytest.raises(anthropic.NotFoundError) as missing:
        await anthropic_client.messages.create(model="no", max_tokens=1, messages=[USER])
    assert missing.value.type == "not_found_error"


class City(BaseModel):
    name: str


async def test_the_official_client_parses_an_answer_that_matches_a_schema(
    anthropic_client: anthropic.AsyncAnthropic, engines: FakeEngines
) -> None:
    engines.script.answers = lambda choice: (*ids_of('{"name": "Rome"}'), EOS)
    answer = await anthropic_client.messages.parse(
        model="main", max_tokens=100, messages=[USER], output_format=City
    )
    assert answer.parsed_output == City(name="Rome")
    assert engines.engine.requests[0].params.grammar


async def test_an_answer_names_the_stop_sequence_that_ended_it(client: httpx.AsyncClient) -> None:
    answer = (await message(client, stop_sequences=["zz", " th"])).json()
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", " th")
    assert answer["content"] == [{"type": "text", "text": "Hello", "citations": None}]
    streamed = events((await message(client, stop_sequences=[" th"], stream=True)).text)
    assert streamed[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": " th"}


async def test_an_answer_says_that_its_limit_ended_it(client: httpx.AsyncClient) -> None:
    answer = (await message(client, max_tokens=5)).json()
    assert (answer["stop_reason"], answer["content"][0]["text"]) == ("max_tokens", "Hello")


async def test_a_stream_names_its_events(client: httpx.AsyncClient) -> None:
    response = await message(client, stream=True)
    names = [line[7:] for line in response.text.splitlines() if line.startswith("event: ")]
    assert names == [event["type"] for event in events(response.text)]


@pytest.mark.parametrize("content", ["Once", "", []])
async def test_the_last_turn_is_continued_if_it_is_the_assistants(
    client: httpx.AsyncClient, engines: FakeEngines, content: Any
) -> None:
    turns = [USER, {"role": "assistant", "content": content}]
    assert (await message(client, messages=turns)).status_code == 200
    prompt = bytes(i for i in engines.engine.requests[0].prompt if i < 256).decode()
    assert prompt == f"user:hiassistant:{content or ''}"


def user(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


IMAGE = {"type": "image", "source": {"type": "url", "url": "x"}}
TOOL = {"name": "f", "input_schema": {"type": "object"}}
REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": "9"}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": None}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"role": "tool", "content": ""}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": "x" * 9000}]}, "maximum context length"),
    (user(), "messages.0.content"),
    (user({"type": "text"}), "messages.0.content.0.text"),
    (user(IMAGE), "messages.0.content.0.type"),
    (user({"type": "tool_result"}), "messages.0.content.0.tool_use_id"),
    (
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "c"}]}]},
        "messages.0.content.0.name",
    ),
    ({"system": [IMAGE]}, "system.0.type"),
    ({"temperature": 1.5}, "temperature"),
    ({"stop_sequences": [5]}, "stop_sequences.0"),
    ({"stop_sequences": ["a"] * 1025}, "stop_sequences"),
    ({"thinking": {"type": "maybe"}}, "thinking.type"),
    (
        {"tools": [TOOL, {"type": "web_search_20250305", "name": "w"}]}
        | {"tool_choice": {"type": "tool", "name": "w"}},
        "tool_choice.name",
    ),
    ({"tools": [{"name": "f"}]}, "tools.0.input_schema"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({"tools": [TOOL], "tool_choice": "auto"}, "tool_choice"),
]


async def test_the_error_names_a_mistake_in_anthropics_format(client: httpx.AsyncClient) -> None:
    for fields, words in REFUSALS:
        for stream in (False, True):
            kind, text = message_error_of(await message(client, **fields, stream=stream), 400)
            assert kind == "invalid_request_error"
            assert words in text, fields
    body = {"max_tokens": 9}
    for path in ("/messages", "/v1/messages", "/v1/messages/count_tokens"):
        _, text = message_error_of(await client.post(path, json=body), 400)
        assert "messages" in text
    message_error_of(await client.post("/v1/messages", content="{"), 400)


async def test_other_failures_have_anthropics_format(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    async with client_of(make_app(keys=("secret",), max_body_bytes=2048)) as client:
        assert message_error_of(await message(client), 401)[0] == "authentication_error"
        client.headers["authorization"] = "Bearer secret"
        long = await message(client, system="x" * 3000)
        assert message_error_of(long, 413)[0] == "request_too_large"
        unknown = await message(client, model="nothing")
        assert message_error_of(unknown, 404)[0] == "not_found_error"
        message_error_of(await client.get("/v1/messages"), 405)
        message_error_of(await client.get("/v1/messages/batches"), 404)
        assert (await client.get("/v1/nothing")).json()["error"]["code"] == "unknown_url"
        engines.script.refuse = QueueFull("too many")
        full = await message(client)
        assert message_error_of(full, 503)[0] == "overloaded_error"
        assert full.headers["retry-after"]


async def test_a_failure_in_a_stream_is_an_event(make_app: MakeApp, engines: FakeEngines) -> None:
    engines.script.error, engines.script.error_after = EngineDied("gone"), 2
    async with (
        serving(make_app()) as url,
        anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as client,
    ):
        arguments: Any = {"model": "main", "max_tokens": 9, "messages": [USER]}
        with pytest.raises(anthropic.APIStatusError, match="gone"):
            async with client.messages.stream(**arguments) as stream:
                await stream.get_final_message()
        with pytest.raises(anthropic.InternalServerError, match="gone"):
            await client.messages.create(**arguments)
