"""Hostile requests get short errors at little cost, and do not affect other requests."""

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import product

import httpx
import pytest

from tests.server.conftest import MakeApp, chat, client_of, complete, error_of, serving
from tests.server.fake_engine import FakeEngines
from tests.variations import variations


@pytest.mark.parametrize(
    "field", ["seed", "n", "max_tokens", "top_k", "min_tokens", "top_logprobs", "stop_token_ids"]
)
@pytest.mark.parametrize("number", ["1e300", "9" * 4200, "-" + "9" * 4200])
async def test_huge_numbers_get_a_short_error(
    client: httpx.AsyncClient, field: str, number: str
) -> None:
    value = f"[{number}]" if field == "stop_token_ids" else number
    body = f'{{"messages": [{{"role": "user", "content": "x"}}], "{field}": {value}}}'
    error = error_of(await client.post("/v1/chat/completions", content=body), 400)
    assert error["param"].startswith(field)
    assert len(error["message"]) < 200


async def test_a_stop_string_above_its_limit_is_refused(
    client: httpx.AsyncClient,
) -> None:
    assert (await chat(client, stop="x" * 65_536)).status_code == 200
    assert error_of(await chat(client, stop=["a", "x" * 65_537]), 400)["param"] == "stop.1"


async def test_a_token_named_twice_counts_once(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    fields = {"logit_bias": {"5": 1, "05": 2}, "stop_token_ids": [7, 7, 8, 7]}
    assert (await chat(client, **fields)).status_code == 200
    params = engines.engine.requests[-1].params
    assert params.logit_bias == ((5, 2.0),)
    assert params.stop_token_ids == (7, 8)


async def test_more_prompts_than_the_queue_holds_are_a_400(make_app: MakeApp) -> None:
    async with client_of(make_app(max_queue=2)) as client:
        assert (await complete(client, prompt=["a", "b"])).status_code == 200
        error = error_of(await complete(client, prompt=["a", "b", "c"]), 400)
        assert error["param"] == "prompt"


async def test_quoted_values_are_cut_and_not_logged(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "understudy"):
        error = error_of(await chat(client, model="m" * 100_000), 404)
        assert len(error["message"]) < 300
        part = {"type": "a\n12:00:00 INFO forged \x1b[31m"}
        error_of(await chat(client, messages=[{"role": "user", "content": [part]}]), 400)
    assert "forged" not in caplog.text, "the log has nothing of the body"
    assert caplog.messages[-1] == "400 unsupported_content (messages.0.content.0)"
    assert all(record.getMessage().isprintable() for record in caplog.records)


async def test_a_client_that_leaves_within_its_body_logs_no_traceback(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "understudy"):
        async with serving(make_app()) as url:
            port = httpx.URL(url).port
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
            )
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            async with asyncio.timeout(10):
                while "400 incomplete_body" not in caplog.text:
                    await asyncio.sleep(0)
    assert "Traceback" not in caplog.text


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
CHAT = {"messages": [{"role": "user", "content": "hi"}]}
SHORT = 0.3  # seconds: the `client_timeout` of these tests


@asynccontextmanager
async def raw_connection(
    url: str,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
    try:
        yield reader, writer
    finally:
        writer.close()


@pytest.mark.parametrize("sent", [b"", b"POST", HEAD, HEAD + b"X: y\r\n"])
async def test_a_head_that_does_not_end_closes_the_connection(
    make_app: MakeApp, sent: bytes
) -> None:
    async with serving(make_app(), SHORT) as url, raw_connection(url) as (reader, writer):
        writer.write(sent)
        async with asyncio.timeout(20):
            assert await reader.read() == b""


async def test_a_body_that_does_not_end_is_a_408(make_app: MakeApp) -> None:
    async with (
        serving(make_app(client_timeout=SHORT)) as url,
        raw_connection(url) as (reader, writer),
    ):
        writer.write(HEAD + b"Content-Length: 99\r\n\r\n{")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert b" 408 " in head.splitlines()[0]
    assert json.loads(body)["error"]["code"] == "request_timeout"


async def test_a_body_that_arrives_byte_by_byte_is_a_408(make_app: MakeApp) -> None:
    async with (
        serving(make_app(client_timeout=SHORT)) as url,
        raw_connection(url) as (reader, writer),
    ):
        writer.write(HEAD + b"Content-Length: 999\r\n\r\n")
        answer = asyncio.create_task(reader.read())
        while not answer.done():
            writer.write(b" ")
            await asyncio.sleep(SHORT / 10)
    assert b"request_timeout" in answer.result()


async def test_empty_lines_do_not_keep_a_connection_open(make_app: MakeApp) -> None:
    async with serving(make_app(), SHORT) as url, raw_connection(url) as (reader, writer):
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        body = b'{"status":"ok"}'
        assert await reader.readexactly(len(body)) == body
        rest = asyncio.create_task(reader.read())
        while not rest.done():
            writer.write(b"\r\n")
            await asyncio.sleep(SHORT / 10)
        # A line that arrives after the server has closed the connection resets it.
        assert isinstance(rest.exception(), ConnectionResetError) or rest.result() == b""


def slow_client(url: str, body: object) -> socket.socket:
    """Return a connection with small buffers that has sent a request."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", httpx.URL(url).port or 0))
    data = json.dumps(body).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    sock.sendall(head % len(data) + data)
    sock.setblocking(False)
    return sock


@pytest.mark.parametrize(
    ("stream", "takes"),
    variations(product([False, True], [0, 1]), quick=[(True, 0), (False, 1)]),
)
async def test_an_answer_that_the_client_does_not_read_is_dropped(
    make_app: MakeApp,
    engines: FakeEngines,
    monkeypatch: pytest.MonkeyPatch,
    stream: bool,
    takes: int,
) -> None:
    """The answer has 100 chunks of 80 KB: the engine of a stream stops long before the last."""
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT", raising=False)  # the kernel's own limit
    engines.script.answers = lambda _: [120] * 900
    engines.script.burst, engines.script.beat = 9, 0.01 if stream else 0.0
    body = {**CHAT, "n": 6, "stream": stream, "logprobs": True, "top_logprobs": 20}
    async with serving(make_app(), SHORT) as url:
        with slow_client(url, body) as sock:
            async with asyncio.timeout(20):
                while not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    with contextlib.suppress(BlockingIOError):
                        sock.recv(takes)
                    await asyncio.sleep(SHORT / 10)
        async with asyncio.timeout(20):
            while engines.engine.running:
                await asyncio.sleep(0)
        assert bool(engines.engine.closed_requests) == stream


async def test_bytes_that_are_not_http_get_an_error_in_openais_format(make_app: MakeApp) -> None:
    async with serving(make_app()) as url, raw_connection(url) as (reader, writer):
        writer.write(b"\x16\x03\x01 hello\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert b"x-request-id: req_" in head
    assert json.loads(body)["error"]["code"] == "invalid_http"


async def test_idle_and_pipelined_connections_do_not_affect_others(
    make_app: MakeApp,
) -> None:
    async with serving(make_app()) as url:
        idle = [await asyncio.open_connection("127.0.0.1", httpx.URL(url).port) for _ in range(200)]
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await complete(client)).status_code == 200
        reader, writer = idle[0]
        writer.write(
            HEAD
            + b"Content-Length: 2\r\n\r\n{}"
            + b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        )
        answers = b""
        while b'"status":"ok"' not in answers:
            answers += await reader.read(1 << 16)
        assert answers.count(b"HTTP/1.1 200 OK") == 2
        for _, writer in idle:
            writer.close()
