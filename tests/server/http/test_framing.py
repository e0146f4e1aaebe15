"""The bytes of HTTP that are not content have limits, and upgrades are declined."""

import asyncio
import json
import logging
from typing import Any

import httpx
import pytest

from server.http.framing import MAX_FIELDS, MAX_FRAMING
from server.http.protocol import MAX_PIPELINED
from server.models.loaded_model import NO_FORMAT
from tests.server.conftest import MakeApp, serving
from tests.server.fake_engine import FakeEngines
from tests.server.http.test_hostile import CHAT, HEAD, raw_connection

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
BODY = b'{"prompt": "hi", "max_tokens": 3}'
END = b"0\r\n\r\n"
TOO_MUCH = MAX_FRAMING + 2 * 16 * 1024  # the limit is checked after each piece of 16 KiB


def chunks(body: bytes, size: int, extension: bytes = b"") -> bytes:
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x%s\r\n%s\r\n" % (len(piece), extension, piece) for piece in pieces)


async def answers_of(url: str, sent: bytes) -> list[tuple[int, dict[str, str], Any]]:
    """Return status, headers and JSON body of all answers until the server ends the connection."""
    async with raw_connection(url) as (reader, writer), asyncio.timeout(20):
        writer.write(sent)
        rest = await reader.read()
    answers = []
    while rest:
        head, _, rest = rest.partition(b"\r\n\r\n")
        line, *fields = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (f.split(": ", 1) for f in fields)}
        length = int(headers["content-length"])
        answers.append((int(line.split()[1]), headers, json.loads(rest[:length])))
        rest = rest[length:]
    return answers


@pytest.mark.parametrize(
    ("first", "again", "status", "code"),
    [
        (GET, b"X: " + b"x" * 999 + b"\r\n", 431, "request_head_too_large"),
        (GET + b"X: ", b"x", 431, "request_head_too_large"),
        (GET + b"X: y\r\n ", b" ", 400, "invalid_http"),
        (GET + b"", b"x", 431, "request_head_too_large"),
        (GET, b"a:\r\n", 431, "request_head_too_large"),
        (b"GET /", b"x", 414, "url_too_long"),
        (b"GET /health?", b"%20", 414, "url_too_long"),
        (b"", b"\r\n", 400, "invalid_http"),
        (b"", b"X", 400, "invalid_http"),
        (b"GET / HTTP/1.1\r\n", b"\x00", 400, "invalid_http"),
        (b"GET http://[ HTTP/1.1\r\n\r\n", b"", 400, "invalid_http"),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", b"", 405, "method_not_allowed"),
        (CHUNKED + b"1;", b"x", 400, "chunk_overhead_too_large"),
        (CHUNKED, b"0", 400, "chunk_overhead_too_large"),
        (CHUNKED, b"1;" + b"x" * 999 + b"\r\n \r\n", 400, "chunk_overhead_too_large"),
        (CHUNKED + b"0\r\n", b"a: b\r\n", 400, "chunk_overhead_too_large"),
        (CHUNKED + b"0\r\na: ", b"b", 400, "chunk_overhead_too_large"),
        (CHUNKED + b"g\r\n", b"", 400, "invalid_http"),
    ],
)
async def test_too_many_bytes_without_content_get_an_error(
    make_app: MakeApp, first: bytes, again: bytes, status: int, code: str
) -> None:
    sent = first + again * (TOO_MUCH // max(1, len(again)))
    async with serving(make_app(keys=("alpha",) if status != 400 else ())) as url:
        [(got, headers, body)] = await answers_of(url, sent)
    assert (got, body["error"]["code"]) == (status, code)
    assert headers["x-request-id"].startswith("req_")
    assert headers["connection"] == "close"


async def test_a_head_in_small_pieces_has_the_same_limit(make_app: MakeApp) -> None:
    async with serving(make_app()) as url, raw_connection(url) as (reader, writer):
        answer = asyncio.create_task(reader.read())
        writer.write(GET + b"X: ")
        async with asyncio.timeout(60):
            while not answer.done():
                writer.write(b"x" * 99)
                await asyncio.sleep(0)
    assert b" 431 " in answer.result()


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"X: " + b"x" * 60_000 + b"\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY,
        HEAD + b"A: b\r\n" * (MAX_FIELDS - 2) + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY,
        CHUNKED + chunks(BODY + b" " * 30_000, 1) + END,
        CHUNKED + chunks(b" " * 300_000 + BODY, 8192, b";chunk-signature=" + b"f" * 64) + END,
        CHUNKED + chunks(BODY, 9) + b"0\r\nDigest: x\r\nX: y\r\n\r\n",
    ],
)
async def test_large_heads_and_small_chunks_within_limits_are_served(
    make_app: MakeApp, sent: bytes
) -> None:
    """The limits apply to each request of a connection anew."""
    last = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
    async with serving(make_app()) as url:
        answers = await answers_of(url, sent * 4 + last)
    assert [status for status, _, _ in answers] == [200] * 5


async def test_trailers_are_not_read_as_headers(make_app: MakeApp) -> None:
    sent = CHUNKED + chunks(BODY, 99) + b"0\r\nx-api-key: alpha\r\n\r\n"
    last = HEAD + b"Connection: close\r\n\r\n"
    async with serving(make_app(keys=("alpha",))) as url:
        answers = await answers_of(url, sent + last)
    assert [status for status, _, _ in answers] == [401, 401]


async def test_more_requests_than_may_wait_are_not_read(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    """Requests that were read are answered, and then the connection ends."""
    engines.script.beat = 0.01
    slow = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    async with serving(make_app()) as url:
        answers = await answers_of(url, slow + (GET + b"\r\n") * 3000)
    assert [status for status, _, _ in answers] == [200] * (1 + MAX_PIPELINED)
    assert answers[0][2]["object"] == "text_completion"


@pytest.mark.parametrize("garbage", [b"\x00", b"GET /" + b"x" * TOO_MUCH, b"\r\n" * TOO_MUCH])
async def test_an_answer_in_progress_is_completed_before_a_refusal(
    make_app: MakeApp, engines: FakeEngines, garbage: bytes
) -> None:
    engines.script.beat = 0.01
    slow = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    async with serving(make_app()) as url:
        [(status, _, body)] = await answers_of(url, slow + garbage)
    assert (status, body["object"]) == (200, "text_completion")


UPGRADE = b"Connection: Upgrade\r\nUpgrade: %s\r\nSec-WebSocket-Key: eA==\r\n"


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c"])
async def test_upgrades_are_declined(
    make_app: MakeApp, protocol: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests are checked and answered as if they did not ask for an upgrade."""
    upgrade = UPGRADE % protocol
    sent = [
        GET + upgrade + b"\r\n",
        b"GET /v1/realtime HTTP/1.1\r\nHost: localhost\r\n" + upgrade + b"\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n" + upgrade + b"\r\n",
        HEAD + upgrade + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY,
        HEAD + upgrade + b"Transfer-Encoding: chunked\r\n\r\n" + chunks(BODY, 9) + END,
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    ]
    with caplog.at_level(logging.WARNING):
        async with serving(make_app()) as url:
            answers = await answers_of(url, b"".join(sent))
    assert [status for status, _, _ in answers] == [200, 404, 403, 200, 200, 200]
    assert not [record for record in caplog.records if record.msg != NO_FORMAT]


async def test_no_websocket_reaches_a_check_or_a_route(make_app: MakeApp) -> None:
    """Another ASGI server than ours may pass one on."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": "/v1/chat/completions", "headers": []}
    await make_app()(scope, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"messages": ' + b"[" * 99, "body_too_deep"),
        (b'{"messages": [' + b"0," * 300_000, "too_many_values"),
    ],
)
async def test_a_body_above_a_limit_is_refused_before_it_ends(
    make_app: MakeApp, body: bytes, code: str
) -> None:
    async with serving(make_app()) as url, raw_connection(url) as (reader, writer):
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % (len(body) + 1) + body)
        async with asyncio.timeout(20):
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 400 " in head.splitlines()[0]
            assert code.encode() in await reader.readuntil(b"}}")


async def test_brackets_within_a_text_do_not_count_as_depth(client: httpx.AsyncClient) -> None:
    text = '[{"' * 200
    body = {**CHAT, "messages": [{"role": "user", "content": text}]}
    assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
