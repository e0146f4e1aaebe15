"""Keep-alive comments, clients that disconnect, and errors inside streams."""

import asyncio
import contextlib
import json
import socket
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from engine.errors import EngineDied
from server.cli.serve import Server
from tests.server.conftest import MakeApp, chat, client_of, complete, error_of, events, serving
from tests.server.fake_engine import FakeEngines

BODY = {"messages": [{"role": "user", "content": "hi"}]}


async def test_a_stream_that_waits_gets_comments(make_app: MakeApp, engines: FakeEngines) -> None:
    engines.script.gate = asyncio.Event()
    async with (
        serving(make_app(keepalive=0.02)) as url,
        httpx.AsyncClient(base_url=url) as client,
        client.stream("POST", "/v1/chat/completions", json={**BODY, "stream": True}) as response,
    ):
        assert response.status_code == 200
        lines = response.aiter_lines()
        assert (await anext(lines)).startswith(":")
        engines.script.gate.set()
        rest = [line async for line in lines]
    assert events("\n".join(rest))[-1] == "[DONE]"


async def test_the_official_client_ignores_comments(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    engines.script.load_gate = asyncio.Event()
    async with (
        serving(make_app(keepalive=0.02)) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        messages: Any = [{"role": "user", "content": "hi"}]
        stream = await client.chat.completions.create(model="main", messages=messages, stream=True)
        engines.script.load_gate.set()
        text = "".join([c.choices[0].delta.content or "" async for c in stream])
    assert text == "Hello there."


@pytest.mark.parametrize("error_after", [0, 2])
async def test_an_error_in_a_stream_ends_it_without_done(
    make_app: MakeApp, engines: FakeEngines, error_after: int
) -> None:
    engines.script.error = EngineDied("the engine is gone", "engine_stalled")
    engines.script.error_after = error_after
    engines.script.gate = asyncio.Event()
    async with (
        serving(make_app(keepalive=0.01)) as url,
        httpx.AsyncClient(base_url=url) as client,
        client.stream("POST", "/v1/chat/completions", json={**BODY, "stream": True}) as response,
    ):
        lines = response.aiter_lines()
        assert (await anext(lines)).startswith(":")
        engines.script.gate.set()
        got = events("\n".join([line async for line in lines]))
    assert got[-1] == {
        "error": {
            "message": "the engine is gone",
            "type": "server_error",
            "param": None,
            "code": "engine_stalled",
        }
    }
    assert "[DONE]" not in got


async def test_the_official_client_raises_for_an_error_event(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    engines.script.error, engines.script.error_after = EngineDied("gone"), 1
    async with (
        serving(make_app()) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        messages: Any = [{"role": "user", "content": "hi"}]
        stream = await client.chat.completions.create(model="main", messages=messages, stream=True)
        with pytest.raises(openai.APIError, match="gone"):
            async for _ in stream:
                pass


async def test_a_whole_answer_that_fails_is_an_error(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.error, engines.script.error_after = EngineDied("gone"), 2
    assert error_of(await chat(client), 503)["code"] == "engine_died"
    assert engines.engine.num_outstanding == 0


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("moment", ["before the first token", "after the first token"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_closes_its_request(
    make_app: MakeApp, engines: FakeEngines, path: str, moment: str, stream: bool
) -> None:
    body = {**BODY, "prompt": ["a", "b"], "stream": stream}
    if moment == "before the first token":
        engines.script.gate = asyncio.Event()
    else:
        engines.script.pause = asyncio.Event()
    async with serving(make_app(keepalive=0.05)) as url, httpx.AsyncClient(base_url=url) as client:
        await complete(client, max_tokens=0)  # loads the model
        asking = asyncio.create_task(_read_one(client, path, body))
        await engines.engine.request_started.wait()
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
        async with asyncio.timeout(10):
            await engines.engine.request_closed.wait()
            while engines.engine.running:
                await asyncio.sleep(0)
    assert len(engines.engine.closed_requests) == len(engines.engine.requests)


async def test_a_client_that_leaves_ends_every_request_it_sent_ahead(
    make_app: MakeApp, engines: FakeEngines, caplog: pytest.LogCaptureFixture
) -> None:
    engines.script.pause = asyncio.Event()
    body = json.dumps({"prompt": "a", "stream": True}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    async with serving(make_app(keepalive=0.05)) as url, httpx.AsyncClient(base_url=url) as client:
        await complete(client, max_tokens=0)  # loads the model
        before = len(engines.engine.requests)
        _, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        writer.write(2 * (head.encode() + body))
        await engines.engine.request_started.wait()
        writer.close()
        async with asyncio.timeout(10):
            await engines.engine.request_closed.wait()
            while engines.engine.running:
                await asyncio.sleep(0)
    assert len(engines.engine.requests) == before + 1, "the second one never begins"
    assert not caplog.records or "Traceback" not in caplog.text


async def _read_one(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    async with client.stream("POST", path, json=body) as response:
        async for _ in response.aiter_lines():
            pass


async def test_a_client_that_leaves_while_its_model_loads_is_forgotten(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    engines.script.load_gate = asyncio.Event()
    app = make_app()
    async with serving(app) as url, httpx.AsyncClient(base_url=url) as client:
        asking = asyncio.create_task(chat(client))
        while not engines.made:
            await asyncio.sleep(0)
        await engines.engine.load_started.wait()
        asking.cancel()
        models = app.shared.models
        while models.num_waiting:
            await asyncio.sleep(0)
        engines.script.load_gate.set()
        assert (await chat(client)).status_code == 200
    assert len(engines.engine.requests) == 1
    assert engines.loads == ["main"]


async def test_a_finished_stream_is_not_counted_as_left(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    await chat(client, stream=True)
    await chat(client)
    assert engines.engine.closed_requests == []


async def test_a_full_queue_is_reported_before_the_stream_opens(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    engines.script.gate = asyncio.Event()
    async with client_of(make_app(max_queue=1)) as client:
        first = asyncio.create_task(chat(client, stream=True))
        while not engines.made:
            await asyncio.sleep(0)
        await engines.engine.request_started.wait()
        response = await chat(client, stream=True)
        error = error_of(response, 503)
        assert error["code"] == "queue_full"
        assert int(response.headers["retry-after"]) > 0
        engines.script.gate.set()
        assert events((await first).text)[-1] == "[DONE]"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_server_that_stops_ends_its_requests_with_an_error(
    make_app: MakeApp, engines: FakeEngines, stream: bool
) -> None:
    engines.script.pause = asyncio.Event()
    app = make_app(shutdown_timeout=0)
    config = uvicorn.Config(app, log_config=None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(config, app.shared, announce=lambda _: None)
        running = asyncio.create_task(server._serve([listener]))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with httpx.AsyncClient(base_url=url) as client, asyncio.timeout(20):
            asking = asyncio.create_task(complete(client, stream=stream))
            while not engines.made:
                await asyncio.sleep(0)
            await engines.engine.request_started.wait()
            server.should_exit = True
            response = await asking
            await running
    if stream:
        assert events(response.text)[-1]["error"]["code"] == "engine_closed"
    else:
        assert error_of(response, 503)["code"] == "engine_closed"
