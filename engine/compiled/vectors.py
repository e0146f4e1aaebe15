"""Operations of kernels on vectors of 16 float32 values, written as LLVM instructions.

numba has no vectors. The loops that it compiles keep sums in memory and compare addresses before
each row, which takes two to three times as long.

A product is rounded before it is added, and products are added in their order. So operations of
torch give the same bits, and so does every processor, with any width of vectors.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from engine.compiled import formulas
from engine.compiled.compiler import emitted

LANES = 16
ROWS = 4  # whose sums are computed together; their vectors fit the registers of AVX2 too
_INFINITY = 0x7F800000


class Vector:
    """16 values while code is written: its operators write the instructions that compute them."""

    def __init__(self, ir: Any, builder: Any, value: Any) -> None:
        self.ir = ir
        self.builder = builder
        self.value = value

    def of(self, value: Any) -> Any:
        """Return a vector, a number for all lanes or an instruction's result as such a result."""
        if isinstance(value, Vector):
            return value.value
        if isinstance(value, float):
            return self.ir.Constant(self.value.type, [value] * LANES)
        return value

    def __add__(self, other: Any) -> "Vector":
        return self._with(self.builder.fadd(self.value, self.of(other)))

    def __sub__(self, other: Any) -> "Vector":
        return self._with(self.builder.fsub(self.value, self.of(other)))

    def __mul__(self, other: Any) -> "Vector":
        return self._with(self.builder.fmul(self.value, self.of(other)))

    def __truediv__(self, other: Any) -> "Vector":
        return self._with(self.builder.fdiv(self.value, self.of(other)))

    def __lt__(self, other: Any) -> "Vector":
        return self._with(self.builder.fcmp_ordered("<", self.value, self.of(other)))

    def __eq__(self, other: Any) -> "Vector":  # type: ignore[override]  # one result for each lane
        return self._with(self.builder.fcmp_ordered("==", self.value, self.of(other)))

    def __or__(self, other: "Vector") -> "Vector":
        return self._with(self.builder.or_(self.value, other.value))

    def _with(self, value: Any) -> "Vector":
        return Vector(self.ir, self.builder, value)


class Code:
    """The places and loops of a function that is being written, and `formulas.Operations`."""

    def __init__(self, ir: Any, builder: Any) -> None:
        self.ir = ir
        self.builder = builder
        self.long = ir.IntType(64)
        self.vector = ir.VectorType(ir.FloatType(), LANES)
        self.words = ir.VectorType(ir.IntType(32), LANES)

    def number(self, value: int) -> Any:
        return self.ir.Constant(self.long, value)

    def place(self, at: Any, number: Any, step: Any) -> Any:
        """Return at + number * step."""
        return self.builder.add(at, self.builder.mul(number, step))

    def load(self, memory: Any, at: Any) -> Vector:
        """Return the 16 values from a place of a flat array on."""
        pointer = self.builder.bitcast(self.builder.gep(memory, [at]), self.vector.as_pointer())
        return Vector(self.ir, self.builder, self.builder.load(pointer, align=4))

    def store(self, vector: Vector, memory: Any, at: Any) -> None:
        pointer = self.builder.bitcast(self.builder.gep(memory, [at]), self.vector.as_pointer())
        self.builder.store(vector.value, pointer, align=4)

    def spread(self, value: Any) -> Vector:
        """Return a vector with one value in all lanes."""
        nothing = self.ir.Constant(self.vector, self.ir.Undefined)
        first = self.builder.insert_element(
            nothing, value, self.ir.Constant(self.ir.IntType(32), 0)
        )
        lanes = self.ir.Constant(self.words, [0] * LANES)
        return Vector(self.ir, self.builder, self.builder.shuffle_vector(first, nothing, lanes))

    @contextmanager
    def loop(self, count: Any, starts: Sequence[Any]) -> Iterator[tuple[Any, list[Any]]]:
        """Write a loop of at least one step in a `with` block.

        Yield the number of the step, and a list of the values that are carried from step to step:
        the block replaces them by the next ones, and finds the last ones in it afterwards.
        """
        builder, before = self.builder, self.builder.basic_block
        body, after = builder.append_basic_block("loop"), builder.append_basic_block("after")
        builder.branch(body)
        builder.position_at_end(body)
        step, phis = builder.phi(self.long), [builder.phi(self.vector) for _ in starts]
        carried: list[Any] = [Vector(self.ir, builder, phi) for phi in phis]
        yield step, carried
        end = builder.basic_block
        following = builder.add(step, self.number(1))
        step.add_incoming(self.number(0), before)
        step.add_incoming(following, end)
        for phi, start, last in zip(phis, starts, carried, strict=True):
            phi.add_incoming(start.value, before)
            phi.add_incoming(last.value, end)
        builder.cbranch(builder.icmp_signed("<", following, count), body, after)
        builder.position_at_end(after)

    def select(self, condition: Vector, yes: Any, no: Any) -> Vector:
        """Return `yes` where the condition holds, else `no`."""
        one = yes if isinstance(yes, Vector) else no
        chosen = self.builder.select(condition.value, one.of(yes), one.of(no))
        return Vector(self.ir, self.builder, chosen)

    def power_of_two(self, exponent: Vector, offset: int) -> Vector:
        """Return 2 to the power of the bits of `exponent`, as integers, minus `offset`."""
        bits = self.builder.bitcast(exponent.value, self.words)
        moved = self.builder.sub(bits, self.ir.Constant(self.words, [offset - 127] * LANES))
        moved = self.builder.shl(moved, self.ir.Constant(self.words, [23] * LANES))
        return Vector(self.ir, self.builder, self.builder.bitcast(moved, self.vector))


def _emit_sums(
    ir: Any,
    builder: Any,
    out: Any,
    out_at: Any,
    out_step: Any,
    left: Any,
    left_at: Any,
    left_row: Any,
    left_step: Any,
    right: Any,
    right_at: Any,
    right_step: Any,
    count: Any,
    *decays: Any,
) -> None:
    code = Code(ir, builder)
    rows = [code.number(row) for row in range(ROWS)]
    starts = [builder.gep(left, [code.place(left_at, row, left_row)]) for row in rows]
    zero = Vector(ir, builder, ir.Constant(code.vector, [0.0] * LANES))
    with code.loop(count, [zero] * ROWS) as (step, sums):
        columns = code.load(right, code.place(right_at, step, right_step))
        for row, start in enumerate(starts):
            value = builder.load(builder.gep(start, [builder.mul(step, left_step)]), align=4)
            sums[row] = sums[row] + code.spread(value) * columns
    for row, found in zip(rows, sums, strict=True):
        place = code.place(out_at, row, out_step)
        if decays:
            found = code.load(out, place) * code.load(*decays) + found
        code.store(found, out, place)


# sum_products(out, out_at, out_step, left, left_at, left_row, left_step, right, right_at,
# right_step, count) sets, for the rows r < 4 and the columns c < 16,
#     out[out_at + r * out_step + c] = the sum over i < count, in ascending order from 0, of
#         left[left_at + r * left_row + i * left_step] * right[right_at + i * right_step + c]
# With two more arguments, an array `decay` and a place in it, what was in `out` before is
# multiplied by decay[place + c], and the sum is added to that.
# All arrays are flat, of float32, and `count` is at least 1.
sum_products = emitted(_emit_sums)


def _emit_weights(
    ir: Any,
    builder: Any,
    scores: Any,
    at: Any,
    step: Any,
    count: Any,
    scale: Any,
    state: Any,
    top_at: Any,
    total_at: Any,
    decay_at: Any,
) -> None:
    code = Code(ir, builder)
    factor, top = code.spread(scale), code.load(state, top_at)
    zero = Vector(ir, builder, ir.Constant(code.vector, [0.0] * LANES))
    with code.loop(count, [top]) as (number, greatest):
        score = code.load(scores, code.place(at, number, step)) * factor
        greatest[0] = code.select(greatest[0] < score, score, greatest[0])
    (peak,) = greatest
    with code.loop(count, [zero]) as (number, added):
        place = code.place(at, number, step)
        weight = formulas.weight(code, code.load(scores, place) * factor, peak)
        code.store(weight, scores, place)
        added[0] = added[0] + weight
    decay = formulas.weight(code, top, peak)
    code.store(code.load(state, total_at) * decay + added[0], state, total_at)
    code.store(decay, state, decay_at)
    code.store(peak, state, top_at)


# weigh(scores, at, step, count, scale, state, top_at, total_at, decay_at) replaces `count` scores
# of 16 lanes, at the places at + i * step + lane, by their weights:
#     exp(score * scale - the greatest score)
# state[top_at + lane] is the greatest score before and after it, state[total_at + lane] the sum of
# all weights, and state[decay_at + lane] is set to the factor of what was summed up before.
weigh = emitted(_emit_weights)


def _emit_cap(
    ir: Any, builder: Any, scores: Any, at: Any, step: Any, count: Any, scale: Any, bound: Any
) -> None:
    code = Code(ir, builder)
    factor, most = code.spread(scale), code.spread(bound)
    with code.loop(count, []) as (number, _):
        place = code.place(at, number, step)
        score = code.load(scores, place) * factor
        code.store(formulas.cap(code, score, most), scores, place)


# cap(scores, at, step, count, scale, bound) replaces the scores of 16 lanes, as above, by
# tanh(score * scale / bound) * bound.
cap = emitted(_emit_cap)


def _emit_copy(
    ir: Any,
    builder: Any,
    out: Any,
    out_at: Any,
    memory: Any,
    at: Any,
    count: Any,
    *,
    widen: Callable[[Any, Any, Any], Any],
) -> None:
    """Write the code of a function that copies values as float32.

    `widen` is called with `ir`, the builder and 1 or 16 values, and returns those.
    """
    long, narrow = ir.IntType(64), memory.type.pointee
    first: Any = ir.Constant(long, 0)
    for lanes, stop in ((LANES, builder.and_(count, ir.Constant(long, -LANES))), (1, count)):
        check = builder.append_basic_block("check")
        copy, after = builder.append_basic_block("copy"), builder.append_basic_block("after")
        before = builder.basic_block
        builder.branch(check)
        builder.position_at_end(check)
        place = builder.phi(long)
        place.add_incoming(first, before)
        builder.cbranch(builder.icmp_signed("<", place, stop), copy, after)
        builder.position_at_end(copy)
        source = builder.gep(memory, [builder.add(at, place)])
        target = builder.gep(out, [builder.add(out_at, place)])
        source = builder.bitcast(source, ir.VectorType(narrow, lanes).as_pointer())
        target = builder.bitcast(target, ir.VectorType(ir.FloatType(), lanes).as_pointer())
        builder.store(widen(ir, builder, builder.load(source, align=2)), target, align=4)
        place.add_incoming(builder.add(place, ir.Constant(long, lanes)), copy)
        builder.branch(check)
        builder.position_at_end(after)
        first = place


def _keep(ir: Any, builder: Any, values: Any) -> Any:
    return values


def _widen_bfloat16(ir: Any, builder: Any, values: Any) -> Any:
    lanes = values.type.count
    words, singles = ir.VectorType(ir.IntType(32), lanes), ir.VectorType(ir.FloatType(), lanes)
    bits = builder.shl(builder.zext(values, words), ir.Constant(words, [16] * lanes))
    return builder.bitcast(bits, singles)


def _widen_float16(ir: Any, builder: Any, values: Any) -> Any:
    lanes = values.type.count
    words, singles = ir.VectorType(ir.IntType(32), lanes), ir.VectorType(ir.FloatType(), lanes)

    def constant(value: int) -> Any:
        return ir.Constant(words, [value] * lanes)

    bits = builder.zext(values, words)
    size = builder.shl(builder.and_(bits, constant(0x7FFF)), constant(13))
    # The product is exact, also for the subnormal numbers.
    power = ir.Constant(singles, [2.0**112] * lanes)
    found = builder.bitcast(builder.fmul(builder.bitcast(size, singles), power), words)
    exponent = builder.and_(bits, constant(0x7C00))
    is_finite = builder.icmp_unsigned("!=", exponent, constant(0x7C00))
    found = builder.select(is_finite, found, builder.or_(size, constant(_INFINITY)))
    sign = builder.shl(builder.and_(bits, constant(0x8000)), constant(16))
    return builder.bitcast(builder.or_(found, sign), singles)


# copy_...(out, out_at, memory, at, count) sets out[out_at + i] = memory[at + i] for all i < count.
# `out` is a flat array of float32, and `memory` of float32 or of the 16 bits of other floats.
copy_float32 = emitted(partial(_emit_copy, widen=_keep))
copy_bfloat16 = emitted(partial(_emit_copy, widen=_widen_bfloat16))
copy_float16 = emitted(partial(_emit_copy, widen=_widen_float16))
