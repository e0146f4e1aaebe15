"""A client in its own process that sends `GET /health` every 20 ms."""

import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection

from benchmarks.hostile_clients.served_demo import HOST

EVERY_SECONDS = 0.02
TIMEOUT_SECONDS = 60.0
REQUEST = f"GET /health HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()


@dataclass
class Delays:
    """The seconds from each request to its answer; a failed request counts with its wait."""

    seconds: list[float] = field(default_factory=list)
    failures: int = 0

    @property
    def median_ms(self) -> float:
        return 1e3 * statistics.median(self.seconds or [0.0])

    @property
    def max_ms(self) -> float:
        return 1e3 * max(self.seconds, default=0.0)


@contextmanager
def health_probe(port: int) -> Iterator[Delays]:
    """Send requests during a `with` block; the yielded delays are filled in at its end."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_ask_until_stopped, args=(theirs, port), daemon=True)
    process.start()
    theirs.close()
    delays = Delays()
    try:
        ours.recv()  # the first answer has arrived
        yield delays
    finally:
        ours.send("stop")
        if ours.poll(2 * TIMEOUT_SECONDS):
            found: Delays = ours.recv()
            delays.seconds, delays.failures = found.seconds, found.failures
        process.join()


def _ask_until_stopped(pipe: Connection, port: int) -> None:
    delays = Delays()
    sock: socket.socket | None = None
    _ask(_connect(port))  # the first request is not counted
    pipe.send("ready")
    while not pipe.poll(EVERY_SECONDS):
        began = time.perf_counter()
        try:
            sock = sock or _connect(port)  # one connection, until it fails
            _ask(sock)
        except OSError:
            sock = None
            delays.failures += 1
        delays.seconds.append(time.perf_counter() - began)
    pipe.send(delays)


def _connect(port: int) -> socket.socket:
    sock = socket.create_connection((HOST, port), timeout=TIMEOUT_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _ask(sock: socket.socket) -> None:
    """Send a request and read its answer. Raises `OSError`."""
    sock.sendall(REQUEST)
    answer = b""
    while not answer.endswith(b'{"status":"ok"}'):
        more = sock.recv(4096)
        if not more:
            raise ConnectionError("the connection was closed")
        answer += more
