"""Another client, in a process of its own: it asks `GET /health` every 20 ms."""

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
PATIENCE_SECONDS = 60.0
REQUEST = f"GET /health HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()


@dataclass
class Delays:
    """Seconds from each request to its answer; a request without one counts with its wait."""

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
    """Ask within a `with` block; what is given is filled at its end."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_ask_until_told, args=(theirs, port), daemon=True)
    process.start()
    theirs.close()
    delays = Delays()
    try:
        ours.recv()  # the first answer is there
        yield delays
    finally:
        ours.send("stop")
        if ours.poll(2 * PATIENCE_SECONDS):
            found: Delays = ours.recv()
            delays.seconds, delays.failures = found.seconds, found.failures
        process.join()


def _ask_until_told(pipe: Connection, port: int) -> None:
    delays = Delays()
    sock: socket.socket | None = None
    _ask(_connected(port))  # a warm start: not counted
    pipe.send("ready")
    while not pipe.poll(EVERY_SECONDS):
        began = time.perf_counter()
        try:
            sock = sock or _connected(port)  # one connection, as long as it lasts
            _ask(sock)
        except OSError:
            sock = None
            delays.failures += 1
        delays.seconds.append(time.perf_counter() - began)
    pipe.send(delays)


def _connected(port: int) -> socket.socket:
    sock = socket.create_connection((HOST, port), timeout=PATIENCE_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _ask(sock: socket.socket) -> None:
    """Ask and take the answer. Raises `OSError`."""
    sock.sendall(REQUEST)
    answer = b""
    while not answer.endswith(b'{"status":"ok"}'):
        more = sock.recv(4096)
        if not more:
            raise ConnectionError("the connection was closed")
        answer += more
