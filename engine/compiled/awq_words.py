"""Compiled transposition of AWQ's words, in which one word has the codes of eight rows."""

from typing import Any

import numpy as np
from torch import Tensor

from engine.compiled.compiler import kernel
from engine.compiled.filling import in_parts

_u1, _u4, _u8 = np.uint8, np.uint32, np.uint64
_TILE = 64  # bytes of a row that are written before the next rows are: their lines stay in a cache


def transpose(words: Tensor, order: Tensor, out: Tensor) -> None:
    """Fill the rows of a weight's codes, two codes in a byte with the first one in its low half.

    Args:
        words: [inputs, words] int32 of 8 codes, contiguous and in CPU memory like all arguments.
        order: the row of each code among the eight of a word, from the lowest bits, [8] int64.
        out: [words * 8, (inputs + 1) // 2] uint8.
    """
    source, places, target = words.numpy().view(np.uint32), order.numpy(), out.numpy()
    rows = len(places)
    assert target.shape == (words.shape[1] * rows, (len(words) + 1) // 2), (words.shape, out.shape)

    def work(start: int, stop: int) -> None:
        _transpose(source, places, start, target[start * rows : stop * rows])

    in_parts(words.shape[1], len(words) * rows, work)


@kernel("void(u4[:, ::1], i8[::1], i8, u1[:, ::1])")
def _transpose(words: Any, order: Any, first: int, out: Any) -> None:
    inputs, count = len(words), len(out) // len(order)
    for start in range(0, out.shape[1], _TILE):
        stop = min(start + _TILE, out.shape[1])
        for column in range(count):
            for byte in range(start, stop):
                low, high = words[_u8(2 * byte), _u8(first + column)], _u4(0)
                if 2 * byte + 1 < inputs:
                    high = words[_u8(2 * byte + 1), _u8(first + column)]
                for code in range(8):
                    shift, row = _u4(4 * code), _u8(column * 8 + order[code])
                    first_half = _u4(_u4(low >> shift) & _u4(15))
                    second_half = _u4(_u4(_u4(high >> shift) & _u4(15)) << _u4(4))
                    out[row, _u8(byte)] = _u1(_u4(first_half | second_half))
