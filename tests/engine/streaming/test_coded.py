"""Coded units travel in fewer bytes, and arrive in the slots of the ring as the plain weights."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.cache_files import unit_name
from engine.errors import ModelError
from engine.messages import LoadProgress
from engine.spec import Tier
from engine.streaming.coded import CodedUnits, DecodedUnits
from engine.streaming.cpu_link import CODED_STAGING, CpuDevice
from engine.streaming.packed import PackedUnits, pack
from engine.streaming.ring import LayerStream
from engine.weights.coding.cells import find_substitute
from engine.weights.formats import int4
from engine.weights.layout import UnitReader, lay_out, whole_layers

CPU = CpuDevice()
COUNT, ROWS, COLUMNS = 4, 64, 128
LAYERS = whole_layers(COUNT - 1)  # and a head


class PlainUnits(UnitReader):
    """A reader of random weights, a matrix without copy and tensors that stay plain among them."""

    def __init__(self) -> None:
        specs = {
            "norm.weight": (torch.float32, (COLUMNS,)),
            "q.weight": (torch.bfloat16, (ROWS, COLUMNS)),
            "experts": (torch.bfloat16, (2, ROWS, COLUMNS)),
            "q.bias": (torch.bfloat16, (ROWS,)),
        }
        self.layouts = [lay_out(f"layer.{index}", specs) for index in range(COUNT)]

    def read(self, index: int, buffer: Tensor) -> None:
        for name, tensor in self.expected(index).items():
            self.layouts[index].views(buffer)[name].copy_(tensor)

    def expected(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        return {
            field.name: torch.randn(field.shape, generator=generator).to(field.dtype)
            for field in self.layouts[index].fields
        }


class Copies(UnitReader):
    """A reader of the 4-bit copies of `PlainUnits`."""

    def __init__(self, plain: PlainUnits, group: int = 32) -> None:
        self._plain = plain
        specs = int4.packed_tensors("q.weight", (ROWS, COLUMNS), group)
        self.layouts = [lay_out(f"layer.{index}", specs) for index in range(COUNT)]

    def read(self, index: int, buffer: Tensor) -> None:
        fields = self.layouts[index].views(buffer).values()
        int4.quantize(self._plain.expected(index)["q.weight"], *fields)


def silent(step: LoadProgress) -> None:
    pass


@pytest.fixture
def plain() -> PlainUnits:
    return PlainUnits()


@pytest.fixture
def copies(plain: PlainUnits, tmp_path: Path) -> Iterator[PackedUnits]:
    with closing(pack(Copies(plain), tmp_path / "copies", "copies", silent)) as packed:
        yield packed


@pytest.fixture
def coded(plain: PlainUnits, copies: PackedUnits, tmp_path: Path) -> Iterator[PackedUnits]:
    packed = pack(CodedUnits(plain, LAYERS, copies), tmp_path / "coded", "coded", silent)
    with closing(packed):
        yield packed


def decoded(coded: PackedUnits, plain: PlainUnits, copies: PackedUnits) -> DecodedUnits:
    """Return the reader of the ring, with the copies in memory."""
    found = []
    for index, layout in enumerate(copies.layouts):
        memory = torch.empty(layout.nbytes, dtype=torch.uint8)
        copies.read(index, memory)
        copy = find_substitute(layout.views(memory), "q.weight")
        assert copy is not None
        found.append({"q.weight": copy})
    return DecodedUnits(coded, plain.layouts, found.__getitem__)


def check(weights: Mapping[str, Tensor], plain: PlainUnits, index: int) -> None:
    for name, tensor in plain.expected(index).items():
        assert torch.equal(weights[name], tensor), f"unit {index}, {name}"


def walk(stream: LayerStream, plain: PlainUnits, passes: int = 2) -> None:
    for _ in range(passes):
        for index in range(COUNT):
            with stream.unit(index) as weights:
                check(weights, plain, index)


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize(
    "tiers",
    [
        ["disk"] * 4,
        ["ram"] * 4,
        ["resident", "disk", "ram", "disk"],
        ["ram", "resident", "resident", "disk"],
    ],
)
@pytest.mark.parametrize("gbps", [None, 5.0])
def test_the_ring_gives_plain_weights(
    plain: PlainUnits,
    copies: PackedUnits,
    coded: PackedUnits,
    tiers: Sequence[Tier],
    slots: int,
    gbps: float | None,
) -> None:
    device = CpuDevice(simulate_gbps=gbps)
    stream = LayerStream(plain, tiers, device=device, slots=slots, starts_later=True)
    with closing(stream):
        stream.start(decoded(coded, plain, copies))
        stream.reset_stats()
        walk(stream, plain)
        stream.seek(2)
        for index in (2, 3):
            with stream.unit(index) as weights:
                check(weights, plain, index)
    streamed = [index for index, tier in enumerate(tiers) if tier != "resident"]
    smallest = min(coded.layouts[index].nbytes for index in streamed)
    assert stream.stats.bytes >= 2 * len(streamed) * smallest


def test_coded_units_are_smaller(plain: PlainUnits, coded: PackedUnits) -> None:
    for own, layout in zip(coded.layouts, plain.layouts, strict=True):
        names = {field.name for field in own.fields}
        assert {"norm.weight", "q.bias", "q.weight.cells", "experts.exponents"} <= names
        assert own.nbytes < 0.75 * layout.nbytes


def test_a_damaged_unit_is_coded_again(
    plain: PlainUnits, copies: PackedUnits, coded: PackedUnits
) -> None:
    path = coded.folder / unit_name(2)
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    stream = LayerStream(plain, ["disk"] * COUNT, device=CPU, slots=2, starts_later=True)
    with closing(stream):
        stream.start(decoded(coded, plain, copies))
        walk(stream, plain)
    assert coded.num_repaired == 1


def test_a_missing_unit_is_coded_again_when_it_is_opened(
    plain: PlainUnits, copies: PackedUnits, coded: PackedUnits
) -> None:
    (coded.folder / unit_name(1)).unlink()
    with closing(PackedUnits(coded.folder, "coded", CodedUnits(plain, LAYERS, copies))) as again:
        assert again.num_repaired == 1
        reader = decoded(again, plain, copies)
        memory = torch.empty(reader.layouts[1].nbytes, dtype=torch.uint8)
        slot = torch.empty(plain.layouts[1].nbytes, dtype=torch.uint8)
        reader.read(1, memory)
        reader.decode(1, memory, slot)
        check(plain.layouts[1].views(slot), plain, 1)


def test_the_identity_tells_other_copies(plain: PlainUnits, tmp_path: Path) -> None:
    found = {CodedUnits(plain, LAYERS, None).identity}
    for group in (32, 64):
        for attempt in range(2):
            folder = tmp_path / f"{group}.{attempt}"
            with closing(pack(Copies(plain, group), folder, "copies", silent)) as packed:
                found.add(CodedUnits(plain, LAYERS, packed).identity)
    assert len(found) == 3  # equal bytes have equal ones


def test_without_copies_all_weights_are_coded_by_themselves(
    plain: PlainUnits, tmp_path: Path
) -> None:
    with closing(pack(CodedUnits(plain, LAYERS, None), tmp_path / "own", "own", silent)) as coded:
        reader = DecodedUnits(coded, plain.layouts, lambda _: {})
        assert "q.weight.exponents" in {field.name for field in coded.layouts[0].fields}
        stream = LayerStream(plain, ["disk"] * COUNT, device=CPU, slots=2, starts_later=True)
        with closing(stream):
            stream.start(reader)
            walk(stream, plain)


class FaultyUnits(DecodedUnits):
    """Coded units of which some reads and some decodings fail."""

    faults = 0

    def read_piece(self, index: int, piece: range, memory: Tensor) -> None:
        self._fail()
        super().read_piece(index, piece, memory)

    def decode(self, index: int, memory: Tensor, slot: Tensor) -> None:
        self._fail()
        super().decode(index, memory, slot)

    def _fail(self) -> None:
        if self.faults and random.random() < 0.5:
            self.faults -= 1
            raise ModelError("the disk failed")


def test_errors_give_staging_buffers_back(
    plain: PlainUnits, copies: PackedUnits, coded: PackedUnits
) -> None:
    own = decoded(coded, plain, copies)
    reader = FaultyUnits(coded, plain.layouts, own.copies)
    stream = LayerStream(plain, ["disk"] * COUNT, device=CPU, slots=2, starts_later=True)
    with closing(stream):
        stream.start(reader)
        for _ in range(4 * CODED_STAGING):
            reader.faults = 3
            with suppress(ModelError):
                walk(stream, plain)
            reader.faults = 0
            stream.seek()
            walk(stream, plain, passes=1)
