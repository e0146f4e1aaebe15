"""The kernel that decodes weights coded by the cells of their 4-bit codes.

`engine.weights.coding.cells` defines the code, and `cell_decoder` launches the kernel. A program
decodes a segment of a row: the places of its indices are the sums of the widths before them.
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


@kernel(aligned=("pairs", "scales", "words", "out"))
def decode_cells(
    pairs: tl.tensor, scales: tl.tensor, ends: tl.tensor, words: tl.tensor, starts: tl.tensor,
    out: tl.tensor, before: tl.tensor, copy_rows: tl.tensor, columns: tl.tensor,
    num_words: tl.tensor, GROUP: tl.constexpr, IS_INT4: tl.constexpr, SEGMENT: tl.constexpr,
) -> None:  # fmt: skip
    """Write the bits of the weights of a segment of a row. Escapes get any value.

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
    column = segment * SEGMENT + tl.arange(0, SEGMENT)
    is_weight = column < columns
    pair = tl.load(pairs + own * (columns // 2) + column // 2, mask=is_weight, other=0).to(tl.int32)
    code = tl.where(column % 2 == 0, pair >> 4, pair & 15)
    group = column // GROUP
    if IS_INT4:
        fields = tl.load(scales + group.to(tl.int64) * copy_rows + own, mask=is_weight, other=0)
        scale_bits, zero_bits = fields << 16, fields & -65536
        low = tl.where(code == 0, -9.5, code.to(tl.float32) - 8.5)
        high = tl.where(code == 15, 8.5, code.to(tl.float32) - 7.5)
    else:
        place = own * (columns // GROUP) + group
        scale_bits = tl.load(scales + place, mask=is_weight, other=0)
        zero_bits = tl.zeros_like(scale_bits)
        low, high = tl.load(ends + code), tl.load(ends + 16 + code)
    size = zero_bits & _SIZE
    is_known = (scale_bits >= 0) & (scale_bits < _GREATEST_SCALE) & (size < _INFINITY)
    is_scaled = is_known & (scale_bits >= _LEAST_SCALE)
    has_zero = is_scaled | (is_known & (size >= _LEAST_ZERO))
    scale = tl.where(is_scaled, scale_bits, 0).to(tl.float32, bitcast=True)
    zero = tl.where(has_zero, zero_bits, 0).to(tl.float32, bitcast=True)
    one, other = _edge_bits(low, scale, zero), _edge_bits(high, scale, zero)
    least, greatest = tl.minimum(one, other), tl.maximum(one, other)
    span = greatest - least
    is_wide = span > _LAST
    is_around_zero = is_wide & (greatest >= _SIGN) & (least < _SIGN)
    # The exponent of a small integer as a float is the number of its bits; that of 0 is below 0.
    bits = (span.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 126
    width = tl.where(is_wide, _WIDEST, tl.maximum(bits, 0))
    width = tl.where(is_weight, width, 0)
    first = tl.where(is_wide, greatest - _LAST, least)
    first = tl.where(is_around_zero, least - (_MIDDLE - 1), first)
    segments = (columns + SEGMENT - 1) // SEGMENT
    start = tl.load(starts + row.to(tl.int64) * segments + segment).to(tl.uint32).to(tl.int64)
    place = start * 8 + (tl.cumsum(width, 0) - width)
    word = tl.minimum(place >> 5, num_words - 2)  # damaged starts reach no other memory
    near = tl.load(words + word).to(tl.uint32).to(tl.uint64)
    far = tl.load(words + word + 1).to(tl.uint32).to(tl.uint64)
    window = (near | (far << 32)) >> (place & 31).to(tl.uint64)
    index = window.to(tl.int32) & ((1 << width) - 1)
    value = first + index + tl.where(is_around_zero & (index >= _MIDDLE), span - _MIDDLE, 0)
    value = tl.where(is_around_zero & (index == 0), 0, value)
    tl.store(out + row.to(tl.int64) * columns + column, value.to(tl.int16), mask=is_weight)
