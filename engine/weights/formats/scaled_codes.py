"""The packed form that FP8, compressed-tensors, AWQ and GPTQ weights share: codes and their scales.

Weights stay packed, or are expanded when they are read. A weight [rows, columns] has these fields,
and fused experts have one of each for every expert:

- codes [rows, bytes]: in the order of the columns, the first one in the lowest bits of a byte;
- scales [blocks of rows, blocks of columns], in the type of the file;
- zeros, if there are any: the codes that stand for zero, in the shape of the scales. As uint8 they
  have the bits of the codes, with those of the first block of rows in the lowest ones;
- order [1, columns], if the columns of a block are not neighbours: the block of each column;
- divisor [1, 1], if there is one (nvfp4): of all scales.

All blocks have equally many rows and columns, so the shapes alone say which values share a scale. A
value is computed in float32 and rounded once, by compiled code (`engine.compiled.byte_codes`) or by
operations of torch with the same bits.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

import engine.compiled.byte_codes as compiled
from engine.compiled.filling import can_fill
from engine.weights.formats.groups import EXPONENTS, Block, number_values, packed_values
from engine.weights.formats.mxfp4 import pair_values
from engine.weights.layout import Fields, TensorSpec
from engine.weights.packing import values_at_once
from engine.weights.stored_format import Packing, Shape

SCALES, ZEROS, ORDER, DIVISOR = ".scales", ".zeros", ".order", ".divisor"
_LARGEST_EXTRA = 0.01  # bytes that a packed weight may have more than in the file, as a share of it
_COMPILED_VALUES = 1 << 22  # expanded at a time by compiled code, whose temporaries are the scales


@dataclass(frozen=True)
class Codes:
    """A kind of codes.

    Args:
        title: its name in messages.
        bits: of a code in a byte of the field.
        values: returns the values of each byte, [256, values] float32 on a device.
        zero: the code of the value 0, also in packed zeros.
        dtype: of the field.
    """

    title: str
    bits: int
    values: Callable[[torch.device], Tensor]
    zero: int = 0
    dtype: torch.dtype = torch.uint8

    @property
    def per_byte(self) -> int:
        """The codes in a byte."""
        return 8 // self.bits


def _numbers(title: str, dtype: torch.dtype) -> Codes:
    """Return codes that are numbers of a type."""
    return Codes(title, 8, partial(number_values, dtype), dtype=dtype)


def _integers(title: str, bits: int, field_bits: int) -> Codes:
    """Return unsigned codes of integers around zero."""
    zero = 1 << (bits - 1)

    def values(device: torch.device) -> Tensor:
        return packed_values(field_bits, device) - zero

    return Codes(title, field_bits, cache(values), zero)


CODES: Mapping[str, Codes] = {
    "e4m3": _numbers("FP8", torch.float8_e4m3fn),
    "e5m2": _numbers("FP8 (E5M2)", torch.float8_e5m2),
    "int8": _numbers("int8", torch.int8),
    "e2m1": Codes("FP4", 4, partial(pair_values, torch.float32)),
    "uint2": _integers("2-bit codes", 2, 2),
    "uint3": _integers("3-bit codes", 3, 8),  # one in a byte: they are no packed form
    "uint4": _integers("4-bit codes", 4, 4),
    "uint8": _integers("8-bit codes", 8, 8),
}
OF_NUMBERS = {codes.dtype: name for name, codes in CODES.items() if codes.dtype != torch.uint8}


@dataclass(frozen=True)
class Form:
    """Which fields a weight has: the name of its codes in `CODES`, and its other fields."""

    codes: str
    has_zeros: bool = False
    has_order: bool = False
    has_divisor: bool = False

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The suffixes of the names of the fields."""
        has = {ZEROS: self.has_zeros, ORDER: self.has_order, DIVISOR: self.has_divisor}
        others = [suffix for suffix in has if has[suffix]]
        marks = [suffix.replace(".", "_") for suffix in others]
        return ("".join([f".{self.codes}", *marks]), SCALES, *others)

    @property
    def title(self) -> str:
        """The name of the form in messages."""
        has = {"zeros": self.has_zeros, "an order of columns": self.has_order}
        others = " and ".join(name for name in has if has[name])
        name = "nvfp4" if self.has_divisor else CODES[self.codes].title
        return f"{name} with {others}" if others else name


@dataclass(frozen=True)
class ScaledLayout:
    """The fields of a weight, and whether it can stay packed.

    Args:
        form: which fields there are.
        shape: [rows, columns] or [experts, rows, columns].
        stored_block: the rows and columns that share a scale in the file.
        scales: the type of the scales in the file.
        zeros: the type of the zeros in the file if these are numbers; None if they are codes.
    """

    form: Form
    shape: Shape
    stored_block: Block
    scales: torch.dtype
    zeros: torch.dtype | None = None

    @property
    def block(self) -> Block:
        """The largest block that divides the weight and has no more than one scale."""
        sizes = zip(self.stored_block, self.shape[-2:], strict=True)
        height, width = (size if own >= size else math.gcd(own, size) for own, size in sizes)
        return height, self.stored_block[1] if self.form.has_order else width

    @property
    def grid(self) -> tuple[int, int]:
        """The number of blocks in a column and in a row."""
        return self._grid(self.block)

    def spread(self, values: Tensor) -> Tensor:
        """Return values for the blocks of the packed form, given those for the file's blocks.

        Args:
            values: one for each block of the file, in their order, of any shape.
        """
        values = values.reshape(*self.shape[:-2], *self._grid(self.stored_block))
        sizes = zip(self.stored_block, self.block, self.grid, strict=True)
        for dim, (stored, own, count) in enumerate(sizes, start=values.dim() - 2):
            if values.shape[dim] != count:
                values = values.index_select(dim, torch.arange(count) * own // stored)
        return values

    def _grid(self, block: Block) -> tuple[int, int]:
        (height, width), (rows, columns) = block, self.shape[-2:]
        return -(-rows // max(height, 1)), -(-columns // max(width, 1))

    @property
    def fields(self) -> Fields:
        """The fields, by the suffix of their names."""
        *lead, rows, columns = self.shape
        lines, groups = self.grid
        codes = CODES[self.form.codes]
        specs: dict[str, TensorSpec] = {
            self.form.suffixes[0]: (codes.dtype, (*lead, rows, -(-columns // codes.per_byte))),
            SCALES: (field_type(self.scales), (*lead, lines, groups)),
            ZEROS: (torch.uint8, (*lead, _zero_lines(lines, codes), groups)),
            ORDER: (_smallest_type(groups), (*lead, 1, columns)),
            DIVISOR: (torch.float32, (*lead, 1, 1)),
        }
        if self.zeros is not None:
            specs[ZEROS] = (self.zeros, (*lead, lines, groups))
        return {suffix: specs[suffix] for suffix in self.form.suffixes}

    @property
    def why_expanded(self) -> str:
        """The reason why the weight cannot stay packed, for the log; "" if it can."""
        rows, columns = self.shape[-2:]
        codes = CODES[self.form.codes]
        if self.form not in FORMS:
            return f"{codes.title} do not fill bytes"
        if columns % codes.per_byte:
            return f"rows of {columns} {codes.title} values do not fill bytes"
        height, width = self.stored_block
        extra = math.prod(self.grid) - math.prod(self._grid(self.stored_block))
        extra *= self.scales.itemsize
        if extra > _LARGEST_EXTRA * rows * columns // codes.per_byte:
            return f"blocks of {height} x {width} do not divide {rows} x {columns}"
        return ""

    @property
    def packed(self) -> Fields:
        """The fields if the weight can stay packed, else none."""
        return {} if self.why_expanded else self.fields


def field_type(stored: torch.dtype) -> torch.dtype:
    """Return the type of the scales of a packed weight, given that of the file."""
    return torch.float8_e8m0fnu if stored in EXPONENTS else stored


def merged(fields: Fields, experts: int, parts: int) -> Fields:
    """Return the fields of fused experts of which each has several weights with these fields."""
    return {
        suffix: (dtype, (experts, parts * shape[0], *shape[1:]))
        for suffix, (dtype, shape) in fields.items()
    }


def _zero_lines(lines: int, codes: Codes) -> int:
    """Return the rows of the field of zeros of as many bits as codes have."""
    return lines if lines % codes.per_byte else lines // codes.per_byte


def _smallest_type(groups: int) -> torch.dtype:
    """Return the smallest type of the numbers of groups."""
    for dtype in (torch.uint8, torch.int16):
        if groups - 1 <= torch.iinfo(dtype).max:
            return dtype
    return torch.int32


def expand(form: Form, *tensors: Tensor) -> None:
    """Expand the fields of a weight, or of fused experts, into the last tensor."""
    *fields, out = tensors
    if out.dim() > 2:
        for own in zip(*tensors, strict=True):
            expand(form, *own)
        return
    codes, *others = fields
    parts = len(others[form.suffixes.index(ORDER) - 1]) if form.has_order else 1
    if parts > 1:  # weights above each other, such as gate and up, have orders of their own
        expand(form, *(tensor.view(parts, -1, tensor.shape[-1]) for tensor in tensors))
        return
    expand_rows(form, codes, others, range(len(out)), len(out), out)


def expand_rows(
    form: Form, codes: Tensor, others: Sequence[Tensor], rows: range, total: int, out: Tensor
) -> None:
    """Expand some rows of a weight.

    Args:
        form: which fields there are.
        codes: those of the rows.
        others: the other fields, of all rows of the weight.
        rows: the rows.
        total: the number of all rows.
        out: [total, columns], of which only these rows are written.
    """
    fields = dict(zip(form.suffixes[1:], others, strict=True))
    kind, device, columns = CODES[form.codes], out.device, out.shape[1]
    at_once = _COMPILED_VALUES if can_fill(out) else values_at_once(device)
    step = max(at_once // max(columns, 1), 1)
    group = None
    if form.has_order:
        # Numbers are checked when a file is read, but the fields of a speed test have any bytes.
        group = fields[ORDER][0].int().clamp_(0, fields[SCALES].shape[1] - 1)
    for start in range(rows.start, rows.stop, step):
        piece = range(start, min(start + step, rows.stop))
        scales, zeros = _at_rows(fields[SCALES], piece, total), None
        if form.has_divisor:
            scales = scales / _at_rows(fields[DIVISOR], piece, total)
        if form.has_zeros:
            zeros = _zeros_at(fields[ZEROS], kind, piece, total, len(fields[SCALES]))
        own = codes[piece.start - rows.start : piece.stop - rows.start].view(torch.uint8)
        dequantize(own, kind.values(device), scales, zeros, group, out[piece.start : piece.stop])


def _at_rows(field: Tensor, rows: range, total: int) -> Tensor:
    """Return the numbers of a field for each of some rows of all, [rows, groups] float32."""
    height = -(-total // len(field))
    first = rows.start // height
    numbers = field[first : (rows.stop - 1) // height + 1].float()
    if height == 1:
        return numbers
    lines = torch.arange(rows.start, rows.stop, device=field.device) // height - first
    return numbers.index_select(0, lines)


def _zeros_at(zeros: Tensor, codes: Codes, rows: range, total: int, lines: int) -> Tensor:
    """Return the zeros for each of some rows of all, [rows, groups] float32.

    Args:
        zeros: their field.
        codes: the kind of the codes.
        rows: the rows.
        total: the number of all rows.
        lines: the number of rows that the scales have.
    """
    if zeros.dtype != torch.uint8:
        return _at_rows(zeros, rows, total)
    line = torch.arange(rows.start, rows.stop, device=zeros.device) // -(-total // lines)
    per_byte = -(-lines // len(zeros))
    shifts = (line % per_byte * codes.bits).to(torch.uint8).unsqueeze(1)
    found = zeros.index_select(0, line // per_byte) >> shifts
    return found.bitwise_and_((1 << codes.bits) - 1).float().sub_(codes.zero)


def dequantize(
    codes: Tensor,
    values: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    group: Tensor | None,
    out: Tensor,
) -> None:
    """Write (values of codes - zeros) * scales into `out`, computed in float32.

    Args:
        codes: [rows, bytes] uint8. The last byte of a row may have more values than are columns.
        values: the values of each byte in the order of the columns, [256, 1, 2 or 4] float32.
        scales: [rows, groups] float32.
        zeros: the values that stand for zero, of the shape and type of `scales`; None if
            these are 0.
        group: [columns], the group of each column; None if its columns are neighbours.
        out: [rows, columns] of any floating-point type.
    """
    rows, columns = out.shape
    groups = scales.shape[1]
    if can_fill(out):
        if zeros is None:
            zeros = torch.zeros_like(scales)
        if group is None:
            group = torch.arange(columns) // max(columns // max(groups, 1), 1)
        factors, offsets = scales.contiguous(), zeros.contiguous()
        numbers = group.to(torch.int32)
        compiled.expand(codes.contiguous(), values, factors, offsets, numbers, out)
        return
    dense = F.embedding(codes.int(), values).view(rows, -1)[:, :columns]
    if group is None:
        blocks = dense.view(rows, groups, -1)
        if zeros is not None:
            blocks -= zeros.unsqueeze(2)
        blocks *= scales.unsqueeze(2)
    else:
        if zeros is not None:
            dense -= zeros.index_select(1, group)
        dense *= scales.index_select(1, group)
    out.copy_(dense)


def _packing(form: Form) -> Packing:
    """Return the packing of a form."""
    per_byte = CODES[form.codes].per_byte
    return Packing(
        title=form.title,
        suffixes=form.suffixes,
        dense_shape=lambda codes: (*codes[:-1], codes[-1] * per_byte),
        expand=partial(expand, form),
    )


FORMS = (
    *(Form(name, zeros) for name, zeros in product(OF_NUMBERS.values(), (False, True))),
    *(Form("e2m1", has_divisor=divisor) for divisor in (False, True)),
    *(
        Form(name, zeros, order)
        for name, zeros, order in product(("uint2", "uint4", "uint8"), (False, True), (False, True))
    ),
)
PACKINGS = tuple(_packing(form) for form in FORMS)
