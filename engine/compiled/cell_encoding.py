"""Compiled encoding of weights as indices into the cells of their 4-bit codes.

`engine.weights.coding.cells` defines the code, and has operations of torch with the same bits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from engine.compiled.cell_vectors import LANES, MIDDLE, WIDEST
from engine.compiled.cells import SEGMENT, check_group, scale_by_table, scale_of_int4, usable
from engine.compiled.compiler import helper, kernel
from engine.compiled.filling import in_parts

_NONE = np.uint32(1 << 16)  # the index of a weight that has none
_u1, _u4, _u8 = np.uint8, np.uint32, np.uint64
_i4, _f4 = np.int32, np.float32


class Substitute(NamedTuple):
    """A 4-bit copy of a weight in the order of rows, in numpy arrays.

    Args:
        pairs: the codes, uint8 [rows, columns / 2], the first of two in the upper half of a byte.
        scales, ends, is_int4: as those of `cells.Copy`.
    """

    pairs: Any
    scales: Any
    ends: Any
    is_int4: bool


def measure(substitute: Substitute, weights: Any, sizes: Any, escapes: Any) -> None:
    """Count the bytes of each segment and the escapes of each row of `weights`.

    Args:
        weights: the bits of bfloat16, uint16 [rows, columns].
        sizes: uint32 [rows, segments].
        escapes: int64 [rows].
    """
    _check(substitute)
    function = _measure_int4 if substitute.is_int4 else _measure_by_table

    def work(start: int, stop: int) -> None:
        function(*substitute[:3], weights, start, stop, sizes, escapes)

    in_parts(len(weights), weights.shape[1], work, is_weight=True)


def encode(
    substitute: Substitute,
    weights: Any,
    starts: Any,
    stream: Any,
    first_escape: Any,
    places: Any,
    values: Any,
) -> None:
    """Write the indices of `weights` to a stream, and the weights that have none to a list.

    Args:
        starts: what `measure` counted, summed up: the byte at which each segment begins.
        stream: uint8, of the size of all segments and the padding; zeros.
        first_escape: int64 [rows], the number of escapes before each row.
        places, values: of all escapes: the number of the weight (uint32) and its bits (uint16).
    """
    _check(substitute)
    function = _encode_int4 if substitute.is_int4 else _encode_by_table

    def work(start: int, stop: int) -> None:
        parts = (*substitute[:3], weights, start, stop)
        function(*parts, starts, stream, first_escape, places, values)

    in_parts(len(weights), weights.shape[1], work, is_weight=True)


def _check(substitute: Substitute) -> None:
    """Check shapes, because kernels do not check places."""
    rows, half = substitute.pairs.shape
    groups, others = substitute.scales.shape[:: 1 if substitute.is_int4 else -1]
    assert others == rows and groups and half % groups == 0, (substitute.scales.shape, rows)
    check_group(2 * half // groups)
    assert len(substitute.ends) == 2 * LANES


@helper
def _fill_cells(found: Any, ends: Any, numbers: Any, cells: Any) -> None:
    """Compute the cells of a group.

    Args:
        found: the bits of its scale and zero.
        numbers: float32 [34], for temporary values.
        cells: uint32 [4, 16], set to the first values, jumps, widths, and numbers of indices that
            follow the first value without a jump.
    """
    words = numbers.view(np.uint32)
    words[2 * LANES], words[2 * LANES + 1] = usable(found[0], found[1])
    scale, zero = numbers[2 * LANES], numbers[2 * LANES + 1]
    for end in range(_u8(2 * LANES)):
        numbers[end] = _f4(_f4(ends[end] * scale) + zero)
    for code in range(_u8(LANES)):
        one, other = _u4(words[code] >> _u4(16)), _u4(words[code + _u8(LANES)] >> _u4(16))
        least, greatest = min(one, other), max(one, other)
        span = _u4(greatest - least)
        numbers[code] = _f4(_i4(span))  # its exponent is the number of the bits of a small integer
        is_wide = span >= _u4(1 << WIDEST)
        is_around_zero = (greatest >= _u4(0x8000)) & (least < _u4(0x8000)) & is_wide
        first = _u4(greatest - _u4((1 << WIDEST) - 1)) if is_wide else least
        cells[_u8(0), code] = _u4(least - _u4(MIDDLE - 1)) if is_around_zero else first
        cells[_u8(1), code] = _u4(span - _u4(MIDDLE)) if is_around_zero else _u4(0)
    for code in range(_u8(LANES)):
        bits = _i4(_i4(_u4(words[code] >> _u4(23))) - _i4(126))
        width = _u4(min(max(bits, _i4(0)), _i4(WIDEST)))
        cells[_u8(2), code] = width
        has_jump = cells[_u8(1), code] > _u4(0)
        cells[_u8(3), code] = _u4(MIDDLE) if has_jump else _u4(_u4(1) << width)


@helper
def _index(weight: Any, code: Any, cells: Any) -> Any:
    """Return the index of a weight in the cell of its code, or `_NONE`."""
    index = _u4(_u4(weight - cells[_u8(0), code]) & _u4(0xFFFF))
    jump = cells[_u8(1), code]
    after = _u4(_u4(index - jump) & _u4(0xFFFF))
    is_after = (jump > _u4(0)) & (after >= _u4(MIDDLE)) & (after < _u4(1 << WIDEST))
    found = after if is_after else _NONE
    found = index if index < cells[_u8(3), code] else found
    # Around zero, index 0 stands for zero.
    is_taken = (index == _u4(0)) & (jump > _u4(0))
    found = _NONE if is_taken else found
    return _u4(0) if (weight == _u4(0)) & (jump > _u4(0)) else found


def _make_measure(find_scale: Callable[..., Any]) -> Any:
    def measure_rows(
        pairs: Any,
        scales: Any,
        ends: Any,
        weights: Any,
        first: int,
        last: int,
        sizes: Any,
        escapes: Any,
    ) -> None:
        columns = weights.shape[1]
        size = columns // (scales.size // len(pairs))
        numbers, cells = np.empty(2 * LANES + 2, np.float32), np.empty((4, LANES), np.uint32)
        for line in range(first, last):
            row, missing = _u8(line), _u8(0)
            for start in range(0, columns, SEGMENT):
                bits, end = _u8(7), min(start + SEGMENT, columns)
                for begin in range(start, end, size):
                    _fill_cells(find_scale(scales, line, begin // size), ends, numbers, cells)
                    for column in range(_u8(begin), _u8(begin + size)):
                        pair = pairs[row, column >> _u8(1)]
                        code = _u8(_u1(pair >> _u1(4 - 4 * (column & _u8(1)))) & _u1(15))
                        bits += _u8(cells[_u8(2), code])
                        index = _index(_u4(weights[row, column]), code, cells)
                        missing += _u8(index == _NONE)
                sizes[line, start // SEGMENT] = _u4(bits >> _u8(3))
            escapes[line] = missing

    return measure_rows


def _make_encoder(find_scale: Callable[..., Any]) -> Any:
    def encode_rows(
        pairs: Any,
        scales: Any,
        ends: Any,
        weights: Any,
        first: int,
        last: int,
        starts: Any,
        stream: Any,
        first_escape: Any,
        places: Any,
        values: Any,
    ) -> None:
        columns = weights.shape[1]
        size = columns // (scales.size // len(pairs))
        numbers, cells = np.empty(2 * LANES + 2, np.float32), np.empty((4, LANES), np.uint32)
        for line in range(first, last):
            row, escape = _u8(line), _u8(first_escape[line])
            for start in range(0, columns, SEGMENT):
                target, end = _u8(starts[line, start // SEGMENT]), min(start + SEGMENT, columns)
                held, count = _u8(0), _u8(0)  # the bits that are not written yet
                for begin in range(start, end, size):
                    _fill_cells(find_scale(scales, line, begin // size), ends, numbers, cells)
                    for column in range(_u8(begin), _u8(begin + size)):
                        pair, weight = pairs[row, column >> _u8(1)], weights[row, column]
                        code = _u8(_u1(pair >> _u1(4 - 4 * (column & _u8(1)))) & _u1(15))
                        index = _index(_u4(weight), code, cells)
                        if index == _NONE:
                            places[escape] = _u4(row * _u8(columns) + column)
                            values[escape] = weight
                            escape, index = escape + _u8(1), _u4(0)
                        held |= _u8(index) << count
                        count += _u8(cells[_u8(2), code])
                        while count >= _u8(8):
                            stream[target] = _u1(held & _u8(255))
                            held, count, target = held >> _u8(8), count - _u8(8), target + _u8(1)
                if count:
                    stream[target] = _u1(held)

    return encode_rows


_SUBSTITUTE = "u1[:, ::1], u4[:, ::1], f4[::1]"
_MEASURE = f"void({_SUBSTITUTE}, u2[:, ::1], i8, i8, u4[:, ::1], i8[::1])"
_ENCODE = f"void({_SUBSTITUTE}, u2[:, ::1], i8, i8, u4[:, ::1], u1[::1], i8[::1], u4[::1], u2[::1])"
_measure_int4 = kernel(_MEASURE, "measure_cells_int4")(_make_measure(scale_of_int4))
_measure_by_table = kernel(_MEASURE, "measure_cells_by_table")(_make_measure(scale_by_table))
_encode_int4 = kernel(_ENCODE, "encode_cells_int4")(_make_encoder(scale_of_int4))
_encode_by_table = kernel(_ENCODE, "encode_cells_by_table")(_make_encoder(scale_by_table))
