"""Limits on the depth and the number of values of a JSON body, checked while it arrives. No I/O."""

from itertools import accumulate

from server.errors import ApiError
from server.schemas.limits import MAX_DEPTH, MAX_VALUES

PIECE = 16 * 1024  # bytes scanned at a time, in 1 ms at most; errors name the place this exactly
BLANKS = b" \t\r\n"
BRACKETS = bytes.maketrans(b"{}", b"[]")  # only the beginning and end of a container matter
OTHERS = bytes(set(range(256)) - set(b"[]"))
STEPS = {ord("["): 1, ord("]"): -1}


class BodyScan:
    """A counter of the values of JSON text that arrives in pieces and is not parsed.

    A piece may end anywhere, also within an escape. Only methods of `bytes` work on its bytes, at
    hundreds of MB/s. Text that is not JSON may be counted wrongly after its first mistake, where
    every parser stops.
    """

    def __init__(self, max_depth: int = MAX_DEPTH, max_values: int = MAX_VALUES) -> None:
        self._max_depth, self._max_values = max_depth, max_values
        self._position = 0  # bytes scanned
        self._in_string = False
        self._is_escaped = False  # the next byte belongs to an escape
        self._is_open = False  # the last byte but blanks began a container
        self._depth = 0
        self._containers = 0
        self._values = 1

    def feed(self, data: bytes) -> None:
        """Count the next bytes of the body. Raise `ApiError` 400 where they exceed a limit."""
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            self._count(self._remove_strings(piece), len(piece))
            self._position += len(piece)

    def _remove_strings(self, piece: bytes) -> bytes:
        """Return the piece with a single quotation mark in place of each string."""
        if self._is_escaped:
            piece = piece[1:]
        self._is_escaped = (len(piece) - len(piece.rstrip(b"\\"))) % 2 == 1
        if b"\\" in piece:  # only strings have escapes; the marks that are left delimit strings
            piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = piece.split(b'"')
        outside = b'"'.join([b"", *parts[1::2]] if self._in_string else parts[::2])
        self._in_string ^= len(parts) % 2 == 0
        return outside

    def _count(self, outside: bytes, nbytes: int) -> None:
        marks = outside.translate(BRACKETS, BLANKS)
        opened = marks.count(b"[")
        self._track_depth(marks, opened, nbytes)
        # Every comma begins a value, and so does whatever follows the beginning of a container,
        # unless it is the end of that container.
        if marks:
            was_open, self._is_open = self._is_open, marks.endswith(b"[")
            first = was_open - self._is_open + opened
            empty = marks.count(b"[]") + (was_open and marks.startswith(b"]"))
            self._values += marks.count(b",") + first - empty
        self._containers += opened
        if max(self._values, self._containers) > self._max_values:
            where = self._describe_place(nbytes)
            message = f"The body holds more than {self._max_values} values, {where}."
            raise ApiError(message, code="too_many_values")

    def _track_depth(self, marks: bytes, opened: int, nbytes: int) -> None:
        if self._depth + opened > self._max_depth:
            steps = map(STEPS.__getitem__, marks.translate(None, OTHERS))
            if max(accumulate(steps, initial=self._depth)) > self._max_depth:
                where = self._describe_place(nbytes)
                message = (
                    f"The body nests arrays and objects more than {self._max_depth} deep, {where}."
                )
                raise ApiError(message, code="body_too_deep")
        self._depth += opened - marks.count(b"]")

    def _describe_place(self, nbytes: int) -> str:
        return f"seen between its bytes {self._position} and {self._position + nbytes}"
