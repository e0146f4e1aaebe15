"""Units that travel in a lossless code, and are decoded into the slots of the ring.

`CodedUnits` makes them from plain units, for the cache of packed models. `DecodedUnits` reads them
from there; a device's link calls its `decode`.
"""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from engine.streaming.packed import PackedUnits
from engine.streaming.pinned import allocate_pages
from engine.weights.coding.cells import Substitute, find_substitute
from engine.weights.coding.coded import CODE_VERSION
from engine.weights.coding.units import decode_unit, encode_unit, expected_bytes
from engine.weights.formats import int4
from engine.weights.layout import LayerUnits, UnitLayout, UnitReader, layers_of_units

CODED_STAGING = 2  # buffers for coded units: one is filled while the other is decoded
Copies = Mapping[str, Substitute]  # the 4-bit copies of a unit's weights, by name


def code_identity(copies: str | None) -> str:
    """Return a text that names the code of weights, and the bytes of the copies that it is by.

    Args:
        copies: the digest of the 4-bit copies (`PackedUnits.digest`); None: there are none.
    """
    return f"coded {CODE_VERSION}, {'no copies' if copies is None else f'copies {copies}'}"


class CodedUnits(UnitReader):
    """A reader that codes units, for packing alone: `layouts` are those of the plain units.

    Args:
        plain: the units.
        layers: the units of each layer.
        substitutes: the 4-bit copies of the layers and the head as the cache has them, one unit for
            each; None: there are none.
        check_making: called before a unit is coded.
    """

    def __init__(
        self,
        plain: UnitReader,
        layers: Sequence[LayerUnits],
        substitutes: PackedUnits | None,
        check_making: Callable[[], None] = lambda: None,
    ) -> None:
        self.layouts = plain.layouts
        self._plain = plain
        self._layers = layers_of_units(layers)
        self._substitutes = substitutes
        self._check_making = check_making

    @property
    def identity(self) -> str:
        """Return what `code_identity` returns for these units."""
        return code_identity(None if self._substitutes is None else self._substitutes.digest)

    @property
    def stored_bytes(self) -> int:
        substitutes = [] if self._substitutes is None else self._substitutes.layouts
        copied = [
            {field.name for field in layout.fields if len(field.shape) == 2}
            for layout in substitutes
        ]

        def size(index: int) -> int:
            names = copied[self._layers[index]] if copied else set()
            return expected_bytes(
                self.layouts[index], lambda field: field.name + int4.PACKED in names
            )

        return sum(map(size, range(len(self.layouts))))

    def has_units(self, layouts: Sequence[UnitLayout]) -> bool:
        return [own.name for own in layouts] == [own.name for own in self.layouts]

    def make(self, index: int, buffer: Tensor) -> tuple[UnitLayout, Tensor]:
        self._check_making()
        self._plain.read(index, buffer)
        return encode_unit(self.layouts[index], buffer, self._copies(index))

    def _copies(self, index: int) -> Copies:
        if self._substitutes is None:
            return {}
        layer = self._layers[index]
        layout = self._substitutes.layouts[layer]
        memory = allocate_pages(layout.nbytes, "substitutes")
        self._substitutes.read(layer, memory)
        fields = layout.views(memory)
        names = [field.name for field in self.layouts[index].fields]
        found = {name: find_substitute(fields, name) for name in names}
        return {name: copy for name, copy in found.items() if copy is not None}


class DecodedUnits(UnitReader):
    """A reader of coded units that decodes them.

    Args:
        coded: reads the units of a `CodedUnits` that were packed.
        slot_layouts: the layouts of the plain units.
        copies: returns the 4-bit copies of a unit's weights, where the draft keeps them.
    """

    def __init__(
        self,
        coded: UnitReader,
        slot_layouts: Sequence[UnitLayout],
        copies: Callable[[int], Copies],
    ) -> None:
        self.coded = coded
        self.layouts = coded.layouts
        self._slot_layouts = slot_layouts
        self.copies = copies
        pairs = zip(coded.layouts, slot_layouts, strict=True)
        self._is_coded = [own != wanted for own, wanted in pairs]

    @property
    def slot_layouts(self) -> Sequence[UnitLayout]:
        return self._slot_layouts

    def is_coded(self, index: int) -> bool:
        return self._is_coded[index]

    def read(self, index: int, buffer: Tensor) -> None:
        self.coded.read(index, buffer)

    def pieces(self, index: int) -> Sequence[range]:
        return self.coded.pieces(index)

    def read_piece(self, index: int, piece: range, memory: Tensor) -> None:
        self.coded.read_piece(index, piece, memory)

    def prepare(self, indices: Sequence[int]) -> None:
        self.coded.prepare(indices)

    def decode(self, index: int, memory: Tensor, slot: Tensor) -> None:
        layouts = self.layouts[index], self._slot_layouts[index]
        decode_unit(layouts[0], memory, layouts[1], slot, self.copies(index))
