"""What the encoder and the decoders of cells share: the sizes of a stream, and scales of groups."""

from typing import Any

import numpy as np

from engine.compiled.compiler import helper

TILE = 32  # columns that are decoded together; it divides a group
SEGMENT = 1024  # weights of a row whose indices begin at a byte that is stored
PADDING = 4  # bytes after the last index, which the decoder reads
# The bits of float32: scales of 2^-26 to 2^101 are used. A group of a smaller one is constant, of
# the value of its zero, or 0 if that is less than 2^-22.
LEAST_SCALE, GREATEST_SCALE = 101 << 23, 228 << 23
LEAST_ZERO = 105 << 23
INFINITY = 0x7F800000

_u4 = np.uint32


def stream_bytes(nbytes: int) -> int:
    """Return the size of a stream with this number of bytes of indices: two words at least."""
    return -(-max(nbytes, 1) // PADDING) * PADDING + PADDING


def check_group(group: int) -> None:
    """Check that weights with groups of this size can be coded."""
    assert group % TILE == 0 and SEGMENT % group == 0, f"groups of {group}"


@helper
def scale_of_int4(scales: Any, row: Any, group: Any) -> Any:
    bits = scales[group, row]
    return _u4(bits << _u4(16)), _u4(bits & _u4(0xFFFF0000))


@helper
def scale_by_table(scales: Any, row: Any, group: Any) -> Any:
    return scales[row, group], _u4(0)


@helper
def usable(scale: Any, zero: Any) -> Any:
    """Return the bits of the scale and the zero by which a group is coded."""
    size = _u4(zero & _u4(0x7FFFFFFF))
    if size >= _u4(INFINITY) or scale >= _u4(GREATEST_SCALE):  # negative scales are greater, too
        return _u4(0), _u4(0)
    if scale < _u4(LEAST_SCALE):
        return _u4(0), zero if size >= _u4(LEAST_ZERO) else _u4(0)
    return scale, zero
