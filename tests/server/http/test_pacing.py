"""Keep-alive signals of an answer that takes long: comments, white space, headers."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import httpx
import openai
import pytest

from engine.errors import EngineDied, ModelError
from engine.messages import LoadProgress
from tests.server.conftest import MakeApp, chat, client_of, error_of, events, serving
from tests.server.fake_engine import FakeEngines

BODY = {"messages": [{"role": "user", "content": "hi"}]}
QUICK = {"keepalive": 0.01, "blank_after": 0.02}


@asynccontextmanager
async def streaming(url: str, **fields: Any) -> AsyncIterator[AsyncIterator[str]]:
    """Send a chat request and yield the lines of its stream."""
    async with (
        httpx.AsyncClient(base_url=url) as client,
        client.stream(
            "POST", "/v1/chat/completions", json={**BODY, "stream": True, **fields}
        ) as response,
    ):
        yield response.aiter_lines()


async def wait_for_comment(lines: AsyncIterator[str], wanted: str) -> None:
    """Read lines until the wanted comment arrives; without one the test times out."""
    while await anext(lines) != f": {wanted}":
        pass


@pytest.mark.parametrize(
    ("holds", "first", "second"),
    [
        ("load_gate", "loading main, position 1", "loading main, position 2"),
        ("queue", "waiting, position 1", "waiting, position 2"),
        ("gate", "prompt 2 of 20", "prompt 2 of 20"),
    ],
)
async def test_comments_say_what_a_stream_waits_for(
    make_app: MakeApp, engines: FakeEngines, holds: str, first: str, second: str
) -> None:
    gate = asyncio.Event()
    setattr(engines.script, holds, gate)
    async with (
        serving(make_app(**QUICK)) as url,
        streaming(url) as lines,
        streaming(url) as others,
    ):
        await wait_for_comment(lines, first)
        await wait_for_comment(others, second)
        await wait_for_comment(others, second)  # it is sent again
        gate.set()
        rest = [line async for line in others]
    assert "data: [DONE]" in rest


async def test_comments_say_how_far_a_load_is(make_app: MakeApp, engines: FakeEngines) -> None:
    engines.script.load_gate = asyncio.Event()
    async with serving(make_app(**QUICK)) as url, streaming(url) as lines:
        await wait_for_comment(lines, "loading main, position 1")
        engines.engine.on_progress(LoadProgress("packing", 2 * 10**6, 8 * 10**6))
        wanted = "loading main: packing 25 %, 2.0 MB of 8.0 MB, position 1"
        await wait_for_comment(lines, wanted)
        engines.script.load_gate.set()
        rest = [line async for line in lines]
    assert "data: [DONE]" in rest


async def test_comments_say_how_far_a_prompt_is(make_app: MakeApp, engines: FakeEngines) -> None:
    engines.script.gate = asyncio.Event()
    engines.script.num_prefilled = 8
    async with serving(make_app(**QUICK)) as url, streaming(url) as lines:
        await wait_for_comment(lines, "prompt 8 of 20")
        engines.script.gate.set()
        rest = [line async for line in lines]
    assert "data: [DONE]" in rest


async def test_a_comment_says_at_once_that_the_engine_restarts(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    engines.script.restart = asyncio.Event()
    async with serving(make_app(keepalive=600)) as url, streaming(url) as lines:
        await wait_for_comment(lines, "engine restarting")
        engines.script.restart.set()
        rest = [line async for line in lines]
    assert "data: [DONE]" in rest
    chunks = [json.loads(line[6:]) for line in rest if line.startswith("data: {")]
    assert chunks[-1]["timings"]["resumed"] == 1


async def test_pings_of_the_messages_api_say_how_far_a_prompt_is(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    engines.script.gate = asyncio.Event()
    engines.script.num_prefilled = 8
    body: dict[str, Any] = {**BODY, "max_tokens": 9}
    async with (
        serving(make_app(**QUICK)) as url,
        httpx.AsyncClient(base_url=url) as client,
        client.stream("POST", "/v1/messages", json={**body, "stream": True}) as response,
    ):
        lines = response.aiter_lines()
        wanted = 'data: {"type":"ping","status":"prompt 8 of 20"}'
        event = ""
        while (line := await anext(lines)) != wanted:
            event = line or event
        assert event == "event: ping"
        engines.script.gate.set()
        rest = [line async for line in lines]
    assert "event: message_stop" in rest
    assert not any(line.startswith(":") for line in rest)


async def test_anthropics_client_skips_pings(make_app: MakeApp, engines: FakeEngines) -> None:
    engines.script.queue = asyncio.Event()
    async with (
        serving(make_app(**QUICK)) as url,
        anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as client,
        client.messages.stream(
            model="main", max_tokens=99, messages=[{"role": "user", "content": "hi"}]
        ) as stream,  # opened by a ping
    ):
        engines.script.queue.set()
        message = await stream.get_final_message()
    assert [block.type for block in message.content] == ["text"]


async def test_openais_client_skips_events_of_a_response_that_waits(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    engines.script.queue = asyncio.Event()
    async with (
        serving(make_app(**QUICK)) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        client.responses.stream(model="main", input="hi") as stream,
    ):
        seen = [(await anext(stream)).type for _ in range(3)]
        engines.script.queue.set()
        response = await stream.get_final_response()
    assert seen == ["response.created", "response.in_progress", "response.in_progress"]
    assert response.output_text == "Hello there."


async def test_a_stream_waits_for_another_models_requests(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    engines.script.gate = asyncio.Event()
    async with serving(make_app(**QUICK)) as url, streaming(url) as running:
        await wait_for_comment(running, "prompt 2 of 20")
        async with streaming(url, model="org/other") as lines:
            await wait_for_comment(lines, "waiting for org/other, position 1")


async def test_a_late_json_answer_begins_with_white_space(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    engines.script.gate = asyncio.Event()
    async with (
        serving(make_app(**QUICK)) as url,
        httpx.AsyncClient(base_url=url) as client,
        client.stream("POST", "/v1/chat/completions", json=BODY) as response,
    ):
        assert response.headers["content-type"] == "application/json"
        assert response.headers["x-request-id"]
        pieces = response.aiter_text()
        assert [await anext(pieces), await anext(pieces)] == [" ", " "]
        engines.script.gate.set()
        rest = "".join([piece async for piece in pieces])
    assert rest.lstrip().startswith('{"id":"chatcmpl-')
    async with client_of(make_app()) as client:
        assert (await chat(client)).text.startswith("{")


async def test_a_waiting_json_answer_sends_nothing_before_an_ordinary_error(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    engines.script.load_gate = asyncio.Event()
    engines.script.load_error = ModelError("broken")
    async with serving(make_app(**QUICK)) as url, httpx.AsyncClient(base_url=url) as client:
        asking = asyncio.create_task(chat(client))
        await asyncio.sleep(0.2)  # far longer than `blank_after`
        assert not asking.done()
        engines.script.load_gate.set()
        assert error_of(await asking, 500)["code"] == "model_load_failed"


async def test_a_late_answer_that_fails_is_cut_off_and_the_sdk_retries(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    engines.script.gate = asyncio.Event()
    engines.script.error = EngineDied("gone")
    async with serving(make_app(**QUICK)) as url, httpx.AsyncClient(base_url=url) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await _read_blanks(client, engines.script.gate)
        engines.script.gate.clear()
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as sdk:
            messages: Any = BODY["messages"]
            asking = asyncio.create_task(
                sdk.chat.completions.create(model="main", messages=messages)
            )
            while len(engines.engine.requests) < 2:
                await asyncio.sleep(0)
            await asyncio.sleep(0.1)  # the white space has begun
            engines.script.gate.set()
            while len(engines.engine.requests) < 3:
                await asyncio.sleep(0)
            engines.script.error = None
            assert (await asking).choices[0].message.content == "Hello there."
    assert not engines.engine.running


async def _read_blanks(client: httpx.AsyncClient, then: asyncio.Event) -> None:
    async with client.stream("POST", "/v1/chat/completions", json=BODY) as response:
        async for piece in response.aiter_text():
            assert piece == " "
            then.set()


@pytest.mark.parametrize("holds", ["queue", "gate"])
@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_while_queued_or_late_frees_the_request(
    make_app: MakeApp, engines: FakeEngines, holds: str, stream: bool
) -> None:
    setattr(engines.script, holds, asyncio.Event())
    async with serving(make_app(**QUICK)) as url, httpx.AsyncClient(base_url=url) as client:
        asking = asyncio.create_task(chat(client, stream=stream))
        while not engines.made:
            await asyncio.sleep(0)
        await engines.engine.request_started.wait()
        await asyncio.sleep(0.1)  # for keep-alive signals, where the answer has any
        asking.cancel()
        async with asyncio.timeout(10):
            await engines.engine.request_closed.wait()
    assert not engines.engine.running


@pytest.mark.parametrize("stream", [False, True])
async def test_the_time_in_the_queue_is_a_header(
    client: httpx.AsyncClient, engines: FakeEngines, stream: bool
) -> None:
    engines.script.queue = asyncio.Event()
    asking = asyncio.create_task(chat(client, stream=stream))
    await asyncio.sleep(0.05)
    engines.script.queue.set()
    response = await asking
    assert int(response.headers["x-understudy-queue-ms"]) > 0
    if stream:
        assert events(response.text)[-1] == "[DONE]"
    assert "x-understudy-queue-ms" not in (await client.get("/v1/models")).headers
