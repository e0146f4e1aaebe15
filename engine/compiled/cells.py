"""Compiled decoding of weights that travel as indices into the cells of their 4-bit codes.

`engine.weights.coding.cells` defines the code, and has operations of torch with the same bits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from engine.compiled.cell_vectors import (
    LANES,
    decode_by_table,
    decode_int4,
    transpose_bytes,
    transpose_words,
)
from engine.compiled.compiler import helper, kernel
from engine.compiled.filling import in_parts

TILE = 32  # columns that are decoded before they are put into the order of rows
SEGMENT = 1024  # weights of a row whose indices begin at a byte that is stored
PADDING = 4  # bytes after the last index, which the decoder reads
# The bits of float32: scales of 2^-26 to 2^101 are used. A group of a smaller one is constant, of
# the value of its zero, or 0 if that is less than 2^-22.
LEAST_SCALE, GREATEST_SCALE = 101 << 23, 228 << 23
LEAST_ZERO = 105 << 23
INFINITY = 0x7F800000

_u1, _u4, _u8 = np.uint8, np.uint32, np.uint64


class Copy(NamedTuple):
    """A 4-bit copy of a weight as a kernel keeps it, in numpy arrays.

    A code is in the half of the byte `places[row] + column * steps[row]` that is `shifts[row]` bits
    up. If `steps` are 0, codes are in the order of rows: in the byte `places[row] + column / 2`,
    the first of two in the upper half.

    Args:
        memory: the codes, uint8, flat.
        places: int64 [rows].
        steps: int64 [rows].
        shifts: 0 or 4, uint8 [rows].
        scales: the bits of scale and zero. Int4: uint32 [groups, rows], two values of bfloat16, the
            scale in the lower half. By a table: uint32 [rows, groups], a value of float32.
        ends: the ends of the cells in steps, float32 [32]: 16 lower ones, then 16 upper ones.
        is_int4: whether the cells are those of int4, whose ends need no table.
    """

    memory: Any
    places: Any
    steps: Any
    shifts: Any
    scales: Any
    ends: Any
    is_int4: bool


def decode(copy: Copy, first: int, stream: Any, starts: Any, out: Any) -> None:
    """Fill weights, of which escapes get any value, with the weights of a stream.

    Args:
        first: the row of the copy that belongs to the first row of the weight.
        stream: uint8, with `PADDING` bytes after the last index.
        starts: uint32 [rows, segments], the byte at which the indices of a segment begin.
        out: uint32 [rows, columns / 2], two weights of 16 bits each.
    """
    _check(copy, first, stream, starts, out)
    function = _decode_int4 if copy.is_int4 else _decode_by_table

    def work(start: int, stop: int) -> None:
        own = start * LANES, min(stop * LANES, len(out))
        function(*copy[:6], first, stream, starts, *own, out)

    in_parts(-(-len(out) // LANES), LANES * 2 * out.shape[1], work, is_weight=True)


def _check(copy: Copy, first: int, stream: Any, starts: Any, out: Any) -> None:
    """Check shapes and places, because kernels do not: with wrong ones they read other memory."""
    rows, half = out.shape
    groups, height = copy.scales.shape[:: 1 if copy.is_int4 else -1]
    own = slice(first, first + rows)
    places, steps = copy.places[own], copy.steps[own]
    assert len(places) == len(steps) == len(copy.shifts[own]) == rows, (first, rows)
    assert height >= first + rows and groups and 2 * half % groups == 0, (copy.scales.shape, rows)
    check_group(2 * half // groups)
    last = places + np.where(steps == 0, half - 1, (2 * half - 1) * steps)
    assert places.min() >= 0 and last.max() < len(copy.memory), "codes lie beyond the copy"
    assert starts.shape == (rows, -(-2 * half // SEGMENT)), starts.shape
    assert len(stream) >= PADDING and len(copy.ends) == 2 * LANES


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


@helper
def _take_codes(
    memory: Any, rows: Any, places: Any, steps: Any, shifts: Any, column: int, codes: Any
) -> None:
    """Fill pairs of codes of 16 rows and `TILE` columns, from an order with steps."""
    one, at = _u8(rows[0]), _u8(places[rows[0]])
    is_run = True  # whether the codes of all rows lie side by side
    for lane in range(LANES):
        row = _u8(rows[lane])
        is_run &= places[row] == places[one] + lane and shifts[row] == shifts[one]
        is_run &= steps[row] == steps[one]
    if is_run:
        step, shift = _u8(steps[one]), shifts[one]
        for pair in range(_u8(TILE // 2)):
            place = at + _u8(_u8(column) + _u8(2) * pair) * step
            for lane in range(_u8(LANES)):
                upper = _u1(_u1(memory[place + lane] >> shift) & _u1(15))
                lower = _u1(_u1(memory[place + step + lane] >> shift) & _u1(15))
                codes[pair * _u8(LANES) + lane] = _u1(_u1(upper << _u1(4)) | lower)
        return
    for lane in range(_u8(LANES)):
        row = _u8(rows[lane])
        step, shift = _u8(steps[row]), shifts[row]
        for pair in range(_u8(TILE // 2)):
            place = _u8(places[row]) + _u8(_u8(column) + _u8(2) * pair) * step
            upper = _u1(_u1(memory[place] >> shift) & _u1(15))
            lower = _u1(_u1(memory[place + step] >> shift) & _u1(15))
            codes[pair * _u8(LANES) + lane] = _u1(_u1(upper << _u1(4)) | lower)


def _make_decoder(find_scale: Callable[..., Any], decode_pairs: Callable[..., None]) -> Any:
    def decode_rows(
        memory: Any,
        places: Any,
        steps: Any,
        shifts: Any,
        scales: Any,
        ends: Any,
        before: int,
        stream: Any,
        starts: Any,
        first: int,
        last: int,
        out: Any,
    ) -> None:
        half, groups = out.shape[1], scales.size // len(places)
        size = 2 * half // groups
        rows, offsets = np.empty(LANES, np.int64), np.empty(LANES, np.uint32)
        row_places, out_places = np.empty(LANES, np.int64), np.empty(LANES, np.int64)
        codes, tile = np.empty(TILE // 2 * LANES, np.uint8), np.empty(TILE // 2 * LANES, np.uint32)
        tile_places, scale = np.arange(LANES) * LANES, np.empty(2 * LANES, np.uint32)
        flat_out = out.reshape(-1)
        for row in range(first, last, LANES):
            for lane in range(LANES):  # lanes after the last row decode that row again
                own = min(row + lane, last - 1)
                rows[lane], out_places[lane] = before + own, own * half
                row_places[lane] = places[before + own]
            end = len(stream) - PADDING
            base = np.int64(starts[row, 0])
            if base > end:
                base = np.int64(end)
            limit = end - base
            for begin in range(0, 2 * half, TILE):
                if begin % SEGMENT == 0:
                    for lane in range(LANES):
                        start = np.int64(starts[rows[lane] - before, begin // SEGMENT]) - base
                        offsets[lane] = _u4(start << 3)
                if begin % size == 0:
                    for lane in range(LANES):
                        found = find_scale(scales, rows[lane], begin // size)
                        scale[lane], scale[LANES + lane] = usable(found[0], found[1])
                if steps[rows[0]] == 0:
                    transpose_bytes(memory, row_places, begin // 2, codes, tile_places, 0)
                else:
                    _take_codes(memory, rows, places, steps, shifts, begin, codes)
                floats = scale.view(np.float32)
                decode_pairs(codes, floats, stream, base, limit, offsets, tile, TILE // 2, ends)
                transpose_words(tile, tile_places, 0, flat_out, out_places, begin // 2)

    return decode_rows


@helper
def _decode_by_formula(
    codes: Any,
    scales: Any,
    stream: Any,
    base: int,
    limit: int,
    offsets: Any,
    out: Any,
    count: int,
    ends: Any,
) -> None:
    decode_int4(codes, scales, stream, base, limit, offsets, out, count)


_COPY = "u1[::1], i8[::1], i8[::1], u1[::1], u4[:, ::1], f4[::1]"
_DECODE = f"void({_COPY}, i8, u1[::1], u4[:, ::1], i8, i8, u4[:, ::1])"
_decode_int4 = kernel(_DECODE, "decode_cells_int4")(
    _make_decoder(scale_of_int4, _decode_by_formula)
)
_decode_by_table = kernel(_DECODE, "decode_cells_by_table")(
    _make_decoder(scale_by_table, decode_by_table)
)
