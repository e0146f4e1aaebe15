"""Units of random weights, their 4-bit copies, and both packed in folders."""

import random
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.messages import LoadProgress
from engine.streaming.coded import CodedUnits, DecodedUnits
from engine.streaming.packed import PackedUnits, pack
from engine.weights.coding.cells import Substitute, find_substitute
from engine.weights.formats import int4
from engine.weights.layout import LayerUnits, UnitReader, lay_out, whole_layers

COUNT, ROWS, COLUMNS = 4, 64, 128
LAYERS = whole_layers(COUNT - 1)  # and a head


class PlainUnits(UnitReader):
    """A reader of random weights, a matrix without copy and tensors that stay plain among them."""

    def __init__(self, count: int = COUNT) -> None:
        specs = {
            "norm.weight": (torch.float32, (COLUMNS,)),
            "q.weight": (torch.bfloat16, (ROWS, COLUMNS)),
            "experts": (torch.bfloat16, (2, ROWS, COLUMNS)),
            "q.bias": (torch.bfloat16, (ROWS,)),
        }
        self.layouts = [lay_out(f"layer.{index}", specs) for index in range(count)]

    def read(self, index: int, buffer: Tensor) -> None:
        for name, tensor in self.expected(index).items():
            self.layouts[index].views(buffer)[name].copy_(tensor)

    def expected(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        return {
            field.name: torch.randn(field.shape, generator=generator).to(field.dtype)
            for field in self.layouts[index].fields
        }

    def check(self, index: int, weights: Mapping[str, Tensor]) -> None:
        """Check that the weights equal the weights of unit `index` in every bit."""
        for name, tensor in self.expected(index).items():
            assert torch.equal(weights[name].cpu(), tensor), f"unit {index}, {name}"


class Copies(UnitReader):
    """A reader of the 4-bit copies of `PlainUnits`."""

    def __init__(self, plain: PlainUnits, group: int = 32) -> None:
        self._plain = plain
        specs = int4.packed_tensors("q.weight", (ROWS, COLUMNS), group)
        self.layouts = [lay_out(layout.name, specs) for layout in plain.layouts]

    def read(self, index: int, buffer: Tensor) -> None:
        fields = self.layouts[index].views(buffer).values()
        int4.quantize(self._plain.expected(index)["q.weight"], *fields)


class FaultyUnits(DecodedUnits):
    """Coded units of which some reads fail, and some decodings after they have begun."""

    faults = 0  # that will happen

    def read_piece(self, index: int, piece: range, memory: Tensor) -> None:
        self.fail()
        super().read_piece(index, piece, memory)

    def decode(self, index: int, memory: Tensor, slot: Tensor) -> None:
        super().decode(index, memory, slot)
        self.fail()

    def fail(self) -> None:
        """Fail with a chance of a half if faults are left."""
        if self.faults and random.random() < 0.5:
            self.faults -= 1
            raise ModelError("the disk failed")


def silent(step: LoadProgress) -> None:
    """Report no progress."""


def decoded(
    coded: PackedUnits,
    plain: PlainUnits,
    copies: PackedUnits,
    device: torch.device | None = None,
) -> DecodedUnits:
    """Return the reader of the ring, with the copies in memory, or on a device."""
    found: list[dict[str, Substitute]] = []
    for index, layout in enumerate(copies.layouts):
        memory = torch.zeros(layout.nbytes, dtype=torch.uint8)
        copies.read(index, memory)
        copy = find_substitute(layout.views(memory.to(device)), "q.weight")
        assert copy is not None
        found.append({"q.weight": copy})
    return DecodedUnits(coded, plain.layouts, found.__getitem__)


@contextmanager
def packed(
    plain: PlainUnits, folder: Path, layers: tuple[LayerUnits, ...] = LAYERS
) -> Iterator[tuple[PackedUnits, PackedUnits]]:
    """Yield the coded units and the copies, which are packed if the folder does not have them.

    Each unit is a layer, or the head.
    """
    with closing(_packed(Copies(plain), folder / "copies")) as copies:
        coded = _packed(CodedUnits(plain, layers, copies), folder / "coded")
        with closing(coded):
            yield coded, copies


def _packed(reader: UnitReader, folder: Path) -> PackedUnits:
    if folder.exists():
        return PackedUnits(folder, folder.name, reader)
    return pack(reader, folder, folder.name, silent)
