"""Tests of the order of CUDA operations, on a fake device that runs with a delay, without a GPU.

tests/gpu/test_stream_cuda.py has the same tests for a real GPU.
"""

import logging
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing

import pytest
import torch
from torch import Tensor

from engine.errors import ModelError
from engine.spec import Tier
from engine.streaming.cuda_copies import FEWEST, MOST
from engine.streaming.cuda_link import CudaDevice, CudaSlot, _PinnedCopy
from engine.streaming.disk import num_staging_buffers
from engine.streaming.ring import LayerStream
from tests.engine.fake_cuda import FakeDevice, install
from tests.engine.units import NumberedUnits, PiecedUnits

CUDA = CudaDevice(torch.device("cuda:0"))
MS = 1e-3
MIXTURES: tuple[tuple[Tier, ...], ...] = (
    ("ram",) * 6,
    ("disk",) * 6,
    ("resident", "ram", "disk", "ram", "disk", "resident"),
)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDevice]:
    fake = FakeDevice()
    install(monkeypatch, fake)
    yield fake
    fake.end()
    assert fake.cudart.pinned == {}, "pinned memory was left behind"


def launch(
    device: FakeDevice, units: NumberedUnits, index: int, weights: Mapping[str, Tensor]
) -> None:
    """Launch work that checks the weights on the device, at their first and at their last use."""
    plain = {name: tensor.as_subclass(Tensor) for name, tensor in weights.items()}
    for _ in range(2):
        device.compute.launch(lambda: units.check(index, plain))


def walk(
    stream: LayerStream, device: FakeDevice, units: NumberedUnits, first: int = 0, last: int = 99
) -> None:
    for index in range(first, min(last, len(units.layouts))):
        with stream.unit(index) as weights:
            launch(device, units, index, weights)


def walk_twice(stream: LayerStream, device: FakeDevice, units: NumberedUnits) -> None:
    for _ in range(2):
        walk(stream, device, units)


def open_stream(units: NumberedUnits, tiers: Sequence[Tier], slots: int) -> LayerStream:
    return LayerStream(units, tiers, device=CUDA, slots=slots)


@pytest.mark.parametrize(("compute", "copy"), [(2 * MS, 0.0), (0.0, 2 * MS), (MS, MS)])
@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("tiers", MIXTURES)
def test_weights_are_right_when_compute_or_copies_are_slow(
    device: FakeDevice, tiers: Sequence[Tier], slots: int, compute: float, copy: float
) -> None:
    device.compute.slow, device.copy_speed = compute, copy
    units = NumberedUnits(6)
    with closing(open_stream(units, tiers, slots)) as stream:
        for _ in range(3):
            walk(stream, device, units)
        device.compute.synchronize()


@pytest.mark.parametrize("slots", [1, 3])
def test_pieces_from_the_disk_are_copied_while_others_are_read(
    device: FakeDevice, slots: int
) -> None:
    """There are more pieces than buffers: each is refilled while others are copied from."""
    device.compute.slow, device.copy_speed = 0.5 * MS, 0.5 * MS
    units = PiecedUnits(4, jitter=0.3 * MS)
    tiers: list[Tier] = ["disk", "disk", "resident", "ram"]
    with closing(open_stream(units, tiers, slots)) as stream:
        walk_twice(stream, device, units)
        units.piece_faults = {(1, 2): [OSError("pulled")] * 2}
        with pytest.raises(ModelError, match="pulled"):
            walk_twice(stream, device, units)
        units.piece_faults.clear()
        stream.seek(0)
        walk_twice(stream, device, units)
        assert stream.measure_link() > 0
        walk(stream, device, units)
        device.compute.synchronize()


def test_pinned_units_are_copied_in_pieces_few_at_a_time(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.streaming.disk.PIECE_BYTES", 4096)
    units = NumberedUnits(5, rows=1200)
    pieces, under_way = [0], []
    copy = CudaSlot.copy

    def counted(slot: CudaSlot, first: int, part: Tensor) -> None:
        copy(slot, first, part)
        pieces[0] += 1
        under_way.append(len(slot.link.stream.copies_under_way))  # type: ignore[attr-defined]  # a fake

    monkeypatch.setattr(CudaSlot, "copy", counted)
    with closing(open_stream(units, ["ram"] * 5, 2)) as stream:
        for _ in range(3):
            walk(stream, device, units)
        device.compute.synchronize()
        assert pieces[0] >= 3 * sum(-(-unit.nbytes // 4096) for unit in units.layouts) > 3 * 25
    assert max(under_way) <= MOST


def test_a_transfer_is_cancelled_between_two_pieces(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of a unit that no pass needs any more does not delay the one that is needed."""
    monkeypatch.setattr("engine.streaming.disk.PIECE_BYTES", 4096)
    # A busy machine launches pieces late, which would raise the limit.
    monkeypatch.setattr("engine.streaming.cuda_copies.MOST", FEWEST)
    units = NumberedUnits(5, rows=4000)
    held, begun, firsts = threading.Event(), threading.Semaphore(0), list[int]()
    copy, cancel = CudaSlot.copy, _PinnedCopy.cancel

    def noted(slot: CudaSlot, first: int, part: Tensor) -> None:
        firsts.append(first)
        copy(slot, first, part)
        begun.release()

    def cancelled(arrival: _PinnedCopy) -> bool:
        was_cancelled = cancel(arrival)
        held.set()
        return was_cancelled

    with closing(open_stream(units, ["ram"] * 5, 1)) as stream:
        walk(stream, device, units, 0, 1)
        with stream.unit(1) as weights:
            launch(device, units, 1, weights)
            monkeypatch.setattr(CudaSlot, "copy", noted)
            monkeypatch.setattr(_PinnedCopy, "cancel", cancelled)
            device.streams[-1].launch(lambda: held.wait(30))  # the stream of copies
        for _ in range(FEWEST):  # of unit 2; its next piece waits for these
            assert begun.acquire(timeout=30)
        stream.seek(3)
        monkeypatch.setattr(_PinnedCopy, "cancel", cancel)
        walk(stream, device, units, 3)
        device.compute.synchronize()
    assert firsts[: FEWEST + 1].count(0) == 1
    assert firsts[FEWEST + 1 :].index(0) <= 1, "the rest of unit 2 was copied too"


@pytest.mark.parametrize("units_at_once", [0, 1, 2, 100])
def test_loading_pins_as_many_bytes_as_are_planned(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch, units_at_once: int
) -> None:
    """Whole units are read into staging buffers, and fewer of them the larger they are."""
    units = NumberedUnits(6, jitter=MS)
    largest = max(unit.nbytes for unit in units.layouts)
    for name, value in (("PIECE_BYTES", 1024), ("STAGING_BYTES", units_at_once * largest)):
        monkeypatch.setattr(f"engine.streaming.disk.{name}", value)
    pin, most = device.cudart.cudaHostRegister, 0

    def register(address: int, nbytes: int, flags: int) -> int:
        nonlocal most
        code = pin(address, nbytes, flags)
        most = max(most, sum(device.cudart.pinned.values()))
        return code

    monkeypatch.setattr(device.cudart, "cudaHostRegister", register)
    with closing(open_stream(units, ["resident"] * 6, 2)) as stream:
        planned = num_staging_buffers(largest, 6) * largest
        assert most == planned == min(max(units_at_once, 1), 4) * largest
        walk(stream, device, units)
        device.compute.synchronize()


@pytest.mark.parametrize("limit", [0, 3 * 4096, 15 * 4096])
@pytest.mark.parametrize("slots", [1, 3])
def test_ram_that_cannot_be_pinned_is_copied_in_pieces(
    device: FakeDevice,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    slots: int,
    limit: int,
) -> None:
    monkeypatch.setattr("engine.streaming.cuda_link.PIECE_BYTES", 4096)
    monkeypatch.setattr("engine.streaming.disk.PIECE_BYTES", 4096)
    device.cudart.limit = limit
    device.compute.slow, device.copy_speed = 0.5 * MS, 0.5 * MS
    units = NumberedUnits(5, rows=1200)  # six pieces each
    with (
        caplog.at_level(logging.WARNING),
        closing(open_stream(units, ["ram"] * 5, slots)) as stream,
    ):
        for _ in range(2):
            walk(stream, device, units)
        assert sum("refused to pin more RAM" in text for text in caplog.messages) == 1
        if limit == 15 * 4096:  # two units fit: one gives its share to the buffers
            assert not any("staging buffers" in text for text in caplog.messages)
        assert stream.stats.bytes >= 2 * sum(unit.nbytes for unit in units.layouts)
        assert stream.stats.busy_seconds > 0


def test_the_host_is_at_most_as_many_units_ahead_as_there_are_slots(
    device: FakeDevice,
) -> None:
    slots = 3
    units = NumberedUnits(8)
    held, finished = threading.Semaphore(0), threading.Semaphore(0)

    def compute() -> None:
        assert held.acquire(timeout=30)
        finished.release()

    with closing(open_stream(units, ["ram"] * 8, slots)) as stream:
        for index in range(slots):  # nothing has been computed yet, and nothing blocks
            with stream.unit(index):
                device.compute.launch(compute)
        waiting = threading.Event()

        def on_wait(seconds: float) -> bool:
            waiting.set()
            held.release()  # the first unit's work ends: its slot may be filled again
            return False

        with stream.unit(slots, on_wait) as weights:
            assert waiting.is_set(), "the host ran ahead of the ring"
            assert finished.acquire(blocking=False)
            launch(device, units, slots, weights)
        for _ in range(slots):
            held.release()


@pytest.mark.parametrize("tiers", MIXTURES)
def test_weights_are_right_after_passes_that_end_early_or_fail(
    device: FakeDevice, tiers: Sequence[Tier]
) -> None:
    device.compute.slow, device.copy_speed = MS, MS
    units = NumberedUnits(6, jitter=MS)
    with closing(open_stream(units, tiers, 3)) as stream:
        first = 0
        for _ in range(12):
            walk(stream, device, units, first, first + random.randrange(7))
            first = random.randrange(6)
            stream.seek(first)
        for unit, tier in enumerate(tiers):
            if tier == "disk":
                stream.seek(0)
                units.faults[unit] = [OSError("pulled")] * 2  # one may be met reading ahead
                with pytest.raises(ModelError, match="pulled"):
                    walk_twice(stream, device, units)
                units.faults.clear()
        stream.seek(0)
        walk(stream, device, units)


def test_pinned_copies_are_timed_by_the_device(device: FakeDevice) -> None:
    device.copy_speed = MS
    units = NumberedUnits(3)
    with closing(open_stream(units, ["ram"] * 3, 1)) as stream:
        walk(stream, device, units)
        stats = stream.stats
        assert stats.ram.bytes == sum(unit.nbytes for unit in units.layouts)
        assert stats.ram.seconds > 0
        assert stats.ram.gbps > 0


def test_computing_is_timed_by_the_device_not_by_its_launch(device: FakeDevice) -> None:
    """All work is launched at once and ends later: no time is known before it has ended."""
    units, held = NumberedUnits(3), threading.Event()
    with closing(open_stream(units, ["ram"] * 3, 3)) as stream:
        device.compute.launch(lambda: held.wait(30))
        for index in range(3):
            with stream.unit(index) as weights:
                launch(device, units, index, weights)
        assert stream._idle.compute_seconds is None
        held.set()
        device.compute.synchronize()
        assert stream._idle.compute_seconds is not None


def test_the_error_of_a_full_device_names_the_settings_to_lower(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*shape: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "empty", refuse)
    for tier in ("resident", "ram"):
        with pytest.raises(ModelError, match=r"cuda:0 has no room.*memory\.device"):
            open_stream(NumberedUnits(2), [tier] * 2, 2)


def test_a_real_link_cannot_be_simulated() -> None:
    with pytest.raises(ModelError, match=r"simulate_gbps is 2\.0, but cuda:0 has a link"):
        CUDA.with_simulated_link(2.0)


def test_a_failed_load_unpins_after_the_last_copy(device: FakeDevice) -> None:
    device.copy_speed = 10 * MS
    units = NumberedUnits(6)
    units.faults = {0: [OSError("torn")]}
    with pytest.raises(ModelError, match="torn"):
        open_stream(units, ["resident"] * 6, 2)
    assert device.cudart.pinned == {}


def test_close_unpins_after_the_last_copy(device: FakeDevice) -> None:
    device.copy_speed = 2 * MS
    stream = open_stream(NumberedUnits(4), ["ram", "disk"] * 2, 4)
    assert len(device.cudart.pinned) > 2
    stream.close()
    stream.close()
    assert device.cudart.pinned == {}
