"""Encoding of 32 weights at a time by the numbers of their exponents, as LLVM instructions.

`engine.weights.coding.exponents` defines the code. The exponents of a table form few spans, mostly
one, so a number is found by a difference instead of a look-up for each weight.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
    byte, long = ir.IntType(8), ir.IntType(64)
    narrow, wide = (ir.VectorType(own, RUN) for own in (byte, ir.IntType(16)))

    def all_lanes(kind: Any, value: int) -> Any:
        return ir.Constant(kind, [value] * kind.count)

    def times(value: Any, factor: int) -> Any:
        return builder.mul(value, ir.Constant(long, factor))

    def pointer(memory: Any, at: Any, kind: Any) -> Any:
        return builder.bitcast(builder.gep(memory, [at]), kind.as_pointer())

    def bound(span: Any, part: int) -> Any:
        """Return one of the three bytes of a span in all lanes."""
        at = builder.add(times(span, 3), ir.Constant(long, part))
        nothing = ir.Constant(narrow, ir.Undefined)
        one = builder.insert_element(
            nothing, builder.load(builder.gep(spans, [at])), ir.Constant(ir.IntType(32), 0)
        )
        mask = all_lanes(ir.VectorType(ir.IntType(32), RUN), 0)
        return builder.shuffle_vector(one, nothing, mask)

    @contextmanager
    def loop(steps: Any, *starts: Any) -> Iterator[list[Any]]:
        """Write a loop of at least one step; yield its number and the values that it carries.

        The block replaces these by the next ones, and finds the last ones afterwards.
        """
        before = builder.basic_block
        body, after = builder.append_basic_block("body"), builder.append_basic_block("after")
        builder.branch(body)
        builder.position_at_end(body)
        phis = [builder.phi(own.type) for own in (ir.Constant(long, 0), *starts)]
        values = [*phis]
        yield values
        values[0] = builder.add(phis[0], ir.Constant(long, 1))
        for phi, start, value in zip(phis, (ir.Constant(long, 0), *starts), values, strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(value, builder.basic_block)
        builder.cbranch(builder.icmp_signed("<", values[0], steps), body, after)
        builder.position_at_end(after)

    with loop(count) as (step,):
        at = builder.add(first, times(step, RUN))
        weight = builder.load(pointer(weights, at, wide), align=2)
        exponent = builder.trunc(builder.lshr(weight, all_lanes(wide, 7)), narrow)
        known = ir.Constant(ir.IntType(RUN), 0)
        with loop(num_spans, all_lanes(narrow, 0), known) as found:
            start, last, number = (bound(found[0], part) for part in range(3))
            place = builder.sub(exponent, start)
            is_within = builder.icmp_unsigned("<=", place, last)
            found[1] = builder.select(is_within, builder.add(place, number), found[1])
            found[2] = builder.or_(found[2], builder.bitcast(is_within, known.type))
        pairs = builder.bitcast(found[1], ir.VectorType(ir.IntType(16), RUN // 2))
        upper = builder.shl(pairs, all_lanes(pairs.type, 4))
        lower = builder.lshr(pairs, all_lanes(pairs.type, 8))
        packed = builder.trunc(builder.or_(upper, lower), ir.VectorType(byte, RUN // 2))
        half = builder.lshr(at, ir.Constant(long, 1))
        builder.store(packed, pointer(exponents, half, packed.type), align=1)
        high = builder.and_(builder.lshr(weight, all_lanes(wide, 8)), all_lanes(wide, 0x80))
        low = builder.and_(weight, all_lanes(wide, 0x7F))
        rest = builder.trunc(builder.or_(high, low), narrow)
        builder.store(rest, pointer(fractions, at, narrow), align=1)
        builder.store(builder.not_(found[2]), builder.gep(missing, [step]))


# encode_runs(weights, first, count, spans, num_spans, exponents, fractions, missing) encodes
# 32 * count weights, at least 32 of them:
#     weights[first:] are their bits, of 16 bits each; `first` is even
#     spans has three bytes for each span of exponents that follow each other in the table: the
#         first of them, their number minus 1, and the number of the first one in the table
#     exponents[first / 2:] are set to the numbers of two exponents, the first in the upper half
#     fractions[first:] are set to the signs, in the highest bit, and the fractions
#     missing[i] is set to 32 bits: whether the exponent of each weight of a run is not in the table
encode_runs = emitted(_emit_encode)
