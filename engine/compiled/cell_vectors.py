"""Vectors of integers for the cells of 4-bit codes, written as LLVM instructions.

`engine.weights.coding.cells` defines the code. numba has no vectors; the loops that it compiles
take eight times as long.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from engine.compiled.compiler import emitted

LANES = 16
WIDEST = 11  # bits of an index
MIDDLE = 1 << (WIDEST - 1)  # the index from which a cell around zero continues on its other side
_LAST = (1 << WIDEST) - 1
_SIGN = 0x8000


class Words:
    """16 integers of 32 bits, or floats, while code is written: its operators write instructions.

    Vectors may have other numbers of lanes and bits. Integers that are compared have a highest bit
    of 0, so that comparisons need not know whether they have a sign.
    """

    def __init__(self, code: "Code", value: Any) -> None:
        self._code = code
        self.value = value

    def _with(self, instruction: Callable[[Any, Any], Any], other: Any) -> "Words":
        return Words(self._code, instruction(self.value, self._code.of(self, other)))

    def __add__(self, other: Any) -> "Words":
        return self._with(self._code.builder.add, other)

    def __sub__(self, other: Any) -> "Words":
        return self._with(self._code.builder.sub, other)

    def __and__(self, other: Any) -> "Words":
        return self._with(self._code.builder.and_, other)

    def __or__(self, other: Any) -> "Words":
        return self._with(self._code.builder.or_, other)

    def __lshift__(self, other: Any) -> "Words":
        return self._with(self._code.builder.shl, other)

    def __rshift__(self, other: Any) -> "Words":
        return self._with(self._code.builder.lshr, other)

    def __lt__(self, other: Any) -> "Words":
        return self._with(partial(self._code.builder.icmp_signed, "<"), other)

    def is_equal(self, other: int) -> "Words":
        return self._with(partial(self._code.builder.icmp_signed, "=="), other)

    def __invert__(self) -> "Words":
        return Words(self._code, self._code.builder.not_(self.value))

    def times_plus(self, factor: Any, summand: Any) -> "Words":
        """Return floats multiplied and then added; each operation rounds."""
        product = self._code.builder.fmul(self.value, factor.value)
        return Words(self._code, self._code.builder.fadd(product, summand.value))

    def select(self, yes: Any, no: Any) -> "Words":
        """Return `yes` in the lanes in which this comparison holds, else `no`."""
        one = yes if isinstance(yes, Words) else no
        values = (self._code.of(one, own) for own in (yes, no))
        return Words(self._code, self._code.builder.select(self.value, *values))


class Code:
    """The types and the memory of a function that is being written."""

    def __init__(self, ir: Any, builder: Any) -> None:
        self.ir = ir
        self.builder = builder
        self.word, self.long = ir.IntType(32), ir.IntType(64)
        self.words = ir.VectorType(self.word, LANES)
        self.floats = ir.VectorType(ir.FloatType(), LANES)

    def of(self, like: Words, other: Any) -> Any:
        """Return an operand: a vector, or a number in all lanes of a vector like another one."""
        if isinstance(other, Words):
            return other.value
        return self.ir.Constant(like.value.type, [other] * like.value.type.count)

    def number(self, value: int) -> Any:
        return self.ir.Constant(self.long, value)

    def all_lanes(self, value: int) -> Words:
        return Words(self, self.ir.Constant(self.words, [value] * LANES))

    def all_lanes_of(self, value: Any) -> Words:
        """Return a vector with a value of 64 bits, cut to 32, in all lanes."""
        narrow = self.builder.trunc(value, self.word)
        return Words(self, self.collect(self.words, lambda _: narrow))

    def pointer(self, memory: Any, at: Any, kind: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(memory, [at]), kind.as_pointer())

    def load(self, memory: Any, at: Any, kind: Any) -> Any:
        return self.builder.load(self.pointer(memory, at, kind), align=1)

    def store(self, value: Any, memory: Any, at: Any) -> None:
        self.builder.store(value, self.pointer(memory, at, value.type), align=1)

    def collect(self, kind: Any, find: Callable[[Any], Any]) -> Any:
        """Return a vector of what `find` returns for the number of each lane."""
        found = self.ir.Constant(kind, self.ir.Undefined)
        for lane in range(kind.count):
            number = self.ir.Constant(self.word, lane)
            found = self.builder.insert_element(found, find(number), number)
        return found

    def look_up(self, table: Any, lanes: Words) -> Words:
        """Return the values that a vector has in these lanes. Both have the same number of lanes.

        A processor with AVX-512 has one instruction for this.
        """

        def find(lane: Any) -> Any:
            own = self.builder.extract_element(lanes.value, lane)
            return self.builder.extract_element(table, own)

        return Words(self, self.collect(table.type, find))

    def floats_of(self, integers: Words) -> Words:
        return Words(self, self.builder.sitofp(integers.value, self.floats))

    def bits_of(self, floats: Words) -> Words:
        return Words(self, self.builder.bitcast(floats.value, self.words))


def find_cell(code: Code, low: Words, high: Words) -> tuple[Words, Words, Words]:
    """Return the first value, the jump at the middle index, and the bits of an index."""
    one, other = code.bits_of(low) >> 16, code.bits_of(high) >> 16
    is_rising = one < other
    least, greatest = is_rising.select(one, other), is_rising.select(other, one)
    span = greatest - least
    is_wide = code.all_lanes(_LAST) < span
    # The exponent of a small integer as a float is the number of its bits; that of 0 is below 0.
    bits = (code.bits_of(code.floats_of(span)) >> 23) - 126
    width = is_wide.select(WIDEST, (bits < 0).select(0, bits))
    is_around_zero = (code.all_lanes(_SIGN - 1) < greatest) & (least < _SIGN)
    wide_first = is_around_zero.select(least - (MIDDLE - 1), greatest - _LAST)
    jump = (is_wide & is_around_zero).select(span - MIDDLE, 0)
    return is_wide.select(wide_first, least), jump, width


def _emit_transpose(
    ir: Any,
    builder: Any,
    source: Any,
    source_places: Any,
    source_at: Any,
    out: Any,
    out_places: Any,
    out_at: Any,
    *,
    bits: int,
) -> None:
    code = Code(ir, builder)
    kind = ir.VectorType(ir.IntType(bits), LANES)

    def place(places: Any, at: Any, row: int) -> Any:
        return builder.add(builder.load(builder.gep(places, [code.number(row)])), at)

    rows = [code.load(source, place(source_places, source_at, row), kind) for row in range(LANES)]
    size = 1
    while size < LANES:  # exchanges the blocks of this size beside the diagonal
        for row in range(LANES):
            if row & size:
                continue
            pair, found = (rows[row], rows[row | size]), []
            for moved in (0, size):
                lanes = [
                    (lane & ~size | moved) + (LANES if lane & size else 0) for lane in range(LANES)
                ]
                mask = ir.Constant(code.words, lanes)
                found.append(builder.shuffle_vector(*pair, mask))
            rows[row], rows[row | size] = found
        size *= 2
    for row in range(LANES):
        code.store(rows[row], out, place(out_places, out_at, row))


# transpose_...(source, source_places, source_at, out, out_places, out_at) sets
#     out[out_places[column] + out_at + row] = source[source_places[row] + source_at + column]
# for 16 rows and columns, of 8 or of 32 bits.
transpose_bytes = emitted(partial(_emit_transpose, bits=8))
transpose_words = emitted(partial(_emit_transpose, bits=32))
