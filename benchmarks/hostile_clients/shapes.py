"""The kinds of bytes that one hostile connection sends: a start, repeated pieces, an end."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, repeat

HOST = "localhost"
LARGEST_BODY = 32 * 2**20  # the server's setting `max_body_bytes`
BLOCK = 64 * 1024  # bytes sent at once


@dataclass(frozen=True)
class Shape(ABC):
    """A description of what one connection sends.

    Args:
        pause: seconds between two pieces; 0 sends as fast as the server reads.
        is_read: whether the client reads the answers.
    """

    name: str
    pause: float = field(default=0.0, kw_only=True)
    is_read: bool = field(default=True, kw_only=True)

    @abstractmethod
    def pieces(self, scale: float) -> Iterator[bytes]:
        """Return the pieces to send; a body has `scale` of its full size."""

    def nbytes(self, scale: float) -> int:
        """Return the length of the body in bytes, 0 without a body."""
        return 0


@dataclass(frozen=True)
class Endless(Shape):
    """A `unit` that is repeated after `start` until the server closes the connection."""

    start: bytes
    unit: bytes
    is_split: bool = field(default=False, kw_only=True)  # send each unit separately

    def pieces(self, scale: float) -> Iterator[bytes]:
        is_single = self.is_split or self.pause > 0
        times = 1 if is_single else max(1, BLOCK // len(self.unit))
        return chain([self.start], repeat(self.unit * times))


@dataclass(frozen=True)
class Repeated(Shape):
    """One request that is repeated over one connection, whether it is answered or not."""

    request: bytes

    def pieces(self, scale: float) -> Iterator[bytes]:
        return repeat(self.request * max(1, BLOCK // len(self.request)))


@dataclass(frozen=True)
class Posted(Shape):
    """A POST whose body has `count` units between `start` and `end`.

    Args:
        unit: may contain `%d`, which becomes the unit's number.
        count: number of units; None fills `LARGEST_BODY`.
    """

    path: str
    start: bytes
    unit: bytes
    end: bytes
    count: int | None = None

    def nbytes(self, scale: float) -> int:
        return len(self.body(scale))

    def body(self, scale: float) -> bytes:
        """Return the body with `scale` of its units."""
        longest = self.unit.replace(b"%d", b"9999999")
        room = (LARGEST_BODY - len(self.start) - len(self.end)) // len(longest)
        count = max(1, int(scale * (room if self.count is None else self.count)))
        if b"%d" in self.unit:
            return b"".join([self.start, *(self.unit % i for i in range(count)), self.end])
        return self.start + self.unit * count + self.end

    def pieces(self, scale: float) -> Iterator[bytes]:
        body = self.body(scale)
        yield head(self.path, f"Content-Length: {len(body)}")
        yield from (body[begin : begin + BLOCK] for begin in range(0, len(body), BLOCK))


def head(path: str, *fields: str, method: str = "POST") -> bytes:
    """Return the head of a request with a JSON body, with more header fields."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {HOST}", "Content-Type: application/json"]
    return "\r\n".join([*lines, *fields, "\r\n"]).encode()
