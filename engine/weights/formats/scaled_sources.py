"""Sources of weights that have the packed form of `scaled_codes`: how its fields are read."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.weights.formats.groups import EXPONENTS, Block, pieces
from engine.weights.formats.scaled_codes import OF_NUMBERS, Form, ScaledLayout, expand_rows
from engine.weights.safetensors import Checkpoint, StoredTensor
from engine.weights.sources import Source


@dataclass(frozen=True)
class ScaledWeight:
    """A weight of a checkpoint that can be read in this form.

    Args:
        layout: its fields.
        read_codes: fills the codes [rows, bytes] of some rows; those of experts follow each other.
        read_others: fills the other fields, its arguments.
        parts: the stored tensors. Messages name the first one.
        reads_rows: whether codes can be read by rows; if not, all are read together.
        experts: returns some of several experts.
    """

    layout: ScaledLayout
    read_codes: Callable[[range, Tensor], None]
    read_others: Callable[..., None]
    parts: tuple[StoredTensor, ...]
    reads_rows: bool = True
    experts: Callable[[range], Source] | None = None

    def source(self) -> Source:
        """Return the weight's source."""
        return Source(
            shape=self.layout.shape,
            fill=self._fill,
            parts=self.parts,
            packed=self.layout.packed,
            experts=self.experts,
            why_expanded=self.layout.why_expanded,
        )

    def _fill(self, *out: Tensor) -> None:
        """Write the weight into its packed fields, or into one dense tensor."""
        if len(out) > 1:
            codes, *others = out
            lines = codes.view(-1, codes.shape[-1])
            self.read_codes(range(len(lines)), lines)
            self.read_others(*others)
            return
        (dtype, shape), *specs = self.layout.fields.values()
        fields = [torch.empty(own, dtype=kind) for kind, own in specs]
        self.read_others(*fields)
        matrices = out[0] if out[0].dim() > 2 else out[0].unsqueeze(0)
        for index, dense in enumerate(matrices):
            rows, columns = dense.shape
            others = [field[index] if out[0].dim() > 2 else field for field in fields]
            for piece in pieces(rows, columns) if self.reads_rows else [range(rows)]:
                codes = torch.empty(len(piece), shape[-1], dtype=dtype)
                start = index * rows
                self.read_codes(range(start + piece.start, start + piece.stop), codes)
                expand_rows(self.layout.form, codes, others, piece, rows, dense)


def load_grid(checkpoint: Checkpoint, stored: StoredTensor) -> Tensor:
    """Return scales, or zeros that are numbers, in the type of their packed field."""
    values = checkpoint.load(stored)
    return values.view(torch.float8_e8m0fnu) if stored.dtype in EXPONENTS else values


def write_zeros(codes: Tensor, bits: int, out: Tensor) -> None:
    """Write zeros [lines, groups], each a code of this many bits, into their field."""
    per_byte = len(codes) // len(out)
    runs = codes.reshape(len(out), per_byte, -1)
    out.copy_(runs[:, 0])
    for at in range(1, per_byte):
        out |= runs[:, at] << (at * bits)


def number_source(
    checkpoint: Checkpoint,
    codes: StoredTensor,
    scales: StoredTensor,
    zeros: StoredTensor | None,
    block: Block,
) -> Source:
    """Return the source of a weight whose codes are stored one by one, as numbers.

    Args:
        checkpoint: the files.
        codes: [rows, columns] or [experts, rows, columns] of 8-bit numbers.
        scales: one for each block, of a shape of `groups.scale_shapes`.
        zeros: the codes that stand for zero, of the shape of `scales`; None if these are 0.
        block: the rows and columns that share a scale.
    """
    grids = [stored for stored in (scales, zeros) if stored is not None]
    form = Form(OF_NUMBERS[codes.dtype], has_zeros=zeros is not None)
    layout = ScaledLayout(
        form, codes.shape, block, scales.dtype, zeros.dtype if zeros is not None else None
    )
    flat = replace(codes, shape=(math.prod(codes.shape[:-1]), codes.shape[-1]))

    def read_codes(rows: range, out: Tensor) -> None:
        checkpoint.read(flat.part(rows), out)

    def read_others(*out: Tensor) -> None:
        for stored, own in zip(grids, out, strict=True):
            own.copy_(layout.spread(load_grid(checkpoint, stored)))

    def some(experts: range) -> Source:
        own_scales, *own_zeros = (stored.part(experts) for stored in grids)
        own = own_zeros[0] if own_zeros else None
        return number_source(checkpoint, codes.part(experts), own_scales, own, block)

    experts = some if len(codes.shape) == 3 else None
    weight = ScaledWeight(layout, read_codes, read_others, (codes, *grids), experts=experts)
    return weight.source()
