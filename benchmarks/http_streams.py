"""The real server in its own process, and clients that stream from it over loopback.

The clients only read bytes while the answers arrive, because they share the processor with the
server.
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

from cluster.address import Address
from cluster.peers import Peers
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
    """The arrival times of a stream's characters, and its number of tokens."""

    arrivals: list[tuple[float, int]] = field(default_factory=list)  # time, characters
    num_tokens: int = 0

    def add(self, at: float, characters: int, tokens: int = 0) -> None:
        """Record what arrived at time `at`, in seconds of `time.perf_counter`."""
        self.num_tokens += tokens
        if characters:
            self.arrivals.append((at, characters))

    @property
    def num_characters(self) -> int:
        return sum(characters for _, characters in self.arrivals)


def compute_rate(streams: Sequence[Stream]) -> float:
    """Return the sum of the streams' rates in characters per second.

    A stream's rate is counted from its first arrival to its last, without the characters of the
    first arrival, whose pass had begun earlier. Raises `ValueError` if all came at once.
    """
    return sum(_compute_own_rate(stream) for stream in streams)


def _compute_own_rate(stream: Stream) -> float:
    (began, first), (ended, _) = stream.arrivals[0], stream.arrivals[-1]
    if ended <= began:
        raise ValueError("all of a stream came at once, so it has no rate: ask for more tokens")
    return (stream.num_characters - first) / (ended - began)


@contextmanager
def front_end(
    spec: ModelSpec, factory: EngineFactory, *, peers: Sequence[str] = ()
) -> Iterator[int]:
    """Serve one model in a new process and yield the port.

    Raises `EngineError` if the server does not start.

    Args:
        factory: makes the engine client; it must be picklable.
        peers: the URLs of other servers, on which requests may run.
    """
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, spec, factory, peers), name="server")
    process.start()
    theirs.close()
    try:
        yield ours.recv()
    except EOFError as error:
        raise EngineError("the server did not start; its error is above") from error
    finally:
        if process.pid is not None and process.is_alive():
            process.terminate()  # on SIGTERM uvicorn shuts down and closes the engine
        process.join(STOP_S)
        if process.is_alive():
            process.kill()


def ask_all(port: int, requests: Sequence[Generate]) -> list[Stream]:
    """Send all requests at once and return their streams. Raises `EngineError`."""
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
        _read_events(raw, stream)  # parsed after the last byte, so that it delays no read
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
        "provenance": "tree" if message.traced_nodes else None,
    }
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data


def _read_events(raw: Sequence[tuple[float, bytes]], stream: Stream) -> None:
    """Add each event's characters at the time of the read that completed its line."""
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
    """A uvicorn server that sends its port over a pipe when it listens."""

    def __init__(self, config: uvicorn.Config, pipe: Connection) -> None:
        super().__init__(config)
        self._pipe = pipe

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        assert sockets, "the server is started with a socket"
        self._pipe.send(sockets[0].getsockname()[1])


def _serve(pipe: Connection, spec: ModelSpec, factory: EngineFactory, urls: Sequence[str]) -> None:
    """Run the server (main function of its process); the first request loads the model."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the benchmark handles Ctrl-C
    entry = ModelEntry(spec.id, spec, created=0)
    peers = Peers([Address(url) for url in urls]) if urls else None
    app = create_app(Settings(), Registry([entry], spec.id), factory, peers=peers)
    config = http_config(app)
    loop = config.get_loop_factory()
    with bind(HOST, 0) as listener, asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_Server(config, pipe).serve(sockets=[listener]))
