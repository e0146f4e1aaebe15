"""Compiled expansion of GGUF's block types, with the bits of `engine.weights.gguf_blocks`.

That file says where the definitions of the blocks come from, and has the same names.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from engine.compiled.compiler import helper, kernel
from engine.compiled.filling import fill_rows
from engine.compiled.storing import RUN, half, write

_u1, _u8, _i4, _f4 = np.uint8, np.uint64, np.int32, np.float32
_IQ4 = np.array(
    (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113), np.float32
)
# Twice the values of E2M1. All are whole numbers, so the negative zero is 0.
_MXFP4 = np.array((0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12), np.float32)
_HALF_POWERS = np.array([2.0 ** (exponent - 128) for exponent in range(256)], np.float32)


def expand(kind: str, blocks: Tensor, out: Tensor) -> None:
    """Fill a tensor with the values of its blocks, computed in float32 and rounded once.

    Args:
        kind: a type of blocks of `engine.weights.gguf_file.TYPES`.
        blocks: [..., bytes] uint8, contiguous, whole blocks.
        out: a tensor that `filling.can_fill` accepts, with the values of the blocks in their order.
    """
    size, nbytes, expand_all = _KERNELS[kind]
    source = blocks.reshape(-1, nbytes).numpy()
    # Kernels do not check places: with wrong ones they would write other memory.
    assert len(source) * size == out.numel(), (kind, blocks.shape, out.shape)

    def fill(start: int, stop: int, memory: Any, stored: int) -> None:
        expand_all(source[start:stop], memory, stored)

    fill_rows(out, size, fill)


def _over_blocks(
    size: int, nbytes: int, one: Callable[..., None]
) -> tuple[int, int, Callable[..., None]]:
    """Return the sizes of a type's blocks, and the kernel that expands many of them.

    Args:
        size: the values of a block.
        nbytes: the bytes of a block.
        one: expands `blocks[row]`, as float32, to `values[to : to + size]`.
    """

    def expand_all(blocks: Any, out: Any, kind: int) -> None:
        values = np.empty(RUN, np.float32)
        for first in range(0, len(blocks), RUN // size):
            count = min(RUN // size, len(blocks) - first)
            for at in range(count):
                one(blocks, _u8(first + at), values, _u8(at * size))
            write(values[: count * size], out, first * size, kind)

    compiled = kernel("void(u1[:, ::1], u1[::1], i8)", one.__name__)(expand_all)
    return size, nbytes, compiled


@helper
def _half(blocks: Any, row: Any, at: int) -> Any:
    """Return the float16 at byte `at` of a block as float32."""
    return half(blocks[row, _u8(at)], blocks[row, _u8(at + 1)])


@helper
def _bits(byte: Any, shift: Any, count: int) -> Any:
    """Return `count` bits of a byte."""
    return _i4(_i4(_i4(byte) >> shift) & _i4((1 << count) - 1))


@helper
def _low(blocks: Any, row: Any, byte: Any) -> Any:
    """Return the low half of a byte."""
    return _i4(blocks[row, byte] & _u1(15))


@helper
def _high(blocks: Any, row: Any, byte: Any) -> Any:
    """Return the high half of a byte."""
    return _i4(blocks[row, byte] >> _u1(4))


@helper
def _q8_0(blocks: Any, row: Any, values: Any, to: Any) -> None:
    scale = _half(blocks, row, 0)
    for at in range(_u8(32)):
        values[to + at] = _f4(np.int8(blocks[row, _u8(2) + at])) * scale


@helper
def _q4_0(blocks: Any, row: Any, values: Any, to: Any) -> None:
    scale, start = _half(blocks, row, 0), _u8(2)
    for at in range(_u8(16)):
        values[to + at] = _f4(_i4(_low(blocks, row, start + at) - _i4(8))) * scale
    for at in range(_u8(16)):
        values[to + _u8(16) + at] = _f4(_i4(_high(blocks, row, start + at) - _i4(8))) * scale


@helper
def _q4_1(blocks: Any, row: Any, values: Any, to: Any) -> None:
    scale, least, start = _half(blocks, row, 0), _half(blocks, row, 2), _u8(4)
    for at in range(_u8(16)):
        values[to + at] = _f4(_low(blocks, row, start + at)) * scale + least
    for at in range(_u8(16)):
        values[to + _u8(16) + at] = _f4(_high(blocks, row, start + at)) * scale + least


@helper
def _word(blocks: Any, row: Any, at: int) -> Any:
    """Return the 32 bits from byte `at` on."""
    low = _i4(blocks[row, _u8(at)]) | _i4(_i4(blocks[row, _u8(at + 1)]) << _i4(8))
    high = _i4(blocks[row, _u8(at + 2)]) | _i4(_i4(blocks[row, _u8(at + 3)]) << _i4(8))
    return _i4(low | _i4(high << _i4(16)))


@helper
def _fifth(word: Any, at: Any) -> Any:
    """Return a bit of a word as 0 or 16."""
    return _i4(_i4(_i4(word >> _i4(at)) & _i4(1)) * _i4(16))


@helper
def _q5_0(blocks: Any, row: Any, values: Any, to: Any) -> None:
    scale, word, start = _half(blocks, row, 0), _word(blocks, row, 2), _u8(6)
    for at in range(_u8(16)):
        code = _i4(_low(blocks, row, start + at) + _fifth(word, at))
        values[to + at] = _f4(_i4(code - _i4(16))) * scale
    for at in range(_u8(16)):
        code = _i4(_high(blocks, row, start + at) + _fifth(word, at + _u8(16)))
        values[to + _u8(16) + at] = _f4(_i4(code - _i4(16))) * scale


@helper
def _q5_1(blocks: Any, row: Any, values: Any, to: Any) -> None:
    scale, least = _half(blocks, row, 0), _half(blocks, row, 2)
    word, start = _word(blocks, row, 4), _u8(8)
    for at in range(_u8(16)):
        code = _i4(_low(blocks, row, start + at) + _fifth(word, at))
        values[to + at] = _f4(code) * scale + least
    for at in range(_u8(16)):
        code = _i4(_high(blocks, row, start + at) + _fifth(word, at + _u8(16)))
        values[to + _u8(16) + at] = _f4(code) * scale + least


@helper
def _q2_k(blocks: Any, row: Any, values: Any, to: Any) -> None:
    scale, least = _half(blocks, row, 80), _half(blocks, row, 82)
    for run in range(16):
        packed = blocks[row, _u8(run)]
        own_scale, own_least = scale * _f4(packed & _u1(15)), least * _f4(packed >> _u1(4))
        # Two runs of 16 take 32 bytes; four fields of 2 bits lie above each other.
        start, shift = _u8(16 + run // 8 * 32 + run % 2 * 16), _i4(run // 2 % 4 * 2)
        found = to + _u8(run * 16)
        for at in range(_u8(16)):
            code = _f4(_bits(blocks[row, start + at], shift, 2))
            values[found + at] = code * own_scale - own_least


@helper
def _q3_k(blocks: Any, row: Any, values: Any, to: Any) -> None:
    scale = _half(blocks, row, 108)
    for run in range(16):
        low = _bits(blocks[row, _u8(96 + run % 8)], _i4(run // 8 * 4), 4)
        top = _bits(blocks[row, _u8(104 + run % 4)], _i4(run // 4 * 2), 2)
        own_scale = scale * _f4(low + top * _i4(16) - _i4(32))
        tops, bit = _u8(run % 2 * 16), _i4(run // 2)
        start, shift = _u8(32 + run // 8 * 32 + run % 2 * 16), _i4(run // 2 % 4 * 2)
        found = to + _u8(run * 16)
        for at in range(_u8(16)):
            code = _bits(blocks[row, start + at], shift, 2)
            high = _bits(blocks[row, tops + at], bit, 1)
            values[found + at] = _f4(_i4(code + _i4(_i4(high * _i4(4)) - _i4(4)))) * own_scale


@helper
def _scale_of_k(blocks: Any, row: Any, run: int) -> tuple[Any, Any]:
    """Return scale and minimum, of 6 bits each, of one of the 8 runs of Q4_K and Q5_K."""
    first, second = blocks[row, _u8(4 + run % 4)], blocks[row, _u8(8 + run % 4)]
    if run < 4:
        return _f4(first & _u1(63)), _f4(second & _u1(63))
    both = blocks[row, _u8(8 + run)]
    scale = _i4(both & _u1(15)) + _bits(first, _i4(6), 2) * _i4(16)
    return _f4(scale), _f4(_i4(both >> _u1(4)) + _bits(second, _i4(6), 2) * _i4(16))


@helper
def _q4_k(blocks: Any, row: Any, values: Any, to: Any) -> None:
    scale, least = _half(blocks, row, 0), _half(blocks, row, 2)
    for run in range(8):
        code_scale, code_least = _scale_of_k(blocks, row, run)
        own_scale, own_least = scale * code_scale, least * code_least
        start, shift, found = _u8(16 + run // 2 * 32), _i4(run % 2 * 4), to + _u8(run * 32)
        for at in range(_u8(32)):
            code = _f4(_bits(blocks[row, start + at], shift, 4))
            values[found + at] = code * own_scale - own_least


@helper
def _q5_k(blocks: Any, row: Any, values: Any, to: Any) -> None:
    scale, least = _half(blocks, row, 0), _half(blocks, row, 2)
    for run in range(8):
        code_scale, code_least = _scale_of_k(blocks, row, run)
        own_scale, own_least = scale * code_scale, least * code_least
        start, shift, found = _u8(48 + run // 2 * 32), _i4(run % 2 * 4), to + _u8(run * 32)
        for at in range(_u8(32)):
            code = _bits(blocks[row, start + at], shift, 4)
            top = _bits(blocks[row, _u8(16) + at], _i4(run), 1)
            values[found + at] = _f4(_i4(code + _i4(top * _i4(16)))) * own_scale - own_least


@helper
def _q6_k(blocks: Any, row: Any, values: Any, to: Any) -> None:
    scale = _half(blocks, row, 208)
    for run in range(16):
        own_scale = scale * _f4(np.int8(blocks[row, _u8(192 + run)]))
        # A half of the block takes 64 bytes of low and 32 bytes of high bits.
        start, shift = _u8(run // 8 * 64 + run % 4 * 16), _i4(run // 4 % 2 * 4)
        tops, bits = _u8(128 + run // 8 * 32 + run % 2 * 16), _i4(run // 2 % 4 * 2)
        found = to + _u8(run * 16)
        for at in range(_u8(16)):
            code = _bits(blocks[row, start + at], shift, 4)
            top = _bits(blocks[row, tops + at], bits, 2)
            values[found + at] = _f4(_i4(code + _i4(_i4(top * _i4(16)) - _i4(32)))) * own_scale


@helper
def _iq4(scale: Any, blocks: Any, row: Any, start: Any, values: Any, to: Any) -> None:
    """Write the scaled values of the low halves of 16 bytes, then of their high halves."""
    for at in range(_u8(16)):
        values[to + at] = _IQ4[blocks[row, start + at] & _u1(15)] * scale
    for at in range(_u8(16)):
        values[to + _u8(16) + at] = _IQ4[blocks[row, start + at] >> _u1(4)] * scale


@helper
def _iq4_nl(blocks: Any, row: Any, values: Any, to: Any) -> None:
    _iq4(_half(blocks, row, 0), blocks, row, _u8(2), values, to)


@helper
def _iq4_xs(blocks: Any, row: Any, values: Any, to: Any) -> None:
    scale = _half(blocks, row, 0)
    for run in range(8):
        low = _bits(blocks[row, _u8(4 + run // 2)], _i4(run % 2 * 4), 4)
        top = _bits(blocks[row, _u8(2 + run // 4)], _i4(run % 4 * 2), 2)
        own_scale = scale * _f4(low + top * _i4(16) - _i4(32))
        _iq4(own_scale, blocks, row, _u8(8 + run * 16), values, to + _u8(run * 32))


@helper
def _mxfp4(blocks: Any, row: Any, values: Any, to: Any) -> None:
    scale, start = _HALF_POWERS[blocks[row, _u8(0)]], _u8(1)
    for at in range(_u8(16)):
        values[to + at] = _MXFP4[blocks[row, start + at] & _u1(15)] * scale
    for at in range(_u8(16)):
        values[to + _u8(16) + at] = _MXFP4[blocks[row, start + at] >> _u1(4)] * scale


_KERNELS: Mapping[str, tuple[int, int, Callable[..., None]]] = {
    "Q8_0": _over_blocks(32, 34, _q8_0),
    "Q4_0": _over_blocks(32, 18, _q4_0),
    "Q4_1": _over_blocks(32, 20, _q4_1),
    "Q5_0": _over_blocks(32, 22, _q5_0),
    "Q5_1": _over_blocks(32, 24, _q5_1),
    "Q2_K": _over_blocks(256, 84, _q2_k),
    "Q3_K": _over_blocks(256, 110, _q3_k),
    "Q4_K": _over_blocks(256, 144, _q4_k),
    "Q5_K": _over_blocks(256, 176, _q5_k),
    "Q6_K": _over_blocks(256, 210, _q6_k),
    "IQ4_NL": _over_blocks(32, 18, _iq4_nl),
    "IQ4_XS": _over_blocks(256, 136, _iq4_xs),
    "MXFP4": _over_blocks(32, 17, _mxfp4),
}
