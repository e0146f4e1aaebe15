"""Rings, staging buffers, KV pages and side streams on a pretended device: races that are planted.

Without a planted race there is none.
"""

# mypy: disallow-untyped-calls=False
# torch.cuda declares no types for events.

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.spec import Tier
from engine.streaming import cuda_link, cuda_staging, page_store
from engine.streaming.cuda_link import CudaSlot
from engine.streaming.cuda_pages import CudaPageStore
from engine.streaming.cuda_staging import DeviceStaging
from engine.streaming.cuda_streams import CudaSideStream
from engine.streaming.ring import LayerStream
from engine.weights.layout import LayerUnits, UnitReader, whole_layers
from tests.engine.coded_units import PlainUnits, decoded, packed
from tests.engine.order.pretended_cuda import PretendedCuda
from tests.engine.page_traffic import Traffic, small_cache
from tests.engine.units import NumberedUnits, PiecedUnits

Plant = Callable[[pytest.MonkeyPatch], None]
PIECE = 4096
MIXTURES: tuple[tuple[Tier, ...], ...] = (
    ("ram",) * 5,
    ("disk",) * 5,
    ("resident", "ram", "disk", "ram", "disk"),
)
PARTS = (LayerUnits(0, num_parts=3), LayerUnits(3))


def nothing(*_: Any) -> None:
    """Stand in for a call that is left out."""


def no_plant(patch: pytest.MonkeyPatch) -> None:
    """Leave the code as it is."""


def fill_without_waiting(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CudaSlot, "release", nothing)  # so the slot's event says that it is free


def use_without_waiting(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cuda_link, "_wait", nothing)


def be_ready_before_the_pieces(patch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def filling(slot: CudaSlot) -> Iterator[None]:
        slot.link.stream.wait_event(slot._free)
        slot.began.record(slot.link.stream)
        slot.ready.record(slot.link.stream)
        yield

    patch.setattr(CudaSlot, "filling", filling)


def refill_without_waiting(patch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def buffer(staging: Any) -> Iterator[Any]:
        memory, drained = staging._waiting.get()
        try:
            yield memory.memory, drained
        finally:
            staging._waiting.put((memory, drained))

    patch.setattr(cuda_staging.HostStaging, "buffer", buffer)


def decode_before_the_copy(patch: pytest.MonkeyPatch) -> None:
    own = DeviceStaging.decode

    def decode(staging: Any, unit: int, buffer: Any, copied: Any, slot: Any) -> None:
        own(staging, unit, buffer, torch.cuda.Event(), slot)

    patch.setattr(DeviceStaging, "decode", decode)


def be_ready_before_decoding(patch: pytest.MonkeyPatch) -> None:
    own = DeviceStaging.decode

    def decode(staging: Any, unit: int, buffer: Any, copied: Any, slot: Any) -> None:
        ready = slot.ready
        ready.record(staging.stream)
        slot.ready = torch.cuda.Event()
        own(staging, unit, buffer, copied, slot)
        slot.ready = ready

    patch.setattr(DeviceStaging, "decode", decode)


def copy_into_a_buffer_in_use(patch: pytest.MonkeyPatch) -> None:
    own = DeviceStaging.buffer

    @contextmanager
    def buffer(staging: Any) -> Iterator[Any]:
        with own(staging) as found:
            yield replace(found, drained=torch.cuda.Event())

    patch.setattr(DeviceStaging, "buffer", buffer)


def decode_into_a_slot_in_use(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CudaSlot, "wait_until_free", nothing)


@pytest.mark.parametrize("tiers", MIXTURES, ids="-".join)
@pytest.mark.parametrize("pinned", [2**40, 3 * PIECE])
def test_the_ring_has_no_unordered_accesses(
    cuda: PretendedCuda, monkeypatch: pytest.MonkeyPatch, tiers: tuple[Tier, ...], pinned: int
) -> None:
    walk_the_ring(cuda, monkeypatch, tiers, pinned)
    cuda.checker.check()
    assert cuda.checker.num_accesses > 100


@pytest.mark.parametrize(
    ("plant", "tiers", "pinned", "race"),
    [
        (fill_without_waiting, MIXTURES[0], 2**40, "copy_ .*overwrites what is read by.*sum"),
        (use_without_waiting, MIXTURES[0], 2**40, "sum .*reads what is written by.*copy_"),
        (be_ready_before_the_pieces, MIXTURES[0], 2**40, "sum .*reads what is written by.*copy_"),
        (refill_without_waiting, MIXTURES[1], 2**40, "read_piece .*overwrites what is read by"),
        (refill_without_waiting, MIXTURES[0], 0, "copy_bytes .*overwrites what is read by"),
    ],
)
def test_a_race_in_the_ring_is_found(
    cuda: PretendedCuda,
    monkeypatch: pytest.MonkeyPatch,
    plant: Plant,
    tiers: tuple[Tier, ...],
    pinned: int,
    race: str,
) -> None:
    plant(monkeypatch)
    walk_the_ring(cuda, monkeypatch, tiers, pinned)
    with pytest.raises(AssertionError, match=f"(?s){race}"):
        cuda.checker.check()


@pytest.mark.parametrize("tiers", [own[:4] for own in MIXTURES], ids="-".join)
@pytest.mark.parametrize("pinned", [2**40, 3 * PIECE])
def test_a_ring_of_coded_units_has_no_unordered_accesses(
    cuda: PretendedCuda,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tiers: tuple[Tier, ...],
    pinned: int,
) -> None:
    for layers in (whole_layers(3), (LayerUnits(0, num_parts=3),)):
        walk_coded(cuda, monkeypatch, tmp_path, tiers, pinned, layers)
    cuda.checker.check()
    assert cuda.checker.num_accesses > 100 and cuda.num_decoded >= 2 * 3 * 2


@pytest.mark.parametrize(
    ("plant", "race"),
    [
        (decode_before_the_copy, "decode .*reads what is written by.*copy_"),
        (be_ready_before_decoding, "sum .*reads what is written by.*decode"),
        (copy_into_a_buffer_in_use, "copy_ .*overwrites what is read by.*decode"),
        (decode_into_a_slot_in_use, "decode .*overwrites what is read by.*sum"),
        (use_without_waiting, "sum .*reads what is written by.*decode"),
    ],
)
@pytest.mark.parametrize("tiers", [own[:4] for own in MIXTURES[:2]], ids="-".join)
def test_a_race_in_a_ring_of_coded_units_is_found(
    cuda: PretendedCuda,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tiers: tuple[Tier, ...],
    plant: Plant,
    race: str,
) -> None:
    plant(monkeypatch)
    walk_coded(cuda, monkeypatch, tmp_path, tiers, 2**40, whole_layers(3))
    with pytest.raises(AssertionError, match=f"(?s){race}"):
        cuda.checker.check()


@pytest.mark.parametrize("pinned", [2**40, 3 * PIECE])
def test_a_ring_of_parts_has_no_unordered_accesses(
    cuda: PretendedCuda, monkeypatch: pytest.MonkeyPatch, pinned: int
) -> None:
    walk_the_ring(cuda, monkeypatch, MIXTURES[0], pinned, PARTS)
    cuda.checker.check()
    assert cuda.checker.num_accesses > 100


def test_a_race_in_a_ring_of_parts_is_found(
    cuda: PretendedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_without_waiting(monkeypatch)
    walk_the_ring(cuda, monkeypatch, MIXTURES[0], 2**40, PARTS)
    with pytest.raises(AssertionError, match=r"(?s)copy_ .*overwrites what is read by.*sum"):
        cuda.checker.check()


def walk_the_ring(
    cuda: PretendedCuda,
    monkeypatch: pytest.MonkeyPatch,
    tiers: tuple[Tier, ...],
    pinned: int,
    layers: Sequence[LayerUnits] = whole_layers(4),
) -> None:
    """Use all units in three passes. There are more pieces than staging buffers."""
    use_small_pieces(monkeypatch)
    cuda.cudart.limit = pinned
    units = PiecedUnits(len(tiers), rows=2000) if "disk" in tiers else NumberedUnits(5, rows=2000)
    walk(cuda, units, tiers, layers)


def walk_coded(
    cuda: PretendedCuda,
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    tiers: tuple[Tier, ...],
    pinned: int,
    layers: Sequence[LayerUnits],
) -> None:
    """Use all coded units in three passes."""
    use_small_pieces(monkeypatch)
    cuda.cudart.limit = pinned
    plain = PlainUnits()
    with packed(plain, folder) as (coded, copies):
        reader = decoded(coded, plain, copies)
        with cuda.recording():  # the copies are made by the device
            for index in range(len(plain.layouts)):
                for copy in reader.copies(index).values():
                    copy.pairs.add_(0)
                    copy.scales.view(torch.int16).add_(0)
        walk(cuda, reader, tiers, layers)


def use_small_pieces(patch: pytest.MonkeyPatch) -> None:
    for module in ("cuda_link", "disk", "packed"):
        patch.setattr(f"engine.streaming.{module}.PIECE_BYTES", PIECE)


def walk(
    cuda: PretendedCuda, units: UnitReader, tiers: tuple[Tier, ...], layers: Sequence[LayerUnits]
) -> None:
    cuda.device.use_compute_stream()
    with (
        cuda.recording(),
        closing(LayerStream(units, tiers, device=cuda.device, slots=2, layers=layers)) as stream,
    ):
        for start in (0, 0, len(layers) - 1):
            stream.seek(layers[start].first)
            for units_of_layer in [*(own.parts for own in layers[start:]), [len(tiers) - 1]]:
                with ExitStack() as stack:
                    for index in units_of_layer:
                        for tensor in stack.enter_context(stream.unit(index)).values():
                            tensor.sum()


def copy_pages_without_waiting(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CudaPageStore, "_follow_compute", nothing)


def use_pages_without_waiting(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CudaPageStore, "wait", nothing)


@pytest.mark.parametrize(
    ("plant", "race"),
    [
        (no_plant, ""),
        (copy_pages_without_waiting, "copy_ .*cuda_pages.*reads what is written by.*page_pool"),
        (use_pages_without_waiting, "page_pool.*is (read|written) by.*cuda_pages"),
    ],
)
def test_pages_that_travel_are_ordered(
    cuda: PretendedCuda, monkeypatch: pytest.MonkeyPatch, plant: Plant, race: str
) -> None:
    monkeypatch.setattr(page_store, "STAGING_BYTES", 3 * small_cache(1).pool.memory.nbytes)
    plant(monkeypatch)
    cuda.device.use_compute_stream()
    with cuda.recording():
        cache = small_cache(8, 10, cuda.device)
        traffic = Traffic(cache, 0)
        for _ in range(80):
            traffic.step()
        traffic.check()  # the host waits here for the first time
        traffic.finish_all()
        cache.release()
    if race:
        with pytest.raises(AssertionError, match=f"(?s){race}"):
            cuda.checker.check()
    else:
        cuda.checker.check()


def begin_without_event(patch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def during_pass(stream: CudaSideStream) -> Iterator[None]:
        stream._is_in_pass = True
        yield
        stream.join()

    patch.setattr(CudaSideStream, "during_pass", during_pass)


def end_without_joining(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CudaSideStream, "join", nothing)


@pytest.mark.parametrize(
    ("plant", "race"),
    [
        (no_plant, ""),
        (begin_without_event, r"add_ .*\(beside\).*overwrites what is written by.*\(compute\)"),
        (end_without_joining, r"sum .*\(compute\).*reads what is written by.*\(beside\)"),
    ],
)
def test_work_beside_a_pass_is_ordered(
    cuda: PretendedCuda, monkeypatch: pytest.MonkeyPatch, plant: Plant, race: str
) -> None:
    plant(monkeypatch)
    cuda.device.use_compute_stream()
    side_stream = cuda.device.side_stream()
    with cuda.recording():
        drafted, computed = torch.zeros(3), torch.zeros(3)
        with side_stream.during_pass():
            computed.add_(1)
            with side_stream.drafting():
                drafted.add_(1)
        drafted.sum()
        computed.sum()
    if race:
        with pytest.raises(AssertionError, match=f"(?s){race}"):
            cuda.checker.check()
    else:
        cuda.checker.check()


@pytest.mark.parametrize("waits", [False, True])
def test_memory_freed_while_another_stream_uses_it_is_found(
    cuda: PretendedCuda, waits: bool
) -> None:
    """The allocator may give it to later work of its own stream at once."""
    own, other = cuda.new_stream(), cuda.new_stream()
    with cuda.recording():
        with cuda.stream(own):
            made = torch.zeros(3)
        other.wait_stream(own)
        with cuda.stream(other):
            made.add_(1)
        del made
        if waits:
            own.wait_stream(other)
        with cuda.stream(own):
            torch.zeros(3)
    assert len(cuda.checker.races) == (0 if waits else 1)
    if not waits:
        with pytest.raises(AssertionError, match="may be given freed memory"):
            cuda.checker.check()


@pytest.mark.parametrize("how", ["read", "write", "both read", "item", "event"])
def test_only_accesses_without_an_order_are_reported(cuda: PretendedCuda, how: str) -> None:
    own, other = cuda.new_stream(), cuda.new_stream()
    with cuda.recording():
        made = torch.zeros(3)
        own.wait_stream(cuda.current_stream())
        other.wait_stream(cuda.current_stream())
        with cuda.stream(own):
            total = made.sum() if how == "both read" else made.add_(1).sum()
            if how == "item":
                total.item()
            event = torch.cuda.Event()
            event.record()
        if how == "event":
            while not event.query():
                pass
        with cuda.stream(other):
            if how == "write":
                made.fill_(2)
            else:
                made.sum()
    assert bool(cuda.checker.races) == (how in ("read", "write"))
