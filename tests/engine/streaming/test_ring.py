"""Tests of the weight stream in ordinary memory: order, overlap, errors, seeking, statistics."""

import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from engine.errors import ModelError
from engine.messages import LoadProgress
from engine.spec import Tier
from engine.streaming.cpu_link import CpuDevice
from engine.streaming.ring import LayerStream, OnWait
from engine.weights.layout import PAGE_BYTES
from tests.engine.units import NumberedUnits

CPU = CpuDevice()
TIERS: tuple[Tier, ...] = ("resident", "ram", "disk")


@contextmanager
def opened(
    units: NumberedUnits,
    tiers: Sequence[Tier],
    slots: int = 2,
    simulate_gbps: float | None = None,
) -> Iterator[LayerStream]:
    device = CpuDevice(simulate_gbps=simulate_gbps)
    stream = LayerStream(units, tiers, device=device, slots=slots)
    with closing(stream):
        yield stream


def walk(
    stream: LayerStream,
    units: NumberedUnits,
    first: int = 0,
    compute: float = 0.0,
    on_wait: OnWait | None = None,
) -> None:
    """Run the rest of a pass, and check each unit when its block begins and when it ends."""
    for index in range(first, len(units.layouts)):
        with stream.unit(index, on_wait) as weights:
            units.check(index, weights)
            time.sleep(random.uniform(0, compute))
            units.check(index, weights)


def weight_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("weights-")]


@pytest.mark.parametrize("slots", [1, 2, 3, 4])
@pytest.mark.parametrize("tier", TIERS)
def test_every_unit_is_given_in_each_of_several_passes(tier: Tier, slots: int) -> None:
    units = NumberedUnits(5)
    with opened(units, [tier] * 5, slots) as stream:
        for _ in range(3):
            walk(stream, units)


@settings(max_examples=60)
@given(
    tiers=st.lists(st.sampled_from(TIERS), min_size=1, max_size=7),
    slots=st.integers(1, 4),
    read_ms=st.sampled_from([0.0, 1.0]),
    compute_ms=st.sampled_from([0.0, 1.0]),
    leaves=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=4),
)
def test_weights_are_right_after_passes_that_end_early(
    tiers: list[Tier],
    slots: int,
    read_ms: float,
    compute_ms: float,
    leaves: list[tuple[int, int]],
) -> None:
    units = NumberedUnits(len(tiers), jitter=read_ms / 1e3)
    with opened(units, tiers, slots, simulate_gbps=0.05 if read_ms else None) as stream:
        first = 0
        for last, target in leaves:
            for index in range(first, min(last, len(tiers))):
                with stream.unit(index) as weights:
                    units.check(index, weights)
                    time.sleep(random.uniform(0, compute_ms / 1e3))
                    units.check(index, weights)
            first = target % len(tiers)
            stream.seek(first)
        walk(stream, units, first, compute_ms / 1e3)
        walk(stream, units, 0, compute_ms / 1e3)
    assert weight_threads() == []


@pytest.mark.parametrize("slots", [1, 2, 3, 4])
def test_a_slot_is_not_written_while_its_block_runs(slots: int) -> None:
    """Reads are faster than computing: inside a block exactly the other slots are filled."""
    units = NumberedUnits(6)
    with opened(units, ["disk"] * 6, slots) as stream:
        for _ in range(slots):
            assert units.begun.acquire(timeout=30)
        for step in range(18):
            with stream.unit(step % 6) as weights:
                assert not units.begun.acquire(blocking=False), "a read begun before the block"
                assert sum(units.reads.values()) == step + slots
                units.check(step % 6, weights)
            assert units.begun.acquire(timeout=30), "leaving the block starts the next read"


@pytest.mark.parametrize("slots", [1, 3])
def test_on_wait_is_called_while_a_slow_read_runs(slots: int) -> None:
    """Reads are slower than computing: none ends before the caller waits for its unit."""
    units = NumberedUnits(4)
    units.gates = {index: threading.Semaphore(0) for index in range(4)}
    waited: list[int] = []
    with opened(units, ["disk"] * 4, slots) as stream:
        for step in range(8):
            index = step % 4

            def on_wait(seconds: float, index: int = index, step: int = step) -> bool:
                assert seconds >= 0
                assert threading.current_thread() is threading.main_thread()
                waited.append(step)
                units.gates[index].release()
                return False

            with stream.unit(index, on_wait) as weights:
                units.check(index, weights)
        assert waited == list(range(8))
        assert stream.stats.units == 8
        assert stream.stats.stall_seconds > 0
        for gate in units.gates.values():  # what is read ahead must end before close returns
            gate.release()


def test_on_wait_gets_the_measured_time_of_a_unit() -> None:
    units = NumberedUnits(3)  # all of one size
    offered: list[float] = []
    with opened(units, ["ram"] * 3, 1, simulate_gbps=1e-4) as stream:
        walk(stream, units)

        def on_wait(seconds: float) -> bool:
            offered.append(seconds)
            return False

        walk(stream, units, on_wait=on_wait)
        assert 0 < max(offered) <= stream.stats.busy_seconds


def test_on_wait_is_not_called_when_the_unit_has_arrived() -> None:
    units = NumberedUnits(2)
    with opened(units, ["resident", "resident"]) as stream:
        walk(stream, units, on_wait=lambda seconds: pytest.fail("nothing to wait for"))
        assert stream.stats.stall_seconds == 0


@pytest.mark.parametrize("fault", [OSError(5, "Input/output error"), ModelError("bad checksum")])
def test_a_failed_read_fails_its_unit_and_the_next_pass_works(fault: Exception) -> None:
    units = NumberedUnits(4)
    with opened(units, ["disk"] * 4, 2) as stream:
        walk(stream, units)
        units.faults = {2: [replace_fault(fault)]}
        with stream.unit(0), pytest.raises(AssertionError, match="inside"), stream.unit(1):
            pass
        with stream.unit(1):
            pass
        with pytest.raises(ModelError, match=r"layer\.2.*could not be read|bad checksum"):
            walk(stream, units, 2)
        with pytest.raises(ModelError):  # the failure lasts until seek is called
            walk(stream, units, 2)
        stream.seek(0)
        walk(stream, units)
        walk(stream, units)


def replace_fault(fault: Exception) -> Exception:
    """Return a new exception for each run, since an exception collects tracebacks."""
    return type(fault)(*fault.args)


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_a_failed_unit_can_be_requested_again(slots: int) -> None:
    units = NumberedUnits(3)
    units.faults = {0: [OSError("pulled"), OSError("pulled again")]}
    with opened(units, ["disk"] * 3, slots) as stream:
        for _ in range(2):
            with pytest.raises(ModelError, match="pulled"), stream.unit(0):
                pass
            stream.seek(0)
        walk(stream, units)


def test_a_failed_prefetch_fails_only_the_pass_that_needs_the_unit() -> None:
    units = NumberedUnits(3)
    with opened(units, ["disk"] * 3, 2) as stream:
        for index in range(2):
            with stream.unit(index):
                units.faults = {0: [OSError("gone")]}
        with stream.unit(2) as weights:  # unit 0 of the next pass fails meanwhile
            units.check(2, weights)
        with pytest.raises(ModelError, match=r"layer\.0"), stream.unit(0):
            pass
        stream.seek(0)
        walk(stream, units)


def test_an_unexpected_error_of_the_reader_is_raised_unchanged() -> None:
    units = NumberedUnits(2)
    units.faults = {1: [ZeroDivisionError("bug")]}
    with opened(units, ["disk"] * 2) as stream:
        with stream.unit(0):
            pass
        with pytest.raises(ZeroDivisionError, match="bug"), stream.unit(1):
            pass


@pytest.mark.parametrize("last", [4, 5])
def test_seek_keeps_prefetched_units_that_are_still_needed(last: int) -> None:
    units = NumberedUnits(5)
    with opened(units, ["disk"] * 5, 3) as stream:
        for index in range(last):  # a pass may end before the head: no row needs logits
            with stream.unit(index):
                pass
        stream.seek(0)
        for index in range(2):
            with stream.unit(index) as weights:
                units.check(index, weights)
                assert units.reads[index] == 2  # once for each pass that used it


def test_a_block_that_raises_frees_its_slot() -> None:
    units = NumberedUnits(3)
    with opened(units, ["ram", "disk", "ram"], 1) as stream:
        for index in range(2):
            for earlier in range(index):
                with stream.unit(earlier):
                    pass
            with pytest.raises(KeyError), stream.unit(index):
                raise KeyError("cancelled")
            stream.seek(0)
        walk(stream, units)


@pytest.mark.parametrize("slots", [1, 3])
def test_close_while_reading_waits_and_ends_every_thread(slots: int) -> None:
    units = NumberedUnits(4)
    units.gates = {0: threading.Semaphore(0)}
    stream = LayerStream(units, ["disk"] * 4, device=CPU, slots=slots)
    assert units.begun.acquire(timeout=30)
    assert weight_threads()
    threading.Thread(target=units.gates[0].release).start()
    stream.close()
    stream.close()
    assert weight_threads() == []
    with pytest.raises(AssertionError, match="after close"), stream.unit(0):
        pass
    with pytest.raises(AssertionError, match="after close"):
        stream.seek(0)


def test_close_inside_a_block_is_safe() -> None:
    units = NumberedUnits(3)
    stream = LayerStream(units, ["ram", "disk", "resident"], device=CPU, slots=2)
    with stream.unit(0) as weights:
        stream.close()
        units.check(0, weights)
    assert weight_threads() == []


@pytest.mark.parametrize("tier", ["resident", "ram"])
@pytest.mark.parametrize("fault", [OSError("torn"), ModelError("torn")])
def test_a_failed_load_raises_and_leaves_no_thread(tier: Tier, fault: Exception) -> None:
    units = NumberedUnits(6)
    units.faults = {3: [replace_fault(fault)]}
    with pytest.raises(ModelError, match="torn"):
        LayerStream(units, [tier] * 6, device=CPU, slots=2)
    assert weight_threads() == []


def test_the_error_of_refused_memory_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("engine.streaming.pinned.mmap.mmap", refuse)
    with pytest.raises(ModelError, match=r"MiB of host memory.*memory\.ram"):
        LayerStream(NumberedUnits(2), ["ram"] * 2, device=CPU, slots=1)
    assert weight_threads() == []


def test_wrong_use_fails_an_assertion() -> None:
    units = NumberedUnits(3)
    with pytest.raises(AssertionError, match="one tier for each unit"):
        LayerStream(units, ["ram"] * 2, device=CPU, slots=1)
    with pytest.raises(AssertionError, match="at least one slot is needed, not 0"):
        LayerStream(units, ["ram"] * 3, device=CPU, slots=0)
    with opened(units, ["ram"] * 3) as stream:
        with pytest.raises(AssertionError, match="unit 1 was requested, but unit 0 is next"):
            stream.unit(1).__enter__()
        with pytest.raises(AssertionError, match="no unit 3"):
            stream.seek(3)
        with stream.unit(0), pytest.raises(AssertionError, match="inside"):
            stream.seek(0)


def test_resident_tensors_never_change_and_are_read_once() -> None:
    units = NumberedUnits(4)
    tiers: list[Tier] = ["resident", "disk", "resident", "ram"]
    with opened(units, tiers) as stream:
        assert [stream.is_resident(index) for index in range(4)] == [True, False, True, False]
        places: list[dict[int, int]] = []
        for _ in range(3):
            place: dict[int, int] = {}
            for index in range(4):
                with stream.unit(index) as weights:
                    place[index] = weights["attn.weight"].data_ptr()
            places.append({0: place[0], 2: place[2]})
        assert places[0] == places[1] == places[2]
        for index, place_of_weight in places[0].items():
            assert stream.resident(index)["attn.weight"].data_ptr() == place_of_weight
    assert units.reads[0] == units.reads[2] == units.reads[3] == 1  # RAM is filled once, too


def test_loading_reports_each_unit() -> None:
    reported: list[LoadProgress] = []
    units = NumberedUnits(4)
    tiers: list[Tier] = ["resident", "disk", "ram", "ram"]
    stream = LayerStream(units, tiers, device=CPU, slots=1, progress=reported.append)
    stream.close()
    first, second, third = (units.layouts[unit].nbytes for unit in (0, 2, 3))
    total = first + second + third
    assert reported == [
        LoadProgress("loading the weights", done, total, "bytes")
        for done in (first, first + second, total)
    ]


def test_slots_are_page_aligned_and_allocated_once() -> None:
    units = NumberedUnits(6)
    with opened(units, ["ram", "disk"] * 3, 2) as stream:
        seen = set()
        for step in range(18):
            with stream.unit(step % 6) as weights:
                seen.add(weights["attn.weight"].untyped_storage().data_ptr())
        assert len(seen) == 2
        assert all(address % PAGE_BYTES == 0 for address in seen)


def test_the_stream_works_in_inference_mode() -> None:
    units = NumberedUnits(4)
    with torch.inference_mode(), opened(units, ["resident", "ram", "disk", "ram"]) as stream:
        walk(stream, units)
        walk(stream, units)


def test_a_unit_without_tensors_is_streamed_like_any_other() -> None:
    class WithEmptyHead(NumberedUnits):
        def read(self, index: int, buffer: Tensor) -> None:
            if index < 2:
                super().read(index, buffer)

    for tier in TIERS:
        units = WithEmptyHead(3)
        units.layouts = [*units.layouts[:2], replace(units.layouts[2], fields=(), nbytes=0)]
        with opened(units, ["ram", "disk", tier]) as stream:
            walk(stream, units)
            walk(stream, units)


@pytest.mark.parametrize("slots", [1, 3])
def test_the_simulated_link_is_busy_for_bytes_divided_by_bandwidth(slots: int) -> None:
    gbps = 0.01
    units = NumberedUnits(4)
    with opened(units, ["ram"] * 4, slots, simulate_gbps=gbps) as stream:
        for _ in range(3):
            walk(stream, units)
        stats = stream.stats
        carried = 3 * sum(unit.nbytes for unit in units.layouts)
        assert stats.units == 12
        assert stats.disk.bytes == 0
        assert stats.bytes >= carried
        assert stats.busy_seconds >= stats.bytes / (gbps * 1e9) * (1 - 1e-6)
        stream.reset_stats()
        assert stream.stats.units == 0
        assert stream.stats.bytes <= slots * max(unit.nbytes for unit in units.layouts)


def test_traffic_is_counted_by_tier() -> None:
    units = NumberedUnits(3)
    with opened(units, ["resident", "ram", "disk"], 1) as stream:
        assert stream.stats.disk.bytes == 0  # loading is no traffic
        walk(stream, units)
        with stream.unit(0):
            pass
        with stream.unit(1):
            pass
        stats = stream.stats
        assert stats.ram.bytes == 2 * units.layouts[1].nbytes
        assert stats.disk.bytes == units.layouts[2].nbytes
        assert stats.bytes == stats.ram.bytes + stats.disk.bytes
        assert stats.units == 5
