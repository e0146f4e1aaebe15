"""Encoding of 32 weights at a time by the numbers of their exponents, as LLVM instructions.

`engine.weights.coding.exponents` defines the code. The exponents of a table form few spans, mostly
one, so a number is found by a difference instead of a look-up for each weight.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from engine.compiled.cell_vectors import Code
from engine.compiled.compiler import emitted

RUN = 32  # weights of a vector


def _emit_encode(
    ir: Any,
    builder: Any,
    weights: Any,
    first: Any,
    count: Any,
    spans: Any,
    num_spans: Any,
    exponents: Any,
    fractions: Any,
    missing: Any,
) -> None:
    code = Code(ir, builder)
    narrow, wide = (ir.VectorType(ir.IntType(bits), RUN) for bits in (8, 16))
    with _loop(code, count) as (step,):
        at = builder.add(first, builder.mul(step, code.number(RUN)))
        weight = code.load(weights, at, wide)
        exponent = builder.trunc(builder.lshr(weight, _all_lanes(wide, 7)), narrow)
        numbers, lanes = _numbers(code, exponent, spans, num_spans)
        pairs = builder.bitcast(numbers, ir.VectorType(ir.IntType(16), RUN // 2))
        upper = builder.shl(pairs, _all_lanes(pairs.type, 4))
        lower = builder.lshr(pairs, _all_lanes(pairs.type, 8))
        packed = builder.trunc(
            builder.or_(upper, lower), ir.VectorType(ir.IntType(8), pairs.type.count)
        )
        code.store(packed, exponents, builder.lshr(at, code.number(1)))
        sign = builder.and_(builder.lshr(weight, _all_lanes(wide, 8)), _all_lanes(wide, 0x80))
        fraction = builder.and_(weight, _all_lanes(wide, 0x7F))
        code.store(builder.trunc(builder.or_(sign, fraction), narrow), fractions, at)
        code.store(builder.not_(lanes), missing, step)


def _numbers(code: Code, exponent: Any, spans: Any, num_spans: Any) -> tuple[Any, Any]:
    """Return the numbers of exponents, 0 for escapes, and a bit for each lane: whether it has one.

    The arguments are a vector of bytes and two of `encode_runs`.
    """
    ir, builder, kind = code.ir, code.builder, exponent.type

    def bound(span: Any, part: int) -> Any:
        """Return one of the three bytes of a span in all lanes."""
        at = builder.add(builder.mul(span, code.number(3)), code.number(part))
        value = builder.load(builder.gep(spans, [at]))
        nothing = ir.Constant(kind, ir.Undefined)
        one = builder.insert_element(nothing, value, ir.Constant(code.word, 0))
        return builder.shuffle_vector(one, nothing, _all_lanes(ir.VectorType(code.word, RUN), 0))

    none = _all_lanes(kind, 0), ir.Constant(ir.IntType(RUN), 0)
    with _loop(code, num_spans, *none) as found:
        span, numbers, lanes = found
        start, last, number = (bound(span, part) for part in range(3))
        place = builder.sub(exponent, start)
        is_within = builder.icmp_unsigned("<=", place, last)
        found[1] = builder.select(is_within, builder.add(place, number), numbers)
        found[2] = builder.or_(lanes, builder.bitcast(is_within, lanes.type))
    return found[1], found[2]


@contextmanager
def _loop(code: Code, steps: Any, *starts: Any) -> Iterator[list[Any]]:
    """Write a loop of at least one step in a `with` block.

    Yield the number of the step, and then the values that are carried from step to step: the block
    replaces these by the next ones, and finds the last ones in the list afterwards.
    """
    builder, before = code.builder, code.builder.basic_block
    body, after = builder.append_basic_block("body"), builder.append_basic_block("after")
    builder.branch(body)
    builder.position_at_end(body)
    begun = [code.number(0), *starts]
    phis = [builder.phi(start.type) for start in begun]
    values = [*phis]
    yield values
    values[0] = builder.add(phis[0], code.number(1))
    for phi, start, value in zip(phis, begun, values, strict=True):
        phi.add_incoming(start, before)
        phi.add_incoming(value, builder.basic_block)
    builder.cbranch(builder.icmp_signed("<", values[0], steps), body, after)
    builder.position_at_end(after)


def _all_lanes(kind: Any, value: int) -> Any:
    """Return a constant vector of a type with one value in all lanes."""
    return kind([value] * kind.count)


# encode_runs(weights, first, count, spans, num_spans, exponents, fractions, missing) encodes
# 32 * count weights, at least 32 of them:
#     weights[first:] are their bits, of 16 bits each; `first` is even
#     spans has three bytes for each span of exponents that follow each other in the table: the
#         first of them, their number minus 1, and the number of the first one in the table
#     exponents[first / 2:] are set to the numbers of two exponents, the first in the upper half
#     fractions[first:] are set to the signs, in the highest bit, and the fractions
#     missing[i] is set to 32 bits: whether the exponent of each weight of a run is not in the table
encode_runs = emitted(_emit_encode)
