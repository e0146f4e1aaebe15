"""Weights coded by their place in the cell of their 4-bit code.

The cell of a code has the values of bfloat16 that quantize to it, given the scale and the zero of
the group. An index of as many bits as the cell needs names one of them. Widths follow from the
4-bit copy, which the decoder has, so no width is stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.compiled import cell_encoding, cells as compiled
from engine.compiled.cell_layout import (
    GREATEST_SCALE,
    INFINITY,
    LEAST_SCALE,
    LEAST_ZERO,
    PADDING,
    SEGMENT,
    TILE,
    stream_bytes,
)
from engine.compiled.cell_vectors import MIDDLE, WIDEST
from engine.compiled.filling import can_fill
from engine.triton_kernels import weight_decoder
from engine.weights.coding.escapes import (
    ESCAPE_BYTES,
    MOST_WEIGHTS,
    PLACES,
    VALUES,
    coded_bytes,
    escapes_between,
    list_escapes,
    put_escapes,
)
from engine.weights.formats import int4, nf4

STREAM = ".cells"  # field suffix: uint8, the indices of all segments
STARTS = ".cell_starts"  # field suffix: int32 [rows, segments]: where each segment begins
_INDICES = 1 << WIDEST
_SIGN = 0x8000
_CHUNK_WEIGHTS = 1 << 18  # at a time in operations of torch, whose temporaries are wide
# The ends of cells in steps. Between two codes it is the middle. The outermost cells reach a step
# further, because clamping and clipped scales put weights there.
_INT4_LOW = [-9.5, *(code - 8.5 for code in range(1, 16))]
_INT4_HIGH = [*(code - 7.5 for code in range(15)), 8.5]
# The values of nf4's codes: Dettmers et al., QLoRA, arXiv 2305.14314, appendix E.
_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
_NF4_REACH = 1.5  # of the outermost cells, in units of the scale


@dataclass(frozen=True)
class CodeOrder:
    """The order in which a kernel of the CPU keeps codes.

    A code is in the half of the byte `places[row] + column * steps[row]` that is `shifts[row]` bits
    up.
    """

    places: Tensor  # int64 [rows]
    steps: Tensor  # int64 [rows]
    shifts: Tensor  # uint8 [rows]

    def codes(self, memory: Tensor, rows: slice, columns: int) -> Tensor:
        """Return the codes of some rows, int64 [rows, columns]."""
        places = self.places[rows, None] + self.steps[rows, None] * torch.arange(columns)
        found = memory.view(-1)[places].long() >> self.shifts[rows, None].long()
        return found & 15


@dataclass(frozen=True)
class Substitute:
    """A 4-bit copy of a weight: the fields of `int4` or of `nf4`, on the device of the decoder.

    Args:
        pairs: the codes, uint8. Without an `order` they are [rows, columns / 2], the first of two
            in the upper half of a byte.
        scales: int4: bfloat16 [groups, rows, 2]; nf4: float32 [rows, groups].
        order: the order of a kernel in which they are kept.
        first: the row that belongs to the first row of the weight, where weights share a copy.
    """

    pairs: Tensor
    scales: Tensor
    order: CodeOrder | None = None
    first: int = 0

    @property
    def is_int4(self) -> bool:
        """Return whether the codes are int4, and not nf4."""
        return self.scales.dtype == torch.bfloat16

    @property
    def group(self) -> int:
        """Return how many weights share a scale."""
        return 2 * self.pairs.numel() // (self.scales.numel() // (2 if self.is_int4 else 1))

    @property
    def columns(self) -> int:
        """Return the columns of the weight."""
        return self.group * self.scales.shape[0 if self.is_int4 else 1]

    def codes(self, rows: slice) -> Tensor:
        """Return the codes of some rows of the weight, int64 [rows, columns]."""
        own = slice(self.first + rows.start, self.first + rows.stop)
        if self.order is not None:
            return self.order.codes(self.pairs, own, self.columns)
        pairs = self.pairs[own]
        return torch.stack([pairs >> 4, pairs & 15], -1).flatten(1).long()

    def scale_and_zero(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Return scale and zero of the groups of some rows, float32 [rows, groups]."""
        own = slice(self.first + rows.start, self.first + rows.stop)
        if self.is_int4:
            scale, zero = self.scales[:, own].float().unbind(-1)
            return scale.T.contiguous(), zero.T.contiguous()
        scale = self.scales[own].contiguous()
        return scale, torch.zeros_like(scale)


def find_substitute(fields: Mapping[str, Tensor], name: str) -> Substitute | None:
    """Return the 4-bit copy of the matrix `name` among the fields of a substitute; None if none."""
    for codes, scales in ((int4.PACKED, int4.SCALES), (nf4.PACKED, nf4.ABSMAX)):
        if name + codes in fields and fields[name + codes].dim() == 2:
            return Substitute(fields[name + codes], fields[name + scales])
    return None


def supports(substitute: Substitute) -> bool:
    """Return whether weights with this copy can be coded."""
    group, weights = substitute.group, 2 * substitute.pairs.numel()
    return group % TILE == 0 and SEGMENT % group == 0 and weights <= MOST_WEIGHTS


def encode(weight: Tensor, substitute: Substitute) -> dict[str, Tensor]:
    """Return the coded fields of a bfloat16 weight [rows, columns], on the CPU.

    `supports` must hold for its substitute.
    """
    fields = encode_within(weight, substitute, None)
    assert fields is not None, "there is no limit"
    return fields


def encode_within(
    weight: Tensor, substitute: Substitute, most: int | None
) -> dict[str, Tensor] | None:
    """Return the coded fields as `encode` does, or None if they have more than `most` bytes.

    Compiled code finds that out before it makes them, since a useless copy makes most weights
    escapes, which take three times the bytes of the weight.
    """
    assert supports(substitute), f"groups of {substitute.group}"
    bits = weight.contiguous().view(torch.int16)
    if can_fill(weight):
        return _encode_compiled(bits, substitute, most)
    indices, widths = torch.empty(bits.shape, dtype=torch.int32), []
    is_escape = torch.empty(bits.shape, dtype=torch.bool)
    for rows in _chunks(bits):
        cells = _find_cells(substitute, rows)
        index = _index(bits[rows].int(), cells)
        is_escape[rows] = index < 0
        indices[rows] = index.clamp(min=0)
        widths.append(cells.width)
    stream, starts = _write(indices, torch.cat(widths))
    fields = {STREAM: stream, STARTS: starts} | list_escapes(bits, is_escape)
    return None if most is not None and coded_bytes(fields) > most else fields


def part(
    fields: Mapping[str, Tensor], substitute: Substitute, rows: range
) -> tuple[dict[str, Tensor], Substitute]:
    """Return the fields of some rows of a weight, and their substitute."""
    columns = substitute.columns
    own = {STREAM: fields[STREAM], STARTS: fields[STARTS][rows.start : rows.stop]}
    own |= escapes_between(fields, rows.start * columns, rows.stop * columns)
    return own, replace(substitute, first=substitute.first + rows.start)


def decode(fields: Mapping[str, Tensor], substitute: Substitute, out: Tensor) -> None:
    """Fill a contiguous bfloat16 weight [rows, columns] with the weights of `encode`'s fields.

    All tensors are on its device. A substitute with other bytes than that of the encoder gives
    wrong weights, but reaches no other memory.
    """
    stream, starts = fields[STREAM], fields[STARTS]
    if can_fill(out):
        words = out.view(torch.uint16).numpy()
        numbers = starts.view(torch.uint32).numpy()
        copy = _compiled_copy(substitute, out.shape[1])
        compiled.decode(copy, substitute.first, stream.numpy(), numbers, words)
    elif weight_decoder.is_usable(out.device):
        assert substitute.order is None, "the kernel reads codes in the order of rows"
        ends = _ends_on(out.device, is_int4=substitute.is_int4)
        weight_decoder.decode_cells(
            substitute.pairs, substitute.scales, ends, stream, starts, substitute.first, out
        )
    else:
        for rows in _chunks(out):
            cells = _find_cells(substitute, rows)
            index = _read(stream, starts[rows], cells.width)
            bits = cells.first + index + torch.where(index >= MIDDLE, cells.jump, 0)
            bits = torch.where((index == 0) & (cells.jump > 0), 0, bits)
            out.view(torch.int16)[rows] = bits.short()
    put_escapes(fields, out)


@dataclass(frozen=True)
class _Cells:
    """The cells of weights: tensors int32 [rows, columns]."""

    first: Tensor  # the value of index 0; later values follow it
    # Of cells around zero: added to the values from index `MIDDLE` on, while index 0 stands for
    # zero. 0 for others.
    jump: Tensor
    width: Tensor  # bits of an index


def _find_cells(substitute: Substitute, rows: slice) -> _Cells:
    scale, zero = _usable_scales(substitute, rows)
    ends = _ends_on(scale.device, is_int4=substitute.is_int4)
    codes = substitute.codes(rows)
    one, other = (
        (ends[codes + first] * scale + zero).view(torch.int32) >> 16 & 0xFFFF for first in (0, 16)
    )
    least, greatest = torch.minimum(one, other), torch.maximum(one, other)
    span = greatest - least
    is_wide = span >= _INDICES
    is_around_zero = is_wide & (greatest >= _SIGN) & (least < _SIGN)
    first = torch.where(is_wide, greatest - (_INDICES - 1), least)
    first = torch.where(is_around_zero, least - (MIDDLE - 1), first)
    jump = torch.where(is_around_zero, span - MIDDLE, 0)
    width = torch.frexp(span.float()).exponent.clamp(max=WIDEST)
    return _Cells(first, jump, width)


def _usable_scales(substitute: Substitute, rows: slice) -> tuple[Tensor, Tensor]:
    """Return scale and zero of each weight, float32 [rows, columns]; 0 for unusable groups."""
    scale, zero = substitute.scale_and_zero(rows)
    bits = scale.view(torch.int32)
    size = zero.view(torch.int32) & 0x7FFFFFFF
    is_known = (bits >= 0) & (bits < GREATEST_SCALE) & (size < INFINITY)
    is_scaled = is_known & (bits >= LEAST_SCALE)
    has_zero = is_scaled | (is_known & (size >= LEAST_ZERO))
    usable = (torch.where(is_scaled, scale, 0.0), torch.where(has_zero, zero, 0.0))
    scale, zero = (own.repeat_interleave(substitute.group, -1) for own in usable)
    return scale, zero


def _index(bits: Tensor, cells: _Cells) -> Tensor:
    """Return the index of each weight in its cell, or -1."""
    index = (bits - cells.first) & 0xFFFF
    after = (index - cells.jump) & 0xFFFF
    has_jump = cells.jump > 0
    is_after = has_jump & (after >= MIDDLE) & (after < _INDICES)
    is_before = index < torch.where(has_jump, MIDDLE, 1 << cells.width)
    is_before &= ~has_jump | (index > 0)
    found = torch.where(is_before, index, torch.where(is_after, after, -1))
    return torch.where(has_jump & (bits == 0), 0, found)


def _offsets(widths: Tensor) -> Tensor:
    """Return the bit at which each index begins in its segment, int64 [rows, columns]."""
    parts = torch.split(widths.long(), SEGMENT, dim=1)
    return torch.cat([part.cumsum(1) - part for part in parts], 1)


def _write(indices: Tensor, widths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the stream of indices and the starts of its segments."""
    bits = torch.stack([part.sum(1) for part in torch.split(widths.long(), SEGMENT, 1)], 1)
    sizes = ((bits + 7) // 8).view(-1)
    starts = (sizes.cumsum(0) - sizes).view(bits.shape)
    places = _offsets(widths) + 8 * _of_weights(starts, widths.shape[1])
    stream = torch.zeros(stream_bytes(int(sizes.sum())), dtype=torch.int32)
    shifted = indices.view(-1).long() << (places.view(-1) % 8)
    for byte in range(3):  # 11 bits and the 7 before them; no bit has two ones, so sums are unions
        own = (shifted >> 8 * byte & 255).int()
        stream.index_add_(0, places.view(-1) // 8 + byte, own)
    return stream.byte(), starts.int()


def _read(stream: Tensor, starts: Tensor, widths: Tensor) -> Tensor:
    """Return the indices of weights [rows, columns], int32."""
    bytes_before = _of_weights(starts, widths.shape[1]).long() & 0xFFFFFFFF
    places = _offsets(widths) + 8 * bytes_before
    first = (places // 8).clamp(0, len(stream) - PADDING)
    found = torch.zeros_like(widths)
    for byte in range(3):
        found |= stream[first + byte].int() << 8 * byte
    return found >> (places % 8).int() & (1 << widths) - 1


def _of_weights(starts: Tensor, columns: int) -> Tensor:
    """Return the start of each weight's segment, [rows, columns]."""
    return starts.repeat_interleave(SEGMENT, 1)[:, :columns]


def _encode_compiled(
    bits: Tensor, substitute: Substitute, most: int | None
) -> dict[str, Tensor] | None:
    assert substitute.order is None and not substitute.first, "the encoder needs the order of rows"
    pairs, weights = substitute.pairs.contiguous().numpy(), bits.view(torch.uint16).numpy()
    ends, is_int4 = find_ends(is_int4=substitute.is_int4).numpy(), substitute.is_int4
    own = cell_encoding.Substitute(pairs, _compiled_scales(substitute), ends, is_int4)
    if most is None:
        most = ESCAPE_BYTES * 2 * bits.numel()  # more than any code takes
    if (found := cell_encoding.encode(own, weights, most)) is None:
        return None
    return {
        STREAM: torch.from_numpy(found.stream),
        STARTS: torch.from_numpy(found.starts).view(torch.int32),
        PLACES: torch.from_numpy(found.places).view(torch.int32),
        VALUES: torch.from_numpy(found.values).view(torch.int16),
    }


def _compiled_scales(substitute: Substitute) -> np.ndarray[Any, np.dtype[np.uint32]]:
    bits = substitute.scales.contiguous().view(torch.int32)
    bits = bits.squeeze(-1) if substitute.is_int4 else bits
    return bits.view(torch.uint32).numpy()


def _compiled_copy(substitute: Substitute, columns: int) -> compiled.Copy:
    """Return the copy for the decoder, as numpy arrays."""
    ends, is_int4 = find_ends(is_int4=substitute.is_int4).numpy(), substitute.is_int4
    scales, memory = _compiled_scales(substitute), substitute.pairs.contiguous().view(-1).numpy()
    rows = 2 * len(memory) // columns
    places, steps = np.arange(rows) * (columns // 2), np.zeros(rows, np.int64)
    shifts = np.zeros(rows, np.uint8)
    if (order := substitute.order) is not None:
        places, steps, shifts = (own.numpy() for own in (order.places, order.steps, order.shifts))
    return compiled.Copy(memory, places, steps, shifts, scales, ends, is_int4)


@cache
def find_ends(*, is_int4: bool) -> Tensor:
    """Return the ends of the cells in steps, float32 [32]: 16 lower ends, then 16 upper ones."""
    if is_int4:
        return torch.tensor(_INT4_LOW + _INT4_HIGH)
    values = torch.tensor(_NF4)
    middles = (values[1:] + values[:-1]) / 2
    reach = torch.tensor([_NF4_REACH])
    return torch.cat([-reach, middles, middles, reach])


@cache
def _ends_on(device: torch.device, *, is_int4: bool) -> Tensor:
    """Return the ends of the cells on a device."""
    return find_ends(is_int4=is_int4).to(device)


def _chunks(weight: Tensor) -> list[slice]:
    """Return slices of some rows each."""
    step = max(1, _CHUNK_WEIGHTS // weight.shape[1])
    return [slice(first, min(first + step, len(weight))) for first in range(0, len(weight), step)]
