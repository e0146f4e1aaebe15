"""Coded units travel in fewer bytes, and arrive in the slots of the ring as the plain weights."""

from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from threading import Thread, current_thread

import pytest
import torch
from torch import Tensor

from engine.cache_files import unit_name
from engine.errors import ModelError
from engine.spec import Tier
from engine.streaming import cpu_link
from engine.streaming.coded import CodedUnits, DecodedUnits
from engine.streaming.cpu_link import CpuDevice
from engine.streaming.packed import PackedUnits, pack
from engine.streaming.ring import LayerStream
from tests.engine.coded_units import (
    COUNT,
    LAYERS,
    Copies,
    FaultyUnits,
    PlainUnits,
    decoded,
    packed,
    silent,
)

CPU = CpuDevice()


@pytest.fixture
def plain() -> PlainUnits:
    return PlainUnits()


@pytest.fixture
def both(plain: PlainUnits, tmp_path: Path) -> Iterator[tuple[PackedUnits, PackedUnits]]:
    with packed(plain, tmp_path) as found:
        yield found


@pytest.fixture
def coded(both: tuple[PackedUnits, PackedUnits]) -> PackedUnits:
    return both[0]


@pytest.fixture
def copies(both: tuple[PackedUnits, PackedUnits]) -> PackedUnits:
    return both[1]


def walk(stream: LayerStream, plain: PlainUnits, passes: int = 2) -> None:
    for _ in range(passes):
        for index in range(COUNT):
            with stream.unit(index) as weights:
                plain.check(index, weights)


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
                plain.check(index, weights)
    streamed = [index for index, tier in enumerate(tiers) if tier != "resident"]
    smallest = min(coded.layouts[index].nbytes for index in streamed)
    assert stream.stats.bytes >= 2 * len(streamed) * smallest


def test_only_units_in_use_have_memory_for_plain_weights(
    plain: PlainUnits, copies: PackedUnits, coded: PackedUnits, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocated: list[int] = []

    def allocate(nbytes: int) -> Tensor:
        allocated.append(nbytes)
        return torch.empty(nbytes, dtype=torch.uint8)

    monkeypatch.setattr(cpu_link, "allocate_pages", allocate)
    stream = LayerStream(plain, ["disk"] * COUNT, device=CPU, slots=3, starts_later=True)
    with closing(stream):
        stream.start(decoded(coded, plain, copies))
        walk(stream, plain)
    sizes = [max(own.nbytes for own in reader.layouts) for reader in (coded, plain)]
    assert sorted(allocated) == [sizes[0], sizes[0], sizes[1]]


def test_units_are_decoded_by_the_thread_that_uses_them(
    plain: PlainUnits, copies: PackedUnits, coded: PackedUnits, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[tuple[int, Thread]] = []
    decode = DecodedUnits.decode

    def note(reader: DecodedUnits, index: int, memory: Tensor, slot: Tensor) -> None:
        used.append((index, current_thread()))
        decode(reader, index, memory, slot)

    monkeypatch.setattr(DecodedUnits, "decode", note)
    stream = LayerStream(plain, ["disk", "ram"] * 2, device=CPU, slots=2, starts_later=True)
    with closing(stream):
        stream.start(decoded(coded, plain, copies))
        walk(stream, plain, passes=1)
    assert used == [(index, current_thread()) for index in range(COUNT)]


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
        plain.check(1, plain.layouts[1].views(slot))


def test_the_identity_tells_other_copies(plain: PlainUnits, tmp_path: Path) -> None:
    found = {CodedUnits(plain, LAYERS, None).identity}
    for group in (32, 64):
        for attempt in range(2):
            folder = tmp_path / f"{group}.{attempt}"
            with closing(pack(Copies(plain, group), folder, "copies", silent)) as own:
                found.add(CodedUnits(plain, LAYERS, own).identity)
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


def test_errors_give_staging_buffers_back(
    plain: PlainUnits, copies: PackedUnits, coded: PackedUnits
) -> None:
    own = decoded(coded, plain, copies)
    reader = FaultyUnits(coded, plain.layouts, own.copies)
    stream = LayerStream(plain, ["disk"] * COUNT, device=CPU, slots=2, starts_later=True)
    with closing(stream):
        stream.start(reader)
        for _ in range(8):
            reader.faults = 3
            with suppress(ModelError):
                walk(stream, plain)
            reader.faults = 0
            stream.seek()
            walk(stream, plain, passes=1)
