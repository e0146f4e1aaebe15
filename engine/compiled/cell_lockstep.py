"""Decoding of 16 rows of cell-coded weights in lockstep.

A lane is a row: the place in a row's bits follows from the codes before it, so the rows of a vector
do not wait for each other. `engine.weights.coding.cells` defines the code. This is for processors
for which `cell_rows` is slower, because they look up the lanes of a vector one after the other.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from engine.compiled.cell_layout import (
    PADDING,
    SEGMENT,
    TILE,
    scale_by_table,
    scale_of_int4,
    usable,
)
from engine.compiled.cell_vectors import (
    LANES,
    MIDDLE,
    Code,
    Words,
    find_cell,
    transpose_bytes,
    transpose_words,
)
from engine.compiled.compiler import emitted, helper, kernel

_u1, _u4, _u8 = np.uint8, np.uint32, np.uint64


def _computed_reaches(code: Code, codes: Words) -> tuple[Words, Words]:
    """Return the ends of int4's cells in steps, as `INT4` of engine.weights.coding.cells."""
    centre = code.floats_of(codes)
    half = [Words(code, code.ir.Constant(code.floats, [own] * LANES)) for own in (8.5, 7.5)]
    low, high = (Words(code, code.builder.fsub(centre.value, own.value)) for own in half)
    return codes.is_equal(0).select(-9.5, low), codes.is_equal(15).select(8.5, high)


def _looked_up_reaches(code: Code, codes: Words, ends: Any) -> tuple[Words, Words]:
    """Return the ends of cells from a table of 16 lower ends, then 16 upper ones."""
    tables = [code.load(ends, code.number(first), code.floats) for first in (0, LANES)]
    return code.look_up(tables[0], codes), code.look_up(tables[1], codes)


def _value(code: Code, bits: Words, first: Words, jump: Words, width: Words) -> Words:
    """Return the values of the indices in the lowest bits."""
    index = bits & ((code.all_lanes(1) << width) - 1)
    is_after = code.all_lanes(MIDDLE - 1) < index
    is_zero = index.is_equal(0) & (code.all_lanes(0) < jump)
    return is_zero.select(0, first + index + is_after.select(jump, 0))


def _emit_decode(
    ir: Any,
    builder: Any,
    pairs: Any,
    scales: Any,
    stream: Any,
    base: Any,
    limit: Any,
    offsets: Any,
    out: Any,
    count: Any,
    *ends: Any,
) -> None:
    code = Code(ir, builder)
    scale, zero = (
        Words(code, code.load(scales, code.number(at), code.floats)) for at in (0, LANES)
    )
    start = code.load(offsets, code.number(0), code.words)
    before = builder.basic_block
    body, after = builder.append_basic_block("pairs"), builder.append_basic_block("after")
    builder.branch(body)
    builder.position_at_end(body)
    step, carried = builder.phi(code.long), builder.phi(code.words)
    offset = Words(code, carried)
    narrow = ir.VectorType(ir.IntType(8), LANES)
    pair = Words(
        code,
        builder.zext(
            code.load(pairs, builder.mul(step, code.number(LANES)), narrow),
            code.words,
        ),
    )
    cells = []
    for codes in (pair >> 4, pair & 15):
        reaches = _looked_up_reaches(code, codes, *ends) if ends else _computed_reaches(code, codes)
        cells.append(find_cell(code, *(own.times_plus(scale, zero) for own in reaches)))
    last = code.all_lanes_of(limit)
    byte = (offset >> 3 < last).select(offset >> 3, last)

    def window(lane: Any) -> Any:  # 32 bits hold two indices and the 7 bits before them
        at = builder.zext(builder.extract_element(byte.value, lane), code.long)
        return code.load(stream, builder.add(base, at), code.word)

    bits = Words(code, code.collect(code.words, window)) >> (offset & 7)
    values = []
    for cell in cells:
        values.append(_value(code, bits, *cell))
        bits, offset = bits >> cell[2], offset + cell[2]
    joined = (values[0] & 0xFFFF) | (values[1] << 16)
    code.store(joined.value, out, builder.mul(step, code.number(LANES)))
    following = builder.add(step, code.number(1))
    step.add_incoming(code.number(0), before)
    step.add_incoming(following, body)
    carried.add_incoming(start, before)
    carried.add_incoming(offset.value, body)
    builder.cbranch(builder.icmp_signed("<", following, count), body, after)
    builder.position_at_end(after)
    code.store(offset.value, offsets, code.number(0))


# decode_pairs(pairs, scales, stream, base, limit, offsets, out, count) decodes 2 * count weights of
# each of 16 rows, which share a scale and a zero in a row:
#     pairs[i * 16 + row] has the codes of the weights 2 i (in its upper half) and 2 i + 1
#     scales[row], scales[16 + row] are the scale and the zero, float32
#     offsets[row] is the bit of stream[base:] at which the first index begins, and is set to the
#         bit after the last one; no byte is read from stream[base + limit + 4] on
#     out[i * 16 + row] is set to the two weights, in 16 bits each, the first in the lower
# decode_pairs_by_table(..., ends) is the same for cells whose lower ends are ends[code], and whose
# upper ends are ends[16 + code].
decode_pairs = emitted(_emit_decode)
decode_pairs_by_table = emitted(partial(_emit_decode))


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
        half, groups = out.shape[1] // 2, scales.size // len(places)
        size = 2 * half // groups
        rows, offsets = np.empty(LANES, np.int64), np.empty(LANES, np.uint32)
        row_places, out_places = np.empty(LANES, np.int64), np.empty(LANES, np.int64)
        codes, tile = np.empty(TILE // 2 * LANES, np.uint8), np.empty(TILE // 2 * LANES, np.uint32)
        tile_places, scale = np.arange(LANES) * LANES, np.empty(2 * LANES, np.uint32)
        flat_out = out.view(np.uint32).reshape(-1)
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
    decode_pairs(codes, scales, stream, base, limit, offsets, out, count)


_COPY = "u1[::1], i8[::1], i8[::1], u1[::1], u4[:, ::1], f4[::1]"
_DECODE = f"void({_COPY}, i8, u1[::1], u4[:, ::1], i8, i8, u2[:, ::1])"
decode_int4 = kernel(_DECODE, "decode_int4_in_lockstep")(
    _make_decoder(scale_of_int4, _decode_by_formula)
)
decode_by_table = kernel(_DECODE, "decode_by_table_in_lockstep")(
    _make_decoder(scale_by_table, decode_pairs_by_table)
)
