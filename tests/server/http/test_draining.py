"""The answers that clients get while the server stops, each in the format of its API."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from server.cli.serve import Server, bind, http_config
from server.http.state import App
from tests.server.conftest import MakeApp, chat, complete, error_of
from tests.server.fake_engine import FakeEngines

TOLD = "The server is shutting down."
MESSAGES = [{"role": "user", "content": "hi"}]

OPENAI = {"message": TOLD, "type": "server_error", "param": None, "code": "engine_closed"}
ANTHROPIC = {"type": "overloaded_error", "message": TOLD}


class Stoppable:
    """A running server, a client of it, and the lines that it printed."""

    def __init__(self, server: Server, client: httpx.AsyncClient, port: int) -> None:
        self.server = server
        self.client = client
        self.port = port
        self.printed: asyncio.Queue[str] = asyncio.Queue()


@asynccontextmanager
async def stoppable(app: App) -> AsyncIterator[Stoppable]:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, timeout=30) as client, asyncio.timeout(30):
            server = Server(http_config(app), app.shared, lambda text: it.printed.put_nowait(text))
            it = Stoppable(server, client, port)
            serving = asyncio.create_task(server.serve([listener]))
            while not server.started:
                await asyncio.sleep(0.001)
            yield it
            server.end()
            await serving


async def wait_for_requests(engines: FakeEngines, count: int = 1) -> None:
    """Wait until `count` requests have reached the engine."""
    while not engines.made or len(engines.engine.requests) < count:
        await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("path", "body", "whole", "streamed"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES}, OPENAI, OPENAI),
        ("/v1/completions", {"prompt": "hi"}, OPENAI, OPENAI),
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": 20}, ANTHROPIC, ANTHROPIC),
        ("/v1/responses", {"input": "hi"}, OPENAI, {"code": "server_error", "message": TOLD}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_requests_that_cannot_finish_get_an_error_in_their_apis_format(
    make_app: MakeApp,
    engines: FakeEngines,
    path: str,
    body: dict[str, Any],
    whole: dict[str, Any],
    streamed: dict[str, Any],
    stream: bool,
) -> None:
    engines.script.pause = asyncio.Event()
    async with stoppable(make_app(shutdown_timeout=0)) as it:
        body = {"model": "main", "stream": stream, **body}
        asking = asyncio.create_task(it.client.post(path, json=body))
        await wait_for_requests(engines)
        it.server.end()
        answer = await asking
        assert await it.printed.get() == "Stopping; 1 request is running and cannot finish."
    if not stream:
        assert answer.status_code == 503
        assert answer.json()["error"] == whole
        return
    data = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    last = json.loads(data[-1])
    assert last.get("response", last)["error"] == streamed  # a failed response contains its error


async def test_a_running_request_finishes_and_a_queued_one_fails_at_once(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    engines.script.pause, engines.script.queue = asyncio.Event(), asyncio.Event()
    engines.script.queue.set()
    async with stoppable(make_app()) as it:
        first = asyncio.create_task(complete(it.client))
        await wait_for_requests(engines)
        while engines.engine.waiting:
            await asyncio.sleep(0.001)
        engines.script.queue.clear()
        queued = asyncio.create_task(complete(it.client))
        await wait_for_requests(engines, 2)
        it.server.end()
        assert error_of(await queued, 503)["message"] == TOLD
        assert "1 request is running; stopping in at most 8 s." in await it.printed.get()
        assert not first.done()
        engines.script.pause.set()
        answer = await first
    assert answer.status_code == 200
    assert answer.headers["connection"] == "close"


async def test_requests_that_wait_for_a_load_fail_at_once(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    engines.script.load_gate = asyncio.Event()
    async with stoppable(make_app()) as it:
        waiting = asyncio.create_task(chat(it.client))
        while not engines.made:
            await asyncio.sleep(0.001)
        it.server.end()
        assert error_of(await waiting, 503)["message"] == TOLD
        assert await it.printed.get() == "Stopping; a model was still being loaded."


async def test_a_request_whose_body_has_not_arrived_fails_at_once(make_app: MakeApp) -> None:
    async with stoppable(make_app()) as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{"
        writer.write(head.encode())
        while not it.server.server_state.tasks:
            await asyncio.sleep(0.001)
        it.server.end()
        answer = await reader.read()  # the connection ends too
        writer.close()
    assert answer.startswith(b"HTTP/1.1 503")
    assert TOLD.encode() in answer


async def test_a_client_that_reads_nothing_does_not_delay_the_end(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    engines.script.pause = asyncio.Event()
    async with stoppable(make_app(shutdown_timeout=0)) as it:
        _, writer = await asyncio.open_connection("127.0.0.1", it.port)
        body = '{"prompt": "hi", "stream": true}'
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
        writer.write(f"{head}\r\n\r\n{body}".encode())
        await wait_for_requests(engines)
        (connection,) = it.server.server_state.connections
        connection.pause_writing()  # as its transport does when its buffers are full
        it.server.end()
        await it.printed.get()
    writer.close()
    assert not it.server.server_state.tasks
