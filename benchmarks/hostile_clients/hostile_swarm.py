"""Many hostile clients at once, in their own process, each with its own seeded choices."""

import asyncio
import contextlib
import socket
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from random import Random

from benchmarks.hostile_clients.body_shapes import BODY_SHAPES
from benchmarks.hostile_clients.conversation_shapes import CONVERSATION_SHAPES
from benchmarks.hostile_clients.hostile_requests import RawRequest, make_hostile_request
from benchmarks.hostile_clients.http_shapes import HTTP_SHAPES, post
from benchmarks.hostile_clients.list_shapes import LIST_SHAPES
from benchmarks.hostile_clients.served_demo import HOST
from benchmarks.hostile_clients.shapes import Posted

SHAPES = (*HTTP_SHAPES, *BODY_SHAPES, *LIST_SHAPES, *CONVERSATION_SHAPES)
TIMEOUT_SECONDS = 10.0  # for one request
LARGEST_SCALE = 0.02  # of a body: 640 KiB
ENDLESS_BLOCKS = 30  # most blocks that are sent of a shape without an end
FLOOD = 30  # small requests over one connection
MOST_ANSWER = 1 << 20  # most bytes that are read of one answer
GRACE_SECONDS = 30.0

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Sent:
    """Counts of what the hostile clients sent and received."""

    requests: int = 0
    by_manner: Counter[str] = field(default_factory=Counter)
    by_status: Counter[str] = field(default_factory=Counter)  # of the answers that were read


@contextmanager
def hostile_swarm(port: int, seed: int, clients: int, seconds: float) -> Iterator[Sent]:
    """Attack during a `with` block; the yielded counts are filled in at its end."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_attack, args=(theirs, port, seed, clients, seconds), daemon=True
    )
    process.start()
    theirs.close()
    sent = Sent()
    try:
        ours.recv()  # the attack has begun
        yield sent
    finally:
        if ours.poll(seconds + TIMEOUT_SECONDS + GRACE_SECONDS):
            found: Sent = ours.recv()
            sent.requests += found.requests
            sent.by_manner += found.by_manner
            sent.by_status += found.by_status
        process.kill()
        process.join()


def _attack(pipe: Connection, port: int, seed: int, clients: int, seconds: float) -> None:
    pipe.send("ready")
    pipe.send(asyncio.run(_swarm(port, seed, clients, seconds)))


async def _swarm(port: int, seed: int, clients: int, seconds: float) -> Sent:
    sent = Sent()
    until = time.monotonic() + seconds
    await asyncio.gather(
        *(_client(port, Random(f"{seed}-{number}"), until, sent) for number in range(clients))
    )
    return sent


async def _client(port: int, rng: Random, until: float, sent: Sent) -> None:
    """Act in one random manner after the other until the time is over."""
    while time.monotonic() < until:
        manner = rng.choice(MANNERS)
        sent.by_manner[manner.__name__.strip("_")] += 1
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(TIMEOUT_SECONDS):
                reader, writer = await asyncio.open_connection(HOST, port)
                try:
                    await manner((reader, writer), rng, sent)
                finally:
                    writer.transport.abort()
        await asyncio.sleep(rng.random() * 0.2)


async def _ask(streams: Streams, rng: Random, sent: Sent) -> None:
    """Send a request and read the answer."""
    await _send(streams, post(*make_hostile_request(rng)), sent)
    await _take(streams, sent)


async def _leave(streams: Streams, rng: Random, sent: Sent) -> None:
    """Send a request and close the connection before or during the answer."""
    await _send(streams, post(*make_hostile_request(rng)), sent)
    await asyncio.sleep(rng.random() ** 3 * 2)
    streams[1].close()


async def _reset(streams: Streams, rng: Random, sent: Sent) -> None:
    """Send a request, read a part of the answer and reset the connection."""
    await _send(streams, post(*make_hostile_request(rng)), sent)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(rng.random()):
            await streams[0].read(rng.randrange(1, 4000))
    linger = struct.pack("ii", 1, 0)
    streams[1].get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


async def _half_close(streams: Streams, rng: Random, sent: Sent) -> None:
    """Send a request, close the sending side and read the answer."""
    await _send(streams, post(*make_hostile_request(rng)), sent)
    streams[1].write_eof()
    await _take(streams, sent)


async def _half_a_body(streams: Streams, rng: Random, sent: Sent) -> None:
    """Send a part of a request and stop."""
    data = post(*make_hostile_request(rng))
    await _send(streams, data[: rng.randrange(1, len(data))], sent)
    await asyncio.sleep(rng.random() * 2)


async def _never_read(streams: Streams, rng: Random, sent: Sent) -> None:
    """Send several requests and read no answer."""
    streams[1].transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport
    for _ in range(rng.randrange(1, 5)):
        await _send(streams, post(*make_hostile_request(rng)), sent)
    await asyncio.sleep(rng.random() * 5)


async def _flood(streams: Streams, rng: Random, sent: Sent) -> None:
    """Send many small requests at once and read the answers."""
    path, body = _make_small_request(rng)
    await _send(streams, post(path, body) * FLOOD, sent)
    sent.requests += FLOOD - 1
    await _take(streams, sent)


async def _random_bytes(streams: Streams, rng: Random, sent: Sent) -> None:
    """Send bytes that are not HTTP, or only begin like it."""
    start = rng.choice(
        [b"", b"GET ", b"POST / HTTP/1.1\r\n", b"\x16\x03\x01", b"PRI * HTTP/2.0\r\n"]
    )
    await _send(streams, start + rng.randbytes(rng.randrange(5000)) + b"\r\n\r\n", sent)
    await _take(streams, sent)


async def _shape(streams: Streams, rng: Random, sent: Sent) -> None:
    """Send one of the shapes, with a smaller body."""
    shape = rng.choice(SHAPES)
    pieces = shape.pieces(LARGEST_SCALE * rng.random() ** 2)
    count = None if isinstance(shape, Posted) else rng.randrange(1, ENDLESS_BLOCKS)
    sent.requests += 1
    for piece in islice(pieces, count):
        streams[1].write(piece)
        await streams[1].drain()
    if shape.is_read:
        await _take(streams, sent)


MANNERS: tuple[Callable[[Streams, Random, Sent], Awaitable[None]], ...] = (
    _ask,
    _ask,
    _leave,
    _leave,
    _reset,
    _half_close,
    _half_a_body,
    _never_read,
    _flood,
    _random_bytes,
    _shape,
    _shape,
)


def _make_small_request(rng: Random) -> RawRequest:
    return rng.choice(
        [
            ("/v1/completions", b'{"prompt":"a","max_tokens":1}'),
            ("/v1/completions", b"{}}"),
            ("/tokenize", b'{"content":"a"}'),
            ("/nowhere", b""),
        ]
    )


async def _send(streams: Streams, data: bytes, sent: Sent) -> None:
    sent.requests += 1
    streams[1].write(data)
    await streams[1].drain()


async def _take(streams: Streams, sent: Sent) -> None:
    """Read an answer to its end, or until the server pauses or has sent `MOST_ANSWER`."""
    head = await streams[0].readuntil(b"\r\n")
    sent.by_status[head[9:12].decode(errors="replace")] += 1
    taken = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(TIMEOUT_SECONDS / 2):
            while taken < MOST_ANSWER and (data := await streams[0].read(1 << 16)):
                taken += len(data)
                if data.endswith((b"\r\n0\r\n\r\n", b"}")):
                    return
