"""The real server in a process of its own, and clients that stream from it over loopback.

The clients read bytes and little else, so that they take as little as they can of the machine
they share with the server.
"""

import asyncio
import json
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import uvicorn

from engine.errors import EngineError
from engine.messages import Generate
from engine.spec import ModelSpec
from server.cli.serve import bind, http_config
from server.config.registry import ModelEntry, Registry
from server.config.settings import Settings
from server.http.app import create_app
from server.models.lending import EngineFactory

HOST = "127.0.0.1"
STOP_S = 20.0


@dataclass
class Stream:
    """When a stream's characters came; tokens are known in all at its end."""

    arrivals: list[tuple[float, int]] = field(default_factory=list)  # time, characters
    num_tokens: int = 0

    def add(self, at: float, characters: int, tokens: int = 0) -> None:
        self.num_tokens += tokens
        if characters:
            self.arrivals.append((at, characters))

    @property
    def num_characters(self) -> int:
        return sum(characters for _, characters in self.arrivals)


def rate(streams: Sequence[Stream]) -> float:
    """Characters a second of all streams together, each from its first arrival to its last.

    What came with the first is not counted: its pass had begun before.
    """
    return sum(_own_rate(stream) for stream in streams)


def _own_rate(stream: Stream) -> float:
    (began, first), (ended, _) = stream.arrivals[0], stream.arrivals[-1]
    if ended <= began:
        raise ValueError("a stream came all at once and has no rate: ask for more tokens")
    return (stream.num_characters - first) / (ended - began)


@contextmanager
def front_end(spec: ModelSpec, factory: EngineFactory) -> Iterator[int]:
    """The server with this one model: the port it listens on. `factory` must pickle."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, spec, factory), name="server")
    process.start()
    theirs.close()
    try:
        yield ours.recv()
    except EOFError as error:
        raise EngineError("the server did not start; its error is above") from error
    finally:
        if process.pid is not None and process.is_alive():
            process.terminate()  # SIGTERM: uvicorn ends in good order, and the engine with it
        process.join(STOP_S)
        if process.is_alive():
            process.kill()


def ask_all(port: int, requests: Sequence[Generate]) -> list[Stream]:
    """Stream all requests at once; returns when all have ended. Raises `EngineError`."""
    return asyncio.run(_ask_all(port, requests))


async def _ask_all(port: int, requests: Sequence[Generate]) -> list[Stream]:
    return list(await asyncio.gather(*(_ask(port, message) for message in requests)))


async def _ask(port: int, message: Generate) -> Stream:
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(_http(message))
        stream = Stream()
        raw: list[tuple[float, bytes]] = []
        while chunk := await reader.read(1 << 16):
            raw.append((time.perf_counter(), chunk))
            if b"data: [DONE]" in chunk:
                break
        _read_events(raw, stream)  # after the last byte: nobody waits for it
        return stream
    finally:
        writer.close()


def _http(message: Generate) -> bytes:
    params = message.params
    body = {
        "prompt": list(message.prompt),
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "seed": params.seed,
        "ignore_eos": params.ignore_eos,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data


def _read_events(raw: Sequence[tuple[float, bytes]], stream: Stream) -> None:
    """Sort the characters of server-sent events to the reads that completed their lines."""
    rest, line = b"", b""
    for at, chunk in raw:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):  # not the head, a comment, or a chunk's length
                _read_event(at, json.loads(line.removeprefix(b"data: ")), stream)
    if stream.num_tokens == 0:  # the usage comes last
        tail = b"".join(chunk for _, chunk in raw)[-300:].decode(errors="replace")
        raise EngineError(f"a stream ended early; its last bytes: {tail}")


def _read_event(at: float, data: dict[str, Any], stream: Stream) -> None:
    if "error" in data:
        raise EngineError(data["error"]["message"])
    text = "".join(choice["text"] for choice in data["choices"])
    usage = data.get("usage") or {}
    stream.add(at, len(text), usage.get("completion_tokens", 0))


class _Server(uvicorn.Server):
    """Tells its port once it listens."""

    def __init__(self, config: uvicorn.Config, pipe: Connection) -> None:
        super().__init__(config)
        self._pipe = pipe

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        assert sockets, "it is started with a socket"
        self._pipe.send(sockets[0].getsockname()[1])


def _serve(pipe: Connection, spec: ModelSpec, factory: EngineFactory) -> None:
    """The process; the model is loaded by the first request."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the benchmark's own
    entry = ModelEntry(spec.id, spec, created=0)
    app = create_app(Settings(), Registry([entry], spec.id), factory)
    config = http_config(app)
    loop = config.get_loop_factory()
    with bind(HOST, 0) as listener, asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_Server(config, pipe).serve(sockets=[listener]))
