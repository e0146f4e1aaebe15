"""Send a shape over one connection, and read the answers unless the shape forbids it."""

import select
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.hostile_clients.served_demo import HOST
from benchmarks.hostile_clients.shapes import BLOCK, Shape

TIMEOUT_SECONDS = 90.0  # for the answer to a body that was sent whole
POLL_SECONDS = 0.1


@dataclass
class Ending:
    """The end of a connection, and the counts of what happened on it."""

    how: str = ""  # "answered", "closed", "reset", "still open", or "stopped" by us
    sent: int = 0  # bytes
    status: int | None = None  # of the first answer
    num_answers: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        answers = f"{self.num_answers} x {self.status}" if self.num_answers > 1 else self.status
        words = [str(answers) if self.status else "no answer"]
        return ", ".join(words if self.how == "answered" else [*words, self.how])


def attack(
    port: int,
    shape: Shape,
    seconds: float,
    scale: float = 1.0,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Ending:
    """Send a shape until the server has answered all of it, or closes the connection.

    Args:
        seconds: time after which the client leaves, if the shape has no end or is not read.
        scale: factor of the size of a body.
        is_stopped: called between two blocks; True ends the connection.
    """
    pieces = shape.pieces(scale)  # a body is made before the clock starts
    first = next(pieces)
    ending = Ending()
    began = time.perf_counter()
    with socket.create_connection((HOST, port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        try:
            _Exchange(sock, shape, first, pieces, ending).run(began + seconds, is_stopped)
        except ConnectionResetError:
            ending.how = "reset"
        except BrokenPipeError:
            ending.how = "closed"
    ending.seconds = time.perf_counter() - began
    return ending


class _Exchange:
    """The state of a connection between two calls of `select`."""

    def __init__(
        self,
        sock: socket.socket,
        shape: Shape,
        first: bytes,
        pieces: Iterator[bytes],
        ending: Ending,
    ) -> None:
        self._sock, self._shape, self._ending = sock, shape, ending
        self._data, self._pieces = memoryview(first), pieces
        self._is_sent = False
        self._next_at = 0.0  # when the next piece is due
        self._answers = Answers()

    def run(self, until: float, is_stopped: Callable[[], bool]) -> None:
        """Send and read until the connection has ended."""
        while not self._ending.how:
            now = time.perf_counter()
            is_waiting = self._is_sent and self._shape.is_read
            if is_stopped():
                self._ending.how = "stopped"
            elif now > until + (TIMEOUT_SECONDS if is_waiting else 0.0):
                self._ending.how = "still open"
            else:
                self._turn(now)

    def _turn(self, now: float) -> None:
        wants_to_send = not self._is_sent and now >= self._next_at
        readers = [self._sock] if self._shape.is_read else []
        writers = [self._sock] if wants_to_send else []
        readable, writable, _ = select.select(readers, writers, [], self._wait(now))
        if not readers and self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise ConnectionResetError
        if readable:
            self._take()
        if writable and not self._ending.how:
            self._send()
        if self._is_sent and self._answers.is_first_whole:
            self._ending.how = "answered"

    def _wait(self, now: float) -> float:
        """Return how many seconds to wait for the socket, at most until the next piece is due."""
        return min(POLL_SECONDS, self._next_at - now) if self._next_at > now else POLL_SECONDS

    def _send(self) -> None:
        sent = self._sock.send(self._data[:BLOCK])
        self._ending.sent += sent
        self._data = self._data[sent:]
        if not self._data:
            self._next_at = time.perf_counter() + self._shape.pause
            piece = next(self._pieces, None)
            self._is_sent = piece is None
            self._data = memoryview(piece or b"")

    def _take(self) -> None:
        data = self._sock.recv(1 << 20)
        if not data:
            self._ending.how = "closed"
            return
        self._answers.feed(data)
        self._ending.status = self._answers.status
        self._ending.num_answers = self._answers.num_heads


class Answers:
    """A reader of the answers on a connection, which parses only the first one."""

    def __init__(self) -> None:
        self.status: int | None = None  # of the first answer
        self.num_heads = 0
        self._head = b""  # the part of the first head that has arrived
        self._missing: int | None = None  # bytes of the first body; None until known
        self._tail = b""

    @property
    def is_first_whole(self) -> bool:
        """Return whether all of the first answer has arrived."""
        if self._missing is None:  # no head yet, or a chunked body
            return self.status is not None and self._tail.endswith(b"0\r\n\r\n")
        return self._missing <= 0

    def feed(self, data: bytes) -> None:
        """Read the next bytes of the connection."""
        joined = self._tail + data
        self.num_heads += joined.count(b"HTTP/1.1 ") - self._tail.count(b"HTTP/1.1 ")
        self._tail = joined[-16:]
        if self._missing is not None:
            self._missing -= len(data)
        elif self.status is None:
            self._head += data
            self._read_head()

    def _read_head(self) -> None:
        head, end, body = self._head.partition(b"\r\n\r\n")
        if end:
            self.status = int(head[9:12])
            _, name, rest = head.lower().partition(b"\r\ncontent-length: ")
            if name:
                self._missing = int(rest.split(b"\r\n")[0]) - len(body)
