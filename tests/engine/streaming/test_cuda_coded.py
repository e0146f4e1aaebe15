"""Coded units on a fake CUDA device that runs with a delay, without a GPU.

tests/gpu/test_coded_cuda.py has some of these tests for a real GPU.
"""

import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.cache_files import unit_name
from engine.errors import ModelError
from engine.spec import Tier
from engine.streaming.coded import CODED_STAGING, DecodedUnits
from engine.streaming.cuda_link import CudaDevice, CudaSlot
from engine.streaming.cuda_staging import CodedCopy
from engine.streaming.packed import PackedUnits
from engine.streaming.ring import LayerStream
from engine.weights.layout import LayerUnits
from tests.engine.coded_units import FaultyUnits, PlainUnits, decoded, packed
from tests.engine.fake_cuda import FakeDevice, FakeEvent, current_stream, install

CUDA = CudaDevice(torch.device("cuda:0"))
MS = 1e-3
COUNT = 6
PIECE = 4096
LAYERS = tuple(LayerUnits(index) for index in range(COUNT - 1))
PARTS = (LayerUnits(0, num_parts=3), LayerUnits(3, num_parts=2))
MIXTURES: tuple[tuple[Tier, ...], ...] = (
    ("ram",) * 6,
    ("disk",) * 6,
    ("resident", "ram", "disk", "ram", "disk", "resident"),
)
SLOW: Sequence[tuple[float, float, float]] = (  # compute, copies, decoding
    (2 * MS, 0.0, 0.0),
    (0.0, 2 * MS, 0.0),
    (0.0, 0.0, 2 * MS),
    (MS, MS, MS),
)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDevice]:
    fake = FakeDevice()
    install(monkeypatch, fake)
    yield fake
    fake.end()
    assert fake.cudart.pinned == {}, "pinned memory was left behind"


class LateUnits(FaultyUnits):
    """Coded units that are decoded when the device comes to it, by streams that may be slow."""

    slow = 0.0  # the longest time of decoding a unit
    held: threading.Event | None = None  # decoding waits for it
    decoded: list[int]

    def decode(self, index: int, memory: Tensor, slot: Tensor) -> None:
        held, plain = self.held, [own.as_subclass(Tensor) for own in (memory, slot)]

        def run() -> None:
            if held is not None:
                assert held.wait(30)
            time.sleep(random.uniform(0, self.slow))
            DecodedUnits.decode(self, index, *plain)

        current_stream().launch(run)
        self.decoded.append(index)
        self.fail()  # after some kernels have been launched


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which the first test packs the units."""
    return tmp_path_factory.mktemp("packed")


@contextmanager
def late_units(
    folder: Path, patch: pytest.MonkeyPatch
) -> Iterator[tuple[LateUnits, PlainUnits, PackedUnits]]:
    """Yield coded units in several pieces, the plain ones, and the packed ones."""
    for module in ("disk", "packed", "cuda_link"):
        patch.setattr(f"engine.streaming.{module}.PIECE_BYTES", PIECE)
    plain = PlainUnits(COUNT)
    with packed(plain, folder, LAYERS) as (coded, copies):
        reader = LateUnits(coded, plain.layouts, decoded(coded, plain, copies).copies)
        reader.decoded = []
        assert min(len(reader.pieces(index)) for index in range(COUNT)) > 3
        yield reader, plain, coded


def launch(
    device: FakeDevice, plain: PlainUnits, index: int, weights: Mapping[str, Tensor]
) -> None:
    """Launch work that checks the weights on the device, at their first and at their last use."""
    own = {name: tensor.as_subclass(Tensor) for name, tensor in weights.items()}
    for _ in range(2):
        device.compute.launch(lambda: plain.check(index, own))


def walk(
    stream: LayerStream, device: FakeDevice, plain: PlainUnits, first: int = 0, last: int = COUNT
) -> None:
    for index in range(first, min(last, COUNT)):
        with stream.unit(index) as weights:
            launch(device, plain, index, weights)


@pytest.mark.parametrize(("compute", "copy", "decoding"), SLOW)
@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("tiers", MIXTURES, ids="-".join)
def test_weights_are_right_whatever_is_slow(
    device: FakeDevice,
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    tiers: Sequence[Tier],
    slots: int,
    compute: float,
    copy: float,
    decoding: float,
) -> None:
    device.compute.slow, device.copy_speed = compute, copy
    with late_units(folder, monkeypatch) as (units, plain, _):
        units.slow = decoding
        with closing(LayerStream(units, tiers, device=CUDA, slots=slots)) as stream:
            at_load = {index for index, tier in enumerate(tiers) if tier == "resident"}
            assert at_load <= set(units.decoded)
            for _ in range(2):
                walk(stream, device, plain)
            device.compute.synchronize()
            streamed = [i for i, tier in enumerate(tiers) if tier != "resident"]
            sizes = [units.layouts[index].nbytes for index in streamed]
            assert stream.stats.bytes >= 2 * sum(sizes)
            assert stream.stats.busy_seconds > 0


@pytest.mark.parametrize("limit", [0, 15 * PIECE])
def test_ram_that_cannot_be_pinned_is_decoded_too(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch, folder: Path, limit: int
) -> None:
    device.cudart.limit = limit
    device.compute.slow, device.copy_speed = 0.5 * MS, 0.5 * MS
    with (
        late_units(folder, monkeypatch) as (units, plain, _),
        closing(LayerStream(units, MIXTURES[0], device=CUDA, slots=2)) as stream,
    ):
        for _ in range(2):
            walk(stream, device, plain)
        device.compute.synchronize()


@pytest.mark.parametrize("tier", ["ram", "disk"])
@pytest.mark.parametrize("slots", [1, 2, 4])
def test_parts_of_layers_are_right_in_use_together(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch, folder: Path, slots: int, tier: Tier
) -> None:
    device.compute.slow, device.copy_speed = MS, MS
    with late_units(folder, monkeypatch) as (units, plain, _):
        units.slow = MS
        made = LayerStream(units, [tier] * COUNT, device=CUDA, slots=slots, layers=PARTS)
        with closing(made) as stream:
            for _ in range(3):
                for used in (*(layer.parts for layer in PARTS), range(COUNT - 1, COUNT)):
                    with_all(stream, device, plain, list(used))
            device.compute.synchronize()


def with_all(stream: LayerStream, device: FakeDevice, plain: PlainUnits, units: list[int]) -> None:
    """Use units inside each other's blocks."""
    if units:
        with stream.unit(units[0]) as weights:
            with_all(stream, device, plain, units[1:])
            launch(device, plain, units[0], weights)


@pytest.mark.parametrize("tiers", MIXTURES, ids="-".join)
def test_weights_are_right_after_passes_that_end_early_or_fail(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch, folder: Path, tiers: Sequence[Tier]
) -> None:
    """Buffers of the device are given back, and a decoding that failed writes to no used slot."""
    device.compute.slow, device.copy_speed = 0.5 * MS, 0.5 * MS
    with late_units(folder, monkeypatch) as (units, plain, _):
        units.slow = MS
        with closing(LayerStream(units, tiers, device=CUDA, slots=3)) as stream:
            first = 0
            for _ in range(3 * CODED_STAGING):
                units.faults = 3
                with suppress(ModelError):
                    walk(stream, device, plain, first, first + random.randrange(COUNT + 1))
                units.faults = 0
                for _ in range(3):  # each slot may hold a unit that failed ahead
                    first = random.randrange(COUNT)
                    stream.seek(first)
                    with suppress(ModelError):
                        walk(stream, device, plain, first)
                stream.seek(0)
                walk(stream, device, plain)
                first = 0
            device.compute.synchronize()


def test_a_failed_decoding_is_the_error_of_the_unit(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    with (
        late_units(folder, monkeypatch) as (units, plain, _),
        closing(LayerStream(units, MIXTURES[0], device=CUDA, slots=1)) as stream,
    ):
        walk(stream, device, plain)

        def fail(*_: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(units, "decode", fail)
        stream.seek(2)
        with pytest.raises(torch.OutOfMemoryError):
            walk(stream, device, plain, 2)


def test_the_next_unit_is_copied_while_a_unit_is_decoded(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    with late_units(folder, monkeypatch) as (units, plain, _):
        units.held, arrived = threading.Event(), threading.Semaphore(0)
        copy = CodedCopy.copy

        def noted(target: CodedCopy, first: int, *rest: Any) -> None:
            copy(target, first, *rest)
            current = target._staging.copies
            current.launch(arrived.release)  # type: ignore[attr-defined]  # a fake stream

        monkeypatch.setattr(CodedCopy, "copy", noted)
        pieces = sum(len(units.pieces(index)) for index in range(CODED_STAGING))
        with closing(LayerStream(units, MIXTURES[0], device=CUDA, slots=3)) as stream:
            for _ in range(pieces):  # nothing is decoded yet
                assert arrived.acquire(timeout=10)
            assert not arrived.acquire(timeout=0.05), "a buffer was filled before it was decoded"
            units.held.set()
            walk(stream, device, plain)
            device.compute.synchronize()


def test_a_cancelled_unit_is_not_decoded(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    with (
        late_units(folder, monkeypatch) as (units, plain, _),
        closing(LayerStream(units, MIXTURES[0], device=CUDA, slots=1)) as stream,
    ):
        walk(stream, device, plain, 0, 1)
        held, begun = threading.Event(), threading.Event()
        copy = CodedCopy.copy

        def noted(target: CodedCopy, *rest: Any) -> None:
            copy(target, *rest)
            begun.set()
            assert held.wait(30)

        with stream.unit(1) as weights:
            launch(device, plain, 1, weights)
            monkeypatch.setattr(CodedCopy, "copy", noted)
            units.decoded.clear()
        assert begun.wait(30)  # the first piece of unit 2
        threading.Timer(0.02, held.set).start()  # while the next call waits for it
        stream.seek(4)
        walk(stream, device, plain, 4)
        device.compute.synchronize()
        assert 2 not in units.decoded


def test_only_the_copy_is_counted_as_time_of_the_link(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    seen = list[object]()
    with (
        late_units(folder, monkeypatch) as (units, plain, _),
        closing(LayerStream(units, MIXTURES[0], device=CUDA, slots=1)) as stream,
    ):
        elapsed = "tests.engine.fake_cuda.FakeEvent.elapsed_time"

        def note(began: FakeEvent, end: FakeEvent) -> float:
            seen.append(end)
            return 1.0

        monkeypatch.setattr(elapsed, note)
        slots = list[CudaSlot]()
        monkeypatch.setattr(CudaSlot, "release", lambda slot: slots.append(slot))
        walk(stream, device, plain, 0, 1)
    assert seen and slots and slots[0].ready not in seen


def test_a_damaged_unit_is_coded_again(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with late_units(tmp_path, monkeypatch) as (units, plain, coded):
        path = coded.folder / unit_name(2)
        data = bytearray(path.read_bytes())
        data[1000] ^= 1
        path.write_bytes(data)
        with closing(LayerStream(units, MIXTURES[1], device=CUDA, slots=2)) as stream:
            walk(stream, device, plain)
            device.compute.synchronize()
        assert coded.num_repaired == 1


def test_a_device_without_room_for_the_buffers_is_an_error(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    with late_units(folder, monkeypatch) as (units, _, _):
        largest = max(layout.nbytes for layout in units.layouts)
        own = torch.empty

        def refuse(size: Any, *shape: Any, **options: Any) -> Tensor:
            if size == largest and "device" in options:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return own(size, *shape, **options)

        monkeypatch.setattr(torch, "empty", refuse)
        with pytest.raises(ModelError, match=r"cuda:0 has no room.*memory\.device"):
            LayerStream(units, MIXTURES[0], device=CUDA, slots=2)
        left = [own.name for own in threading.enumerate() if own.name.startswith("weights-")]
        assert left == [], "no thread is left"
