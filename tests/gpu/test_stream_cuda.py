"""Tests of the ring's ordering rules on a real device, with delays by sleeping kernels.

tests/engine/streaming/test_cuda_link.py has the same tests with a fake device.
"""

# mypy: disallow-untyped-calls=False
# torch.cuda declares no types for events and sleeps.

import logging
import random
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing

import pytest
import torch
from torch import Tensor

from engine.errors import ModelError
from engine.spec import Tier
from engine.streaming.cuda_link import CudaDevice
from engine.streaming.ring import LayerStream
from engine.weights.layout import LayerUnits
from tests.engine.units import NumberedUnits, PiecedUnits

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

CUDA = torch.device("cuda", 0)
CYCLES = 2_000_000  # about a millisecond
SMALL, LARGE = 64, 1_000_000  # rows, whose copies take microseconds or a third of a millisecond
MIXTURES: tuple[tuple[Tier, ...], ...] = (
    ("ram",) * 6,
    ("disk",) * 6,
    ("resident", "ram", "disk", "ram", "disk", "resident"),
)


class Sums:
    """Checksums that are computed on the device and compared at the end, without waiting before."""

    def __init__(self, units: NumberedUnits) -> None:
        self.expected = [_checksum(units.expected(index)) for index in range(len(units.layouts))]
        self.seen: list[tuple[int, Tensor]] = []

    def launch(self, index: int, weights: Mapping[str, Tensor], cycles: int) -> None:
        """Use the weights, delay the device, and use them again."""
        self.seen.append((index, _checksum(weights)))
        torch.cuda._sleep(cycles)
        self.seen.append((index, _checksum(weights)))

    def check(self) -> None:
        """Wait for the device and compare all checksums."""
        torch.cuda.synchronize(CUDA)
        assert self.seen
        for index, checksum in self.seen:
            assert torch.equal(checksum.cpu(), self.expected[index]), f"unit {index}"


def _checksum(weights: Mapping[str, Tensor]) -> Tensor:
    """Return an exact 64-bit checksum that depends on positions, so that mixed units differ."""
    total = torch.zeros((), dtype=torch.int64, device=next(iter(weights.values())).device)
    for tensor in weights.values():
        flat = tensor.flatten().to(torch.int64)
        total += (flat * torch.arange(1, len(flat) + 1, device=flat.device)).sum()
    return total


def walk(
    stream: LayerStream, sums: Sums, cycles: int = 0, first: int = 0, last: int | None = None
) -> None:
    for index in range(first, len(sums.expected) if last is None else last):
        with stream.unit(index) as weights:
            sums.launch(index, weights, cycles)


def open_stream(units: NumberedUnits, tiers: Sequence[Tier], slots: int) -> LayerStream:
    return LayerStream(units, tiers, device=CudaDevice(CUDA), slots=slots)


@pytest.mark.parametrize(("rows", "cycles"), [(SMALL, CYCLES), (LARGE, 0), (LARGE, CYCLES)])
@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("tiers", MIXTURES)
def test_ordering_holds_when_compute_or_copies_are_slow(
    tiers: Sequence[Tier], slots: int, rows: int, cycles: int
) -> None:
    units = NumberedUnits(6, rows)
    sums = Sums(units)
    with closing(open_stream(units, tiers, slots)) as stream:
        for _ in range(3):
            walk(stream, sums, cycles)
        sums.check()


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("tier", ["ram", "disk"])
def test_ordering_holds_for_parts_of_a_layer(tier: Tier, slots: int) -> None:
    units = NumberedUnits(6, LARGE)
    sums, layers = Sums(units), [LayerUnits(0, num_parts=3), LayerUnits(3, num_parts=2)]
    stream = LayerStream(units, [tier] * 6, device=CudaDevice(CUDA), slots=slots, layers=layers)
    with closing(stream):
        for _ in range(3):
            for used in (*(layer.parts for layer in layers), [5]):
                with ExitStack() as stack:
                    for index in used:
                        sums.launch(index, stack.enter_context(stream.unit(index)), CYCLES)
        sums.check()


def test_pieces_from_disk_are_copied_while_others_are_read() -> None:
    units = PiecedUnits(4, 2000, jitter=3e-4)
    sums = Sums(units)
    with closing(open_stream(units, ["disk", "disk", "resident", "ram"], 2)) as stream:
        walk(stream, sums, CYCLES)
        walk(stream, sums, 0)
        assert stream.measure_link() > 0
        walk(stream, sums, CYCLES)
        sums.check()


def test_ordering_holds_for_compute_on_another_stream() -> None:
    units = NumberedUnits(6, LARGE)
    sums = Sums(units)
    compute = torch.cuda.Stream(CUDA)
    with closing(open_stream(units, ["ram"] * 6, 2)) as stream, torch.cuda.stream(compute):
        for _ in range(3):
            walk(stream, sums, CYCLES)
        sums.check()


def test_leaving_a_unit_does_not_wait_for_the_device() -> None:
    units = NumberedUnits(4, SMALL)
    with closing(open_stream(units, ["ram"] * 4, 2)) as stream:
        slept = torch.cuda.Event()
        torch.cuda.synchronize(CUDA)
        with stream.unit(0):
            torch.cuda._sleep(2000 * CYCLES)
            slept.record()
        assert not slept.query(), "leaving the block waited"
        with stream.unit(1):  # in another slot, which was filled earlier
            pass
        assert not slept.query(), "a loaded unit made the host wait"
        with stream.unit(2):  # uses the slot of unit 0
            assert slept.query(), "the slot was filled while it was in use"


@pytest.mark.parametrize("slots", [1, 3])
def test_ram_that_cannot_be_pinned_is_copied_in_pieces(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, slots: int
) -> None:
    cudart, asked = torch.cuda.cudart(), threading.Semaphore(3)

    class Limited:
        """A cudart that registers three times, then has CUDA refuse an unmapped address."""

        cudaHostUnregister = cudart.cudaHostUnregister

        def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:
            granted = asked.acquire(blocking=False)
            return int(cudart.cudaHostRegister(address if granted else 4096, nbytes, flags))

    monkeypatch.setattr(torch.cuda, "cudart", Limited)
    units = NumberedUnits(5, LARGE)
    sums = Sums(units)
    with (
        caplog.at_level(logging.WARNING),
        closing(open_stream(units, ["ram"] * 5, slots)) as stream,
    ):
        for _ in range(2):  # a refusal that is not cleared would fail the next kernel launch
            walk(stream, sums, CYCLES)
        sums.check()
    assert sum("refused to pin more RAM" in text for text in caplog.messages) == 1


@pytest.mark.parametrize("tiers", MIXTURES)
def test_weights_are_right_after_early_ends_and_failed_reads(tiers: Sequence[Tier]) -> None:
    units = NumberedUnits(6, LARGE, jitter=1e-3)
    sums = Sums(units)
    with closing(open_stream(units, tiers, 3)) as stream:
        first = 0
        for _ in range(12):
            walk(stream, sums, CYCLES, first, random.randrange(first, 7))
            first = random.randrange(6)
            stream.seek(first)
        for unit, tier in enumerate(tiers):
            if tier == "disk":
                stream.seek(0)
                units.faults[unit] = [OSError("pulled")] * 2  # a prefetch may raise one of them
                with pytest.raises(ModelError, match="pulled"):
                    walk_twice(stream, sums)
                units.faults.clear()
        stream.seek(0)
        walk(stream, sums)
        sums.check()


def walk_twice(stream: LayerStream, sums: Sums) -> None:
    for _ in range(2):
        walk(stream, sums)


def test_statistics_are_counted_and_memory_is_freed() -> None:
    torch.cuda.synchronize(CUDA)
    before = torch.cuda.memory_allocated(CUDA)
    units = NumberedUnits(4, LARGE)
    sums = Sums(units)
    stream = open_stream(units, ["resident", "ram", "ram", "disk"], 2)
    with closing(stream):
        walk(stream, sums)
        stats = stream.stats
        assert stats.ram.bytes >= units.layouts[1].nbytes + units.layouts[2].nbytes
        assert stats.ram.seconds > 0
        assert stats.disk.bytes >= units.layouts[3].nbytes
        assert stats.units == 4
    sums.check()
    sums.seen.clear()
    assert torch.cuda.memory_allocated(CUDA) == before
    assert not [t for t in threading.enumerate() if t.name.startswith("weights-")]
