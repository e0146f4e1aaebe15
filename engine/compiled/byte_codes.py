"""Compiled expansion of weights whose bytes stand for one or more values of a table.

FP8, int8, and 4-bit integers or floats in pairs differ only in their table.
"""

from typing import Any

import numpy as np
from torch import Tensor

from engine.compiled.compiler import kernel
from engine.compiled.filling import fill_rows
from engine.compiled.storing import RUN, write

_u8 = np.uint64


def expand(
    codes: Tensor, values: Tensor, scales: Tensor, zeros: Tensor, group: Tensor, out: Tensor
) -> None:
    """Fill a matrix with (values[codes] - zeros) * scales, in float32 and rounded once.

    Args:
        codes: [rows, bytes] uint8, contiguous like all arguments but `out`. The last byte of a row
            may have more values than there are columns.
        values: the values of each byte in the order of columns, [256, 1, 2 or 4] float32.
        scales: [rows, groups] float32.
        zeros: the values that stand for zero, of the shape and type of `scales`.
        group: the group of each column, [columns] int32.
        out: [rows, columns], which `filling.can_fill` accepts.
    """
    if not out.numel():
        return
    # Kernels do not check places: with wrong ones they would read and write other memory.
    rows, columns = out.shape
    assert len(codes) == rows and columns <= codes.shape[1] * values.shape[1], codes.shape
    assert scales.shape == zeros.shape and len(scales) == rows, (scales.shape, zeros.shape)
    assert len(group) == columns, group.shape
    assert 0 <= int(group.min()) <= int(group.max()) < scales.shape[1], scales.shape
    bytes_, table, factors, offsets = (tensor.numpy() for tensor in (codes, values, scales, zeros))
    groups = group.numpy()

    def fill(start: int, stop: int, memory: Any, kind: int) -> None:
        own = slice(start, stop)
        _expand(bytes_[own], table, factors[own], offsets[own], groups, memory, kind)

    fill_rows(out, columns, fill)


@kernel("void(u1[:, ::1], f4[:, ::1], f4[:, ::1], f4[:, ::1], i4[::1], u1[::1], i8)")
def _expand(
    codes: Any, table: Any, scales: Any, zeros: Any, group: Any, out: Any, kind: int
) -> None:
    values = np.empty(RUN, np.float32)
    columns, count = len(group), _u8(table.shape[1])
    for line in range(len(codes)):
        row = _u8(line)
        for start in range(0, columns, RUN):
            first, size = _u8(start), _u8(min(RUN, columns - start))
            byte = _u8(start // table.shape[1])
            if count == _u8(1):
                for at in range(size):
                    values[at] = table[codes[row, byte + at], _u8(0)]
            elif count == _u8(2):
                for at in range((size + _u8(1)) // _u8(2)):
                    code = codes[row, byte + at]
                    values[at * _u8(2)] = table[code, _u8(0)]
                    values[at * _u8(2) + _u8(1)] = table[code, _u8(1)]
            else:
                for at in range(size):
                    values[at] = table[codes[row, byte + at // count], at % count]
            for at in range(size):
                own = _u8(group[first + at])
                values[at] = (values[at] - zeros[row, own]) * scales[row, own]
            write(values[:size], out, line * columns + start, kind)
