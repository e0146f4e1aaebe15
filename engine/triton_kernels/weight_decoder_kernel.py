"""The kernels that decode weights: by cells of 4-bit codes, or by the numbers of exponents.

`engine.weights.coding` defines the codes, and `weight_decoder` launches the kernels. Damaged fields
give wrong weights, but no kernel reaches other memory by them.
"""

import triton.language as tl

from engine.triton_kernels.compiler import helper, kernel

_WIDEST = tl.constexpr(11)  # bits of an index
_MIDDLE = tl.constexpr(1024)
_LAST = tl.constexpr(2047)
_SIGN = tl.constexpr(0x8000)
_SIZE = tl.constexpr(0x7FFFFFFF)  # the bits of a float32 without its sign
_INFINITY = tl.constexpr(0x7F800000)
_LEAST_SCALE = tl.constexpr(101 << 23)
_GREATEST_SCALE = tl.constexpr(228 << 23)
_LEAST_ZERO = tl.constexpr(105 << 23)


@helper
def _edge_bits(reach: tl.tensor, scale: tl.tensor, zero: tl.tensor) -> tl.tensor:
    """Return the upper 16 bits of the edge of a cell."""
    return ((reach * scale + zero).to(tl.int32, bitcast=True) >> 16) & 0xFFFF


@helper
def _usable(scale_bits: tl.tensor, zero_bits: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Return the scale and the zero by which a group is coded."""
    size = zero_bits & _SIZE
    is_known = (scale_bits >= 0) & (scale_bits < _GREATEST_SCALE) & (size < _INFINITY)
    is_scaled = is_known & (scale_bits >= _LEAST_SCALE)
    has_zero = is_scaled | (is_known & (size >= _LEAST_ZERO))
    scale = tl.where(is_scaled, scale_bits, 0).to(tl.float32, bitcast=True)
    return scale, tl.where(has_zero, zero_bits, 0).to(tl.float32, bitcast=True)


@helper
def _read(words: tl.tensor, last: tl.tensor, place: tl.tensor, width: tl.tensor) -> tl.tensor:
    """Return the indices of these widths that begin at these bits, within words up to `last`."""
    word = tl.minimum(place >> 5, last - 1)
    near = tl.load(words + word).to(tl.uint32).to(tl.uint64)
    far = tl.load(words + word + 1).to(tl.uint32).to(tl.uint64)
    window = (near | (far << 32)) >> (place & 31).to(tl.uint64)
    return window.to(tl.int32) & ((1 << width) - 1)


@kernel(aligned=("pairs", "scales", "words", "out"))
def decode_cells(
    pairs: tl.tensor, scales: tl.tensor, ends: tl.tensor, words: tl.tensor, starts: tl.tensor,
    out: tl.tensor, before: tl.tensor, copy_rows: tl.tensor, columns: tl.tensor,
    num_words: tl.tensor, GROUP: tl.constexpr, IS_INT4: tl.constexpr, SEGMENT: tl.constexpr,
) -> None:  # fmt: skip
    """Write the bits of the weights of a segment of a row. Escapes get any value.

    The places of indices are the sums of the widths before them.

    Args:
        pairs: uint8 [copy_rows, columns / 2], the first code of a byte in its upper half.
        scales: the bits of scale and zero, int32 [groups, copy_rows], or of a scale in float32
            [copy_rows, groups] if the copy is not int4.
        ends: the ends of cells in steps, float32 [32]; of int4 they are not read.
        words: the stream of indices, int32 [num_words], with a word after the last index.
        starts: the byte at which each segment begins, int32 [rows, segments].
        out: int16 [rows, columns].
        before: the row of the copy that belongs to the first row of the weight.
    """
    row, segment = tl.program_id(0), tl.program_id(1)
    own = (before + row).to(tl.int64)
    group = segment * (SEGMENT // GROUP) + tl.arange(0, SEGMENT // GROUP)[:, None]
    column = group * GROUP + tl.arange(0, GROUP)[None, :]
    is_group, is_weight = group * GROUP < columns, column < columns
    pair = tl.load(pairs + own * (columns // 2) + column // 2, mask=is_weight, other=0).to(tl.int32)
    code = tl.where(column % 2 == 0, pair >> 4, pair & 15)
    if IS_INT4:
        fields = tl.load(scales + own + group * copy_rows, mask=is_group, other=0)
        scale, zero = _usable(fields << 16, fields & -65536)
        low = tl.where(code == 0, -9.5, code.to(tl.float32) - 8.5)
        high = tl.where(code == 15, 8.5, code.to(tl.float32) - 7.5)
    else:
        fields = tl.load(scales + own * (columns // GROUP) + group, mask=is_group, other=0)
        scale, zero = _usable(fields, tl.zeros_like(fields))
        low, high = tl.load(ends + code), tl.load(ends + 16 + code)
    one, other = _edge_bits(low, scale, zero), _edge_bits(high, scale, zero)
    least, greatest = tl.minimum(one, other), tl.maximum(one, other)
    span = greatest - least
    # The exponent of a small integer as a float is the number of its bits; that of 0 is below 0.
    bits = (span.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 126
    width = tl.where(is_weight, tl.minimum(tl.maximum(bits, 0), _WIDEST), 0)
    of_groups = tl.sum(width, 1, keep_dims=True)
    before_index = tl.cumsum(of_groups, 0) - of_groups + tl.cumsum(width, 1) - width
    segments = (columns + SEGMENT - 1) // SEGMENT
    start = tl.load(starts + row.to(tl.int64) * segments + segment).to(tl.uint32).to(tl.int64)
    word = tl.minimum(start >> 2, num_words - 2)  # damaged starts reach no other memory
    place = (start & 3).to(tl.int32) * 8 + before_index
    index = _read(words + word, (num_words - 1 - word).to(tl.int32), place, width)
    is_wide = span > _LAST
    is_around_zero = is_wide & (greatest >= _SIGN) & (least < _SIGN)
    first = tl.where(is_wide, greatest - _LAST, least)
    first = tl.where(is_around_zero, least - (_MIDDLE - 1), first)
    value = first + index + tl.where(is_around_zero & (index >= _MIDDLE), span - _MIDDLE, 0)
    value = tl.where(is_around_zero & (index == 0), 0, value)
    tl.store(out + row.to(tl.int64) * columns + column, value.to(tl.int16), mask=is_weight)


@kernel(aligned=("exponents", "fractions", "out"))
def decode_exponents(
    exponents: tl.tensor, fractions: tl.tensor, table: tl.tensor, out: tl.tensor,
    count: tl.tensor, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Write the bits of a block of weights. Escapes get any value.

    Args:
        exponents: uint8 [count / 2], the number of the first of two exponents in the upper half.
        fractions: uint8 [count], the sign in the highest bit.
        table: the exponents, uint8 [16].
        out: int16 [count].
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_weight = at < count
    pair = tl.load(exponents + at // 2, mask=is_weight, other=0).to(tl.int32)
    exponent = tl.load(table + tl.where(at % 2 == 0, pair >> 4, pair & 15)).to(tl.int32)
    rest = tl.load(fractions + at, mask=is_weight, other=0).to(tl.int32)
    bits = (rest & 128) << 8 | exponent << 7 | rest & 127
    tl.store(out + at, bits.to(tl.int16), mask=is_weight)


@kernel()
def put_escapes(
    places: tl.tensor, values: tl.tensor, out: tl.tensor, count: tl.tensor, weights: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Write some of the escapes.

    Args:
        places: int32 [count].
        values: int16 [count].
        out: int16 [weights].
    """
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = tl.load(places + at, mask=at < count, other=-1)
    is_escape = (place >= 0) & (place < weights)
    value = tl.load(values + at, mask=at < count, other=0)
    tl.store(out + place.to(tl.int64), value, mask=is_escape)
