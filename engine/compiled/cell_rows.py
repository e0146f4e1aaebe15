"""Decoding of rows of cell-coded weights, 32 weights of a row at a time.

`engine.weights.coding.cells` defines the code. A lane is first a code, to compute the cells of a
group, and then a weight: it looks up its cell, and the sum of the widths before it says where its
index begins. This is for processors that look up all lanes with one instruction.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from engine.compiled.cell_layout import SEGMENT, TILE, scale_by_table, scale_of_int4, usable
from engine.compiled.cell_vectors import LANES, MIDDLE, Code, Words, find_cell, transpose_bytes
from engine.compiled.compiler import emitted, helper, kernel

WINDOW = 64  # bytes that are read for a run, whose indices take at most 45 of them
_WORD = 16  # bits of a weight, and of a word of the window

_u1, _u8 = np.uint8, np.uint64


def _emit_decode(
    ir: Any,
    builder: Any,
    codes: Any,
    codes_at: Any,
    shift: Any,
    ends: Any,
    scales: Any,
    groups: Any,
    tiles: Any,
    stream: Any,
    length: Any,
    tail: Any,
    start: Any,
    out: Any,
    out_at: Any,
) -> None:
    code = Code(ir, builder)
    reaches = [Words(code, code.load(ends, code.number(at), code.floats)) for at in (0, LANES)]
    shifts = _in_tile(code, builder.trunc(shift, ir.IntType(8)))
    before = builder.basic_block
    of_group, of_tile, after_group, after = (
        builder.append_basic_block(name) for name in ("group", "tile", "after_group", "after")
    )
    builder.branch(of_group)
    builder.position_at_end(of_group)
    group, first_tile, first_bit = (builder.phi(code.long) for _ in range(3))
    tables = _tables(code, reaches, scales, group)
    last_tile = builder.add(first_tile, tiles)
    builder.branch(of_tile)
    builder.position_at_end(of_tile)
    tile, bit = builder.phi(code.long), builder.phi(code.long)
    at = builder.mul(tile, code.number(TILE))
    kind = ir.VectorType(ir.IntType(8), TILE)
    found = builder.lshr(code.load(codes, builder.add(codes_at, at), kind), shifts)
    own = Words(code, builder.and_(found, ir.Constant(kind, [15] * TILE)))
    window = _window(code, stream, length, tail, builder.lshr(bit, code.number(3)))
    values, width = _values(code, own, tables, window, builder.and_(bit, code.number(7)))
    code.store(values.value, out, builder.add(out_at, at))
    next_tile, next_bit = builder.add(tile, code.number(1)), builder.add(bit, width)
    builder.cbranch(builder.icmp_signed("<", next_tile, last_tile), of_tile, after_group)
    for phi, first, following in ((tile, first_tile, next_tile), (bit, first_bit, next_bit)):
        phi.add_incoming(first, of_group)
        phi.add_incoming(following, of_tile)
    builder.position_at_end(after_group)
    next_group = builder.add(group, code.number(1))
    builder.cbranch(builder.icmp_signed("<", next_group, groups), of_group, after)
    none = code.number(0)
    carried = (group, none, next_group), (first_tile, none, next_tile), (first_bit, start, next_bit)
    for phi, first, following in carried:
        phi.add_incoming(first, before)
        phi.add_incoming(following, after_group)
    builder.position_at_end(after)


def _in_tile(code: Code, value: Any) -> Any:
    """Return a vector with a value in the lanes of all weights of a tile."""
    return code.collect(code.ir.VectorType(value.type, TILE), lambda _: value)


def _tables(code: Code, reaches: list[Words], scales: Any, group: Any) -> list[Any]:
    """Return first values, jumps and widths of the cells of a group by code, in a tile's lanes."""
    builder = code.builder
    place = builder.mul(group, code.number(2))

    def in_all_lanes(at: int) -> Words:
        value = builder.load(builder.gep(scales, [builder.add(place, code.number(at))]))
        return Words(code, code.collect(code.floats, lambda _: value))

    scale, zero = in_all_lanes(0), in_all_lanes(1)
    cell = find_cell(code, *(own.times_plus(scale, zero) for own in reaches))
    order = [*range(LANES)] * (TILE // LANES)
    lanes = code.ir.Constant(code.ir.VectorType(code.word, TILE), order)
    found = []
    # Widths are bytes: LLVM would join a look-up of 16-bit widths with the first shift of `_sums`,
    # and then look up each lane by itself.
    for own, bits in zip(cell, (_WORD, _WORD, 8), strict=True):
        table = builder.trunc(own.value, code.ir.VectorType(code.ir.IntType(bits), LANES))
        found.append(builder.shuffle_vector(table, table, lanes))
    return found


def _window(code: Code, stream: Any, length: Any, tail: Any, byte: Any) -> Any:
    """Return the words of the stream from a byte on. A damaged place reads the end of the tail."""
    builder = code.builder
    none = code.number(0)
    first = builder.sub(length, code.number(WINDOW - 1))  # byte from which on the tail is read
    first = builder.select(builder.icmp_signed("<", first, none), none, first)
    byte = builder.select(builder.icmp_signed("<", length, byte), length, byte)
    places = builder.gep(stream, [byte]), builder.gep(tail, [builder.sub(byte, first)])
    pointer = builder.select(builder.icmp_signed("<", byte, first), *places)
    kind = code.ir.VectorType(code.ir.IntType(_WORD), TILE)
    return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=1)


def _values(
    code: Code, codes: Words, tables: list[Any], window: Any, first_bit: Any
) -> tuple[Words, Any]:
    """Return the weights of a tile, and the number of bits of their indices."""
    builder, ir = code.builder, code.ir
    words = ir.VectorType(ir.IntType(_WORD), TILE)
    width = Words(code, builder.zext(code.look_up(tables[2], codes).value, words))
    codes = Words(code, builder.zext(codes.value, words))
    first, jump = (code.look_up(table, codes) for table in tables[:2])
    ends = _sums(code, width)
    place = ends - width + Words(code, _in_tile(code, builder.trunc(first_bit, ir.IntType(_WORD))))
    word = place >> 4
    one, other = code.look_up(window, word), code.look_up(window, word + 1)
    kind = window.type
    # Two words of 16 bits, joined and shifted right by the last four bits of the place (modulo 16).
    signature = ir.FunctionType(kind, [kind] * 3)
    name = f"llvm.fshr.v{TILE}i{_WORD}"
    shift = builder.module.globals.get(name) or ir.Function(builder.module, signature, name)
    bits = Words(code, builder.call(shift, [other.value, one.value, place.value]))
    index = bits & ((Words(code, ir.Constant(kind, [1] * TILE)) << width) - 1)
    none = Words(code, ir.Constant(kind, [0] * TILE))
    is_after = Words(code, ir.Constant(kind, [MIDDLE - 1] * TILE)) < index
    is_zero = index.is_equal(0) & ~jump.is_equal(0)
    found = is_zero.select(none, first + index + is_after.select(jump, 0))
    total = builder.extract_element(ends.value, ir.Constant(code.word, TILE - 1))
    return found, builder.zext(total, code.long)


def _sums(code: Code, widths: Words) -> Words:
    """Return the sum of each width and those before it."""
    kind, builder = widths.value.type, code.builder
    none = code.ir.Constant(kind, [0] * TILE)
    step = 1
    while step < TILE:
        lanes = [lane - step if lane >= step else TILE for lane in range(TILE)]
        order = code.ir.Constant(code.ir.VectorType(code.word, TILE), lanes)
        widths = widths + Words(code, builder.shuffle_vector(widths.value, none, order))
        step *= 2
    return widths


# decode_row(codes, codes_at, shift, ends, scales, groups, tiles, stream, length, tail, start, out,
# out_at) decodes groups * tiles * 32 weights of a row:
#     codes[codes_at + i] >> shift has the code of the weight i in its four lowest bits
#     ends[code] and ends[16 + code] are the ends of the cell of a code in steps, float32
#     scales[2 g] and scales[2 g + 1] are the scale and the zero of the group g, float32
#     stream has `length` bytes, with padding; the first index begins at the bit `start`
#     tail has the bytes of the stream from length - 63 on (all, if there are fewer), and 64 more
#     out[out_at + i] is set to the weight i, 16 bits
decode_row = emitted(_emit_decode)


@helper
def _take_codes(
    memory: Any,
    places: Any,
    steps: Any,
    shifts: Any,
    row: int,
    rows: int,
    column: int,
    count: int,
    codes: Any,
) -> Any:
    """Fill the codes of up to 16 rows, `count` each, and return by how many bits they are shifted.

    Args:
        codes: uint8, flat.
    """
    one, step, columns = places[row], steps[row], _u8(count)
    is_run = rows == LANES and step > 0  # whether the codes of all rows lie side by side
    for lane in range(rows):
        own = row + lane
        is_run &= places[own] == one + lane and steps[own] == step and shifts[own] == shifts[row]
    if is_run:
        source_places, out_places = np.empty(LANES, np.int64), np.empty(LANES, np.int64)
        for lane in range(LANES):
            source_places[lane], out_places[lane] = lane * step, lane * count
        for at in range(0, count, LANES):
            source_at = one + (column + at) * step
            transpose_bytes(memory, source_places, source_at, codes, out_places, at)
        return shifts[row]
    for lane in range(rows):
        place, step, shift = _u8(places[row + lane]), _u8(steps[row + lane]), shifts[row + lane]
        first = _u8(lane) * columns
        if step == _u8(0):
            place += _u8(column) >> _u8(1)
            for pair in range(columns >> _u8(1)):
                both = memory[place + pair]
                codes[first + _u8(2) * pair] = both >> _u1(4)
                codes[first + _u8(2) * pair + _u8(1)] = both & _u1(15)
        else:
            for at in range(columns):
                codes[first + at] = memory[place + (_u8(column) + at) * step] >> shift
    return 0


def _make_decoder(find_scale: Callable[..., Any]) -> Any:
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
        columns, groups, length = out.shape[1], scales.size // len(places), len(stream)
        size = columns // groups
        tail = np.zeros(2 * WINDOW, np.uint8)
        for byte in range(min(length, WINDOW - 1)):
            tail[byte] = stream[max(length - WINDOW + 1, 0) + byte]
        codes, scale = np.empty(LANES * SEGMENT, np.uint8), np.empty(2 * SEGMENT // TILE, np.uint32)
        for row in range(first, last, LANES):
            rows = min(LANES, last - row)
            for begin in range(0, columns, SEGMENT):
                count, segment = min(SEGMENT, columns - begin), begin // SEGMENT
                shift = _take_codes(
                    memory, places, steps, shifts, before + row, rows, begin, count, codes
                )
                for lane in range(rows):
                    for group in range(count // size):
                        found = find_scale(scales, before + row + lane, begin // size + group)
                        scale[2 * group], scale[2 * group + 1] = usable(found[0], found[1])
                    decode_row(
                        codes,
                        lane * count,
                        shift,
                        ends,
                        scale.view(np.float32),
                        count // size,
                        size // TILE,
                        stream,
                        length,
                        tail,
                        np.int64(starts[row + lane, segment]) << 3,
                        out,
                        (row + lane) * columns + begin,
                    )

    return decode_rows


_COPY = "u1[::1], i8[::1], i8[::1], u1[::1], u4[:, ::1], f4[::1]"
_DECODE = f"void({_COPY}, i8, u1[::1], u4[:, ::1], i8, i8, u2[:, ::1])"
decode_int4 = kernel(_DECODE, "decode_int4_by_rows")(_make_decoder(scale_of_int4))
decode_by_table = kernel(_DECODE, "decode_by_table_by_rows")(_make_decoder(scale_by_table))
