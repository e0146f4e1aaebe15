"""The layout of a unit: where each of its tensors lies in memory.

A unit (a layer, a part of one, or the head) is one contiguous run of bytes. The layout is the same
in RAM, in a device slot, and in a packed file on disk, so a unit is moved by one large copy.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

TensorSpec = tuple[torch.dtype, tuple[int, ...]]
Fields = Mapping[str, TensorSpec]  # the packed fields of one tensor, by the suffix of their names

PAGE_BYTES = 4096  # direct I/O and pinning need whole pages
TENSOR_BYTES = 256  # alignment: the widest vector load, and the granularity of CUDA's allocator


@dataclass(frozen=True)
class Field:
    """A tensor of a unit, and its place in the unit's memory."""

    name: str  # path inside the unit's module, for example "self_attn.q_proj.weight"
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the unit, a multiple of TENSOR_BYTES

    @property
    def nbytes(self) -> int:
        """The size of the tensor in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class UnitLayout:
    """The tensors of one unit, and the size of its memory."""

    name: str  # the path of its module: "model.layers.3", "lm_head"
    fields: tuple[Field, ...]
    nbytes: int  # a multiple of PAGE_BYTES

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """Return the tensors in the memory of a unit (uint8, at least `nbytes` long), by name.

        They are views: nothing is copied.
        """
        return {
            f.name: buffer[f.offset : f.offset + f.nbytes].view(f.dtype).view(f.shape)
            for f in self.fields
        }


@dataclass(frozen=True)
class LayerUnits:
    """The consecutive units of one layer: its parts, then slices of its experts, if it is sliced.

    The layer uses its parts together: each is borrowed when the layer first reads one of its
    tensors, and all are returned when the layer ends. Slices are borrowed one after another.
    """

    first: int
    experts: str = ""  # path of the sliced experts inside the layer: "mlp.experts"
    slices: tuple[range, ...] = ()  # the experts in each of the units that follow the parts
    num_parts: int = 1  # units that together hold all but the sliced experts

    @property
    def parts(self) -> range:
        """The indices of the units that the layer uses together."""
        return range(self.first, self.first + self.num_parts)

    @property
    def units(self) -> range:
        """The indices of the layer's units."""
        return range(self.first, self.parts.stop + len(self.slices))


def whole_layers(num_layers: int) -> tuple[LayerUnits, ...]:
    """Return layers of one unit each, for a model whose layers are not divided."""
    return tuple(LayerUnits(index) for index in range(num_layers))


class UnitReader:
    """A reader of units, from the checkpoint itself or from packed files.

    A subclass sets `layouts` and implements `read`. If several threads may read one unit in
    parallel, it overrides the other methods too.
    """

    layouts: Sequence[UnitLayout]  # one for each unit

    def read(self, index: int, buffer: Tensor) -> None:
        """Fill `buffer[:layouts[index].nbytes]` (uint8, host memory). Any thread may call this.

        Raises `ModelError`, which names the file, if the bytes cannot be read or are wrong.
        """
        raise NotImplementedError

    def pieces(self, index: int) -> Sequence[range]:
        """Return byte ranges that can be read separately; each begins at a whole page."""
        return [range(self.layouts[index].nbytes)]

    def read_piece(self, index: int, piece: range, memory: Tensor) -> None:
        """Fill `memory` (uint8, host, `len(piece)` bytes) with one of `pieces`, as `read` does."""
        self.read(index, memory)

    def prepare(self, indices: Sequence[int]) -> None:
        """Find out how to read these units fastest. They will be read in every pass."""

    @property
    def slot_layouts(self) -> Sequence[UnitLayout]:
        """Return the layouts that the units have in a slot, where they may be decoded."""
        return self.layouts

    def is_coded(self, index: int) -> bool:
        """Return whether a unit is read in another form than it has in a slot."""
        return False

    def decode(self, index: int, memory: Tensor, slot: Tensor) -> None:
        """Fill a slot with a unit for which `is_coded` is true.

        Args:
            memory: the bytes that `read` gave.
            slot: memory of at least the bytes of its layout in `slot_layouts`.
        """
        raise NotImplementedError

    @property
    def stored_bytes(self) -> int:
        """Return the bytes that the units take in packed files, or are expected to take."""
        return sum(layout.nbytes for layout in self.layouts)

    def has_units(self, layouts: Sequence[UnitLayout]) -> bool:
        """Return whether packed units with these layouts may have been packed from this reader."""
        return list(layouts) == list(self.layouts)

    def make(self, index: int, buffer: Tensor) -> tuple[UnitLayout, Tensor]:
        """Return a unit as it is packed: its layout, and its bytes.

        Args:
            buffer: as large as the largest of `layouts`; the bytes may be a part of it.
        """
        layout = self.layouts[index]
        buffer.zero_()  # the checksum includes the gaps between fields
        self.read(index, buffer)
        return layout, buffer[: layout.nbytes]


class WholeLayers(UnitReader):
    """A reader of units that are whole layers, and the head, from a reader of their units."""

    def __init__(self, reader: UnitReader, layers: Sequence[LayerUnits]) -> None:
        self._reader = reader
        self.units = groups_of_units(layers)
        self.layouts = join_layouts(reader.layouts, layers)

    def read(self, index: int, buffer: Tensor) -> None:
        """Fill `buffer` with a layer, or with the head, unit by unit."""
        whole, begun = self.layouts[index].views(buffer), Counter[str]()
        slices = _repeated([self._reader.layouts[unit] for unit in self.units[index]])
        offset = 0
        for unit in self.units[index]:
            layout = self._reader.layouts[unit]
            if not slices.intersection(field.name for field in layout.fields):
                self._reader.read(unit, buffer[offset : offset + layout.nbytes])
                offset += layout.nbytes
                continue
            memory = torch.empty(layout.nbytes, dtype=torch.uint8)
            self._reader.read(unit, memory)
            for name, part in layout.views(memory).items():
                first = begun[name]
                whole[name][first : first + len(part)] = part
                begun[name] += len(part)


def groups_of_units(layers: Sequence[LayerUnits]) -> list[range]:
    """Return the units of each layer, then the unit of the head."""
    head = layers[-1].units.stop
    return [*(layer.units for layer in layers), range(head, head + 1)]


def layers_of_units(layers: Sequence[LayerUnits]) -> list[int]:
    """Return the number of each unit's layer; that of the head is the number of layers."""
    return [layer for layer, own in enumerate(groups_of_units(layers)) for _ in own]


def join_layouts(units: Sequence[UnitLayout], layers: Sequence[LayerUnits]) -> list[UnitLayout]:
    """Return the layouts of whole layers, and of the head.

    The units of a layer follow each other, but slices of experts, which are joined.
    """
    return [_join([units[index] for index in own]) for own in groups_of_units(layers)]


def _join(units: Sequence[UnitLayout]) -> UnitLayout:
    """Return the layout of several units, each at its place after the ones before it.

    Slices of the same tensors come last, as the tensors that they are slices of.
    """
    slices = _repeated(units)
    joined: dict[str, TensorSpec] = {}
    fields: list[Field] = []
    nbytes = 0
    for unit in units:
        own = [field for field in unit.fields if field.name in slices]
        for name, dtype, shape in ((field.name, field.dtype, field.shape) for field in own):
            known = joined[name][1][0] if name in joined else 0
            joined[name] = dtype, (known + shape[0], *shape[1:])
        if not own:
            fields += [replace(field, offset=nbytes + field.offset) for field in unit.fields]
            nbytes += unit.nbytes
    last = lay_out(units[0].name, joined)
    fields += [replace(field, offset=nbytes + field.offset) for field in last.fields]
    return UnitLayout(units[0].name, tuple(fields), nbytes + last.nbytes)


def _repeated(units: Sequence[UnitLayout]) -> set[str]:
    """Return the names that fields of several units share, as slices of experts do."""
    names = Counter(field.name for unit in units for field in unit.fields)
    return {name for name, count in names.items() if count > 1}


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
    """Return the smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple
