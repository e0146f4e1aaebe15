"""Encoding of 16 weights at a time as indices into cells, written as LLVM instructions.

`engine.weights.coding.cells` defines the code. A lane is first a code, to compute the cells of a
group, and then a weight. The loops that numba compiles take eight times as long.
"""

from typing import Any

from engine.compiled.cell_vectors import LANES, MIDDLE, WIDEST, Code, Words, find_cell
from engine.compiled.compiler import emitted

_VALUES = 0xFFFF
_WIDTH_AT = 16  # the bit of a word at which the width follows the first value
_QUAD = 4  # weights whose indices are written at once


def _emit_encode(
    ir: Any,
    builder: Any,
    pairs: Any,
    pair_at: Any,
    weights: Any,
    weight_at: Any,
    count: Any,
    ends: Any,
    scales: Any,
    stream: Any,
    state: Any,
    missing: Any,
    missing_at: Any,
) -> None:
    code = Code(ir, builder)
    cells = _cells(code, ends, scales)
    places = [builder.gep(state, [code.number(number)]) for number in range(3)]
    starts = [builder.load(place) for place in places]
    before = builder.basic_block
    body, after = builder.append_basic_block("weights"), builder.append_basic_block("after")
    builder.branch(body)
    builder.position_at_end(body)
    step, *carried = (builder.phi(code.long) for _ in range(4))
    weight = _load_wide(code, weights, builder.add(weight_at, _times(code, step, LANES)), 16)
    pair = code.load(
        pairs,
        builder.add(pair_at, _times(code, step, LANES // 2)),
        ir.VectorType(ir.IntType(8), LANES // 2),
    )
    index, width, is_found = _indices(code, weight, _codes(code, pair), cells)
    mask = builder.bitcast(builder.not_(is_found.value), ir.IntType(LANES))
    code.store(mask, missing, builder.add(missing_at, step))
    values, widths = _joined(code, index.value, width.value)
    left = carried
    for quad in range(LANES // _QUAD):
        number = ir.Constant(code.word, quad)
        own = (builder.extract_element(each, number) for each in (values, widths))
        left = _write(code, stream, left, *own)
    following = builder.add(step, code.number(1))
    for phi, start, value in zip(
        (step, *carried), (code.number(0), *starts), (following, *left), strict=True
    ):
        phi.add_incoming(start, before)
        phi.add_incoming(value, body)
    builder.cbranch(builder.icmp_signed("<", following, count), body, after)
    builder.position_at_end(after)
    for value, place in zip(left, places, strict=True):
        builder.store(value, place)


def _cells(code: Code, ends: Any, scales: Any) -> tuple[Any, Any]:
    """Return the cells of all codes: vectors of first values with widths, and of jumps."""
    builder = code.builder

    def in_all_lanes(at: int) -> Words:
        value = builder.bitcast(
            builder.load(builder.gep(scales, [code.number(at)])), code.ir.FloatType()
        )
        return Words(code, code.collect(code.floats, lambda _: value))

    scale, zero = in_all_lanes(0), in_all_lanes(1)
    low, high = (
        Words(code, code.load(ends, code.number(at), code.floats)).times_plus(scale, zero)
        for at in (0, LANES)
    )
    first, jump, width = find_cell(code, low, high)
    return ((first & _VALUES) | (width << _WIDTH_AT)).value, jump.value


def _codes(code: Code, pair: Any) -> Words:
    """Return the codes of 16 weights, whose bytes have the first of two in the upper half."""
    builder, half = code.builder, LANES // 2
    upper = builder.lshr(pair, code.ir.Constant(pair.type, [4] * half))
    lower = builder.and_(pair, code.ir.Constant(pair.type, [15] * half))
    order = [number // 2 + number % 2 * half for number in range(LANES)]
    mixed = builder.shuffle_vector(upper, lower, code.ir.Constant(code.words, order))
    return Words(code, builder.zext(mixed, code.words))


def _indices(
    code: Code, weight: Words, codes: Words, cells: tuple[Any, Any]
) -> tuple[Words, Words, Words]:
    """Return the indices of weights, 0 for escapes, their widths, and whether they are none."""
    cell, jump = (code.look_up(table, codes) for table in cells)
    width, index = cell >> _WIDTH_AT, (weight - (cell & _VALUES)) & _VALUES
    has_jump = code.all_lanes(0) < jump
    after = (index - jump) & _VALUES
    is_after = has_jump & (code.all_lanes(MIDDLE - 1) < after) & (after < 1 << WIDEST)
    # Around zero, index 0 stands for zero.
    none = has_jump.select(code.all_lanes(0), -1)
    is_before = (none < index) & (index < has_jump.select(MIDDLE, code.all_lanes(1) << width))
    is_zero = has_jump & weight.is_equal(0)
    found = is_before.select(index, is_after.select(after, 0))
    return is_zero.select(0, found), width, is_zero | is_before | is_after


def _joined(code: Code, values: Any, widths: Any) -> tuple[Any, Any]:
    """Return the bits of four weights each, the first in the lowest ones, and their numbers.

    Both are vectors of four words of 64 bits.
    """
    builder, ir, lanes = code.builder, code.ir, LANES
    while lanes > LANES // _QUAD:
        lanes //= 2
        kind = ir.VectorType(code.word, lanes)
        even, odd = (ir.Constant(kind, [*range(at, 2 * lanes, 2)]) for at in (0, 1))
        first, one = (builder.shuffle_vector(own, own, even) for own in (values, widths))
        second, other = (builder.shuffle_vector(own, own, odd) for own in (values, widths))
        if lanes == LANES // _QUAD:
            wide = ir.VectorType(code.long, lanes)
            first, second, one, other = (
                builder.zext(own, wide) for own in (first, second, one, other)
            )
        values = builder.or_(first, builder.shl(second, one))
        widths = builder.add(one, other)
    return values, widths


def _write(code: Code, stream: Any, left: Any, value: Any, width: Any) -> list[Any]:
    """Write bits, and return the new state. It writes up to 7 bytes too many, which follow later.

    Args:
        left: the place of the first byte that is not full, its bits, and their number.
    """
    builder = code.builder
    target, held, count = left
    held = builder.or_(held, builder.shl(value, count))
    code.store(held, stream, target)
    count = builder.add(count, width)
    target = builder.add(target, builder.lshr(count, code.number(3)))
    held = builder.lshr(held, builder.and_(count, code.number(56)))
    return [target, held, builder.and_(count, code.number(7))]


def _load_wide(code: Code, memory: Any, at: Any, bits: int) -> Words:
    narrow = code.load(memory, at, code.ir.VectorType(code.ir.IntType(bits), LANES))
    return Words(code, code.builder.zext(narrow, code.words))


def _times(code: Code, value: Any, factor: int) -> Any:
    return code.builder.mul(value, code.number(factor))


# encode_group(pairs, pair_at, weights, weight_at, count, ends, scales, stream, state, missing,
# missing_at) writes the indices of 16 * count weights, which share a scale and a zero, to a stream:
#     pairs[pair_at:] has the codes of two weights each, the first in the upper half
#     weights[weight_at:] are their bits
#     ends[code] and ends[16 + code] are the ends of the cell of a code in steps
#     scales[0] and scales[1] are the bits of the scale and the zero
#     state is the place of the first byte of the stream that is not full, its bits and their number
#     missing[missing_at + i] is set to 16 bits: whether each weight of a run is an escape
# Seven bytes after the last one are written, too.
encode_group = emitted(_emit_encode)
