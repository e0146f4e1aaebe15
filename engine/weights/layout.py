"""Where each tensor of a unit lies inside its slab.

A unit (a layer, a part of one, or the head) is one contiguous run of bytes, the slab. The layout is
the same in RAM, in a device slot, and in a packed file on disk, so a unit moves as one large copy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TensorSpec = tuple[torch.dtype, tuple[int, ...]]
Fields = Mapping[str, TensorSpec]  # of one tensor: suffix of the field's name -> what it holds

PAGE_BYTES = 4096  # direct I/O and pinning want whole pages
TENSOR_BYTES = 256  # widest vector load and CUDA's own allocation granularity


@dataclass(frozen=True)
class Field:
    """One tensor of a unit."""

    name: str  # path inside the unit's module, for example "self_attn.q_proj.weight"
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the slab, a multiple of TENSOR_BYTES

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class UnitLayout:
    """The tensors of one unit and the size of its slab."""

    name: str  # for messages: "model.layers.3", "lm_head"
    fields: tuple[Field, ...]
    nbytes: int  # a multiple of PAGE_BYTES

    def views(self, slab: Tensor) -> dict[str, Tensor]:
        """Return typed views into a slab (uint8, at least `nbytes` long) without a copy."""
        return {
            f.name: slab[f.offset : f.offset + f.nbytes].view(f.dtype).view(f.shape)
            for f in self.fields
        }


@dataclass(frozen=True)
class LayerUnits:
    """The consecutive units of one layer: one unit, or the base and then slices of its experts."""

    first: int  # the unit that holds everything but sliced experts
    experts: str = ""  # path of the sliced experts inside the layer, "mlp.experts"
    slices: tuple[range, ...] = ()  # the experts in each of the units that follow the first

    @property
    def units(self) -> range:
        """The indices of the layer's units."""
        return range(self.first, self.first + 1 + len(self.slices))


def whole_layers(num_layers: int) -> tuple[LayerUnits, ...]:
    """Return layers of one unit each, as they are where nothing is sliced."""
    return tuple(LayerUnits(index) for index in range(num_layers))


class UnitReader:
    """Fills slabs with weights: from the checkpoint itself or from packed files.

    A subclass sets `layouts` and implements `read`. One whose units may be read by several threads
    at once overrides the other methods too.
    """

    layouts: Sequence[UnitLayout]  # of each unit

    def read(self, index: int, slab: Tensor) -> None:
        """Fill `slab[:layouts[index].nbytes]` (uint8, host memory). Called from any thread.

        Raises `ModelError` that names the file when the bytes cannot be read or are wrong.
        """
        raise NotImplementedError

    def pieces(self, index: int) -> Sequence[range]:
        """Return the unit's bytes in pieces; each begins at a whole page."""
        return [range(self.layouts[index].nbytes)]

    def read_piece(self, index: int, piece: range, memory: Tensor) -> None:
        """Fill `memory` (uint8, host, `len(piece)` bytes) with one of `pieces`, as `read` does."""
        self.read(index, memory)

    def prepare(self, indices: Sequence[int]) -> None:
        """Find out how these units, which will be read again and again, are read fastest."""


def lay_out(name: str, tensors: Mapping[str, TensorSpec]) -> UnitLayout:
    """Return the layout of a unit with these tensors, in their order."""
    fields: list[Field] = []
    offset = 0
    for tensor, (dtype, shape) in tensors.items():
        field = Field(tensor, dtype, shape, offset)
        fields.append(field)
        offset = round_up(offset + field.nbytes, TENSOR_BYTES)
    return UnitLayout(name, tuple(fields), round_up(offset, PAGE_BYTES))


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is not below `value`."""
    return -(-value // multiple) * multiple
