"""Bounds on the depth and the number of values of a JSON body, held while it arrives. Pure."""

from itertools import accumulate

from server.errors import ApiError
from server.schemas.limits import MAX_DEPTH, MAX_VALUES

PIECE = 16 * 1024  # bytes looked at in one go, 1 ms at most; errors name the place as exactly
BLANKS = b" \t\r\n"
BRACKETS = bytes.maketrans(b"{}", b"[]")  # what matters is only where a container begins and ends
OTHERS = bytes(set(range(256)) - set(b"[]"))
STEPS = {ord("["): 1, ord("]"): -1}


class BodyScan:
    """Counts what JSON text holds, piece by piece, without parsing it.

    A piece may end anywhere, within an escape too. All work on its bytes is done by methods of
    `bytes`: hundreds of MB/s. Text that is no JSON may be counted wrongly after its first mistake,
    where every parser stops.
    """

    def __init__(self, max_depth: int = MAX_DEPTH, max_values: int = MAX_VALUES) -> None:
        self._max_depth, self._max_values = max_depth, max_values
        self._position = 0  # bytes taken
        self._in_string = False
        self._is_escaped = False  # the next byte belongs to an escape
        self._is_open = False  # the last byte that counted began a container
        self._depth = 0
        self._containers = 0
        self._values = 1

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body. Raises `ApiError` 400 where they exceed a bound."""
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            self._count(self._outside_of_strings(piece), len(piece))
            self._position += len(piece)

    def _outside_of_strings(self, piece: bytes) -> bytes:
        """Return the piece with a single quotation mark in place of each string."""
        if self._is_escaped:
            piece = piece[1:]
        self._is_escaped = (len(piece) - len(piece.rstrip(b"\\"))) % 2 == 1
        if b"\\" in piece:  # only strings hold escapes; a mark that is left ends or begins one
            piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = piece.split(b'"')
        outside = b'"'.join([b"", *parts[1::2]] if self._in_string else parts[::2])
        self._in_string ^= len(parts) % 2 == 0
        return outside

    def _count(self, outside: bytes, nbytes: int) -> None:
        marks = outside.translate(BRACKETS, BLANKS)
        opened = marks.count(b"[")
        self._go_down(marks, opened, nbytes)
        # Every comma begins a value, and so does whatever follows the beginning of a container,
        # unless it is its end.
        if marks:
            was_open, self._is_open = self._is_open, marks.endswith(b"[")
            first = was_open - self._is_open + opened
            empty = marks.count(b"[]") + (was_open and marks.startswith(b"]"))
            self._values += marks.count(b",") + first - empty
        self._containers += opened
        if max(self._values, self._containers) > self._max_values:
            message = f"The body holds more than {self._max_values} values, {self._where(nbytes)}."
            raise ApiError(message, code="too_many_values")

    def _go_down(self, marks: bytes, opened: int, nbytes: int) -> None:
        if self._depth + opened > self._max_depth:
            steps = map(STEPS.__getitem__, marks.translate(None, OTHERS))
            if max(accumulate(steps, initial=self._depth)) > self._max_depth:
                where = self._where(nbytes)
                message = (
                    f"The body nests arrays and objects more than {self._max_depth} deep, {where}."
                )
                raise ApiError(message, code="body_too_deep")
        self._depth += opened - marks.count(b"]")

    def _where(self, nbytes: int) -> str:
        return f"seen between its bytes {self._position} and {self._position + nbytes}"
