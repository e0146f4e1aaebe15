"""Hostile shapes of HTTP: heads, chunks, trailers, pipelines, and clients that stall."""

import json

from benchmarks.hostile_clients.shapes import Endless, Repeated, Shape, head

CHAT = "/v1/chat/completions"
GET = head("/health", method="GET")
OPENAPI = head("/openapi.json", method="GET")  # an answer of 84 KB
OPEN_HEAD = GET.removesuffix(b"\r\n")
CHUNKED = head(CHAT, "Transfer-Encoding: chunked")
BODY = b'{"messages":[{"role":"user","content":"hi"}],"max_tokens":1}'
LONG_STREAM = json.dumps(
    {
        "messages": [{"role": "user", "content": "Count to a thousand."}],
        "stream": True,
        "n": 8,
        "max_tokens": 2000,
        "ignore_eos": True,
        "logprobs": True,
        "top_logprobs": 20,
    }
).encode()


def post(path: str, body: bytes) -> bytes:
    """Return the bytes of a POST request with a JSON body."""
    return head(path, f"Content-Length: {len(body)}") + body


DECLARED = head(CHAT, "Content-Length: 33554432")

HTTP_SHAPES: tuple[Shape, ...] = (
    Endless("head, one endless field", OPEN_HEAD + b"X: ", b"a"),
    Endless("head, one endless field name", OPEN_HEAD, b"a"),
    Endless("head, endless fields", OPEN_HEAD, b"X: y\r\n"),
    Endless("head, endless empty fields", OPEN_HEAD, b"X:\r\n"),
    Endless("head, endless folded field", OPEN_HEAD + b"X: y\r\n", b" y\r\n"),
    Endless("head, byte by byte, fast", OPEN_HEAD + b"X: ", b"a", is_split=True),
    Endless("head, byte by byte, slow", OPEN_HEAD + b"X: ", b"a", pause=0.2),
    Endless("request line, endless path", b"GET /", b"a"),
    Endless("request line, endless query", b"GET /health?", b"a=b&"),
    Endless("request line, endless escapes", b"GET /", b"%00"),
    Endless("request line, endless method", b"", b"A"),
    Endless("request line, endless version", b"GET / HTTP/1.", b"1"),
    Endless("empty lines", b"", b"\r\n"),
    Endless("content length, endless digits", b"POST / HTTP/1.1\r\nContent-Length: ", b"0"),
    Endless("trailers, one endless field", CHUNKED + b"0\r\nX: ", b"a"),
    Endless("trailers, endless fields", CHUNKED + b"0\r\n", b"X: y\r\n"),
    Endless("chunk extension, one endless", CHUNKED + b"1;", b"a"),
    Endless("chunk extensions, 16 KB for each byte", CHUNKED, b"1;" + b"a" * 16384 + b"\r\n \r\n"),
    Endless("chunk size, endless digits", CHUNKED, b"0"),
    Endless("chunks of one byte", CHUNKED, b"1\r\n \r\n"),
    Endless("chunked body without end", CHUNKED, b"10000\r\n" + b" " * 65536 + b"\r\n"),
    Endless(
        "upgrade, then endless bytes",
        head("/health", "Connection: Upgrade", "Upgrade: websocket", method="GET"),
        b"\x00",
    ),
    Endless("body, byte by byte, slow", DECLARED, b" ", pause=0.2),
    Endless("body, just fast enough", DECLARED, b" " * 1024, pause=0.2),
    Endless("body, byte by byte, fast", DECLARED, b" ", is_split=True),
    Repeated("pipelined GETs, read", GET),
    Repeated("pipelined GETs, never read", GET, is_read=False),
    Repeated("pipelined large answers, never read", OPENAPI, is_read=False),
    Repeated("pipelined POSTs, read", post(CHAT, b"{}")),
    Repeated("pipelined chats, read", post(CHAT, BODY)),
    Repeated("pipelined chats, never read", post(CHAT, BODY), is_read=False),
    Endless(
        "stream of 8 choices, never read", post(CHAT, LONG_STREAM), b" ", pause=60.0, is_read=False
    ),
)
