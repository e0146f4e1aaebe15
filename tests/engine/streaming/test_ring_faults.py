"""Tests of units read in pieces by several threads: order, slow links, errors, `on_wait`."""

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from engine.cache_files import unit_name
from engine.errors import ModelError
from engine.spec import Tier
from engine.streaming import disk
from engine.streaming.cpu_link import CpuDevice, SimulatedLink
from engine.streaming.packed import PackedUnits, pack
from engine.streaming.ring import LayerStream, OnWait
from tests.engine.units import NumberedUnits, PiecedUnits

CPU = CpuDevice()


@contextmanager
def opened(
    units: NumberedUnits, slots: int = 2, tiers: Sequence[Tier] | None = None
) -> Iterator[LayerStream]:
    tiers = tiers or ["disk"] * len(units.layouts)
    with closing(LayerStream(units, tiers, device=CPU, slots=slots)) as stream:
        yield stream


def walk(
    stream: LayerStream,
    units: NumberedUnits,
    first: int = 0,
    last: int = 99,
    on_wait: OnWait | None = None,
) -> None:
    for index in range(first, min(last, len(units.layouts))):
        with stream.unit(index, on_wait) as weights:
            units.check(index, weights)


def walk_twice(stream: LayerStream, units: NumberedUnits) -> None:
    for _ in range(2):
        walk(stream, units)


# Pieces


@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("tier", ["resident", "ram", "disk"])
def test_units_in_pieces_are_whole(tier: Tier, slots: int) -> None:
    units = PiecedUnits(5, jitter=1e-3)
    with opened(units, slots, [tier] * 5) as stream:
        for _ in range(3):
            walk(stream, units)
    assert max(len(units.pieces(index)) for index in range(5)) > 2 * disk.READERS - 4
    assert units.prepared == ([0, 1, 2, 3, 4] if tier == "disk" else [])


def test_pieces_of_earlier_units_begin_first() -> None:
    """The link carries one unit after another: pieces of later units wait for free threads."""
    units = PiecedUnits(6)
    with opened(units, 3) as stream:
        for _ in range(2):
            walk(stream, units)
    units_as_begun = [unit for unit, _ in units.order]
    late_pieces = [
        late for late, soon in pairwise(units_as_begun) if (soon - late) % 6 not in (0, 1)
    ]
    assert not late_pieces, "a piece of an earlier unit began after one of a later unit"


def test_pieces_of_the_next_unit_begin_while_the_last_piece_is_read() -> None:
    """The link is not idle between two units."""
    units = PiecedUnits(2)
    last = len(units.pieces(0)) - 1
    units.piece_gates = {(0, last): threading.Semaphore(0)}
    with opened(units, 2) as stream:
        total = len(units.pieces(0)) + len(units.pieces(1))
        for _ in range(total):
            assert units.begun.acquire(timeout=30), "pieces after a slow one must begin"
        units.piece_gates[0, last].release()
        with stream.unit(0) as weights:
            units.check(0, weights)
            units.piece_gates.clear()
        walk(stream, units, 1)


# Stalls and errors


def test_a_disk_that_stalls_delays_a_pass_but_changes_no_weights() -> None:
    units = PiecedUnits(4)
    gate = threading.Semaphore(0)
    with opened(units, 3) as stream:
        walk(stream, units)
        stream.reset_stats()
        units.piece_gates = {(3, 1): gate}
        offered: list[float] = []

        def on_wait(seconds: float) -> bool:
            offered.append(seconds)
            gate.release()
            return False

        walk(stream, units, 0, 3)  # unit 3 may have been requested before the gate
        walk(stream, units, 3, on_wait=on_wait)
        for _ in range(4):
            gate.release()
        walk(stream, units)
        assert all(seconds >= 0 for seconds in offered)


@pytest.mark.parametrize("fault", [OSError(5, "Input/output error"), ModelError("bad checksum")])
@pytest.mark.parametrize("slots", [1, 3])
def test_a_failed_piece_fails_its_unit_after_all_its_reads_have_ended(
    fault: Exception, slots: int
) -> None:
    units = PiecedUnits(4)
    gate = threading.Semaphore(0)
    with opened(units, slots) as stream:
        walk(stream, units)
        stream.seek(0)
        units.piece_faults = {(2, 1): [type(fault)(*fault.args)]}
        units.piece_gates = {(2, 0): gate}  # still running when the next piece fails
        opener = threading.Timer(0.01, gate.release)
        opener.start()
        with pytest.raises(ModelError, match=r"layer\.2.*could not be read|bad checksum"):
            walk_twice(stream, units)  # unit 2 may have been read before the fault was set
        assert units.under_way[2] == 0, "its slot was freed while a thread wrote into it"
        opener.join()
        units.piece_gates.clear()
        stream.seek(0)
        walk(stream, units)
        walk(stream, units)


def test_seek_waits_for_running_pieces_and_cancels_the_others() -> None:
    units = PiecedUnits(4)
    first = (0, 0)
    units.piece_gates = {first: threading.Semaphore(0)}
    with opened(units, 2) as stream:
        assert units.begun.acquire(timeout=30)
        opener = threading.Timer(0.01, units.piece_gates[first].release)
        opener.start()
        stream.seek(2)
        assert units.under_way[0] == 0
        opener.join()
        units.piece_gates.clear()
        walk(stream, units, 2)
        walk(stream, units)


@settings(max_examples=40)
@given(
    count=st.integers(1, 5),
    slots=st.integers(1, 4),
    leaves=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=5),
    faults=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=3),
)
def test_units_are_right_after_passes_that_end_early_or_fail(
    count: int, slots: int, leaves: list[tuple[int, int]], faults: list[tuple[int, int]]
) -> None:
    units = PiecedUnits(count, jitter=3e-4)
    with opened(units, slots) as stream:
        first = 0
        for last, target in leaves:
            for unit, piece in faults:
                units.piece_faults.setdefault((unit, piece), []).append(OSError("pulled"))
            with suppress(ModelError):
                walk(stream, units, first, last)
            first = target % count
            stream.seek(first)
        units.piece_faults.clear()
        stream.seek(first)  # failed prefetches are dropped here or below
        for _ in range(2):
            with suppress(ModelError):
                walk(stream, units, first)
                first = 0
                continue
            stream.seek(first := 0)
        walk(stream, units)


def test_close_in_the_middle_of_a_unit_ends_every_thread() -> None:
    units = PiecedUnits(3)
    units.piece_gates = {(0, 0): threading.Semaphore(0)}
    stream = LayerStream(units, ["disk"] * 3, device=CPU, slots=2)
    assert units.begun.acquire(timeout=30)
    threading.Timer(0.01, units.piece_gates[0, 0].release).start()
    stream.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("weights-")]
    assert not +units.under_way


# A slow link


def test_on_wait_gets_more_time_when_the_link_slows_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights stay right."""
    units = NumberedUnits(4)
    slow_seconds = 20 * units.layouts[0].nbytes / 1e6  # of a unit, on the slow link
    carry = SimulatedLink.carry
    offered: list[float] = []

    def slowly(link: SimulatedLink, *arguments: Any) -> None:
        link._seconds_per_byte = 20 / 1e6
        carry(link, *arguments)

    def on_wait(seconds: float) -> bool:
        offered.append(seconds)
        return False

    stream = LayerStream(units, ["ram"] * 4, device=CpuDevice(simulate_gbps=1e-3), slots=2)
    with closing(stream):
        walk(stream, units)
        monkeypatch.setattr(SimulatedLink, "carry", slowly)
        walk(stream, units)
        walk(stream, units)
        walk(stream, units, on_wait=on_wait)
    assert max(offered) > slow_seconds / 2


# Calls of `on_wait`


def test_on_wait_is_called_again_while_it_returns_true_and_time_is_left() -> None:
    units = NumberedUnits(6, rows=2000)
    calls: list[int] = []
    with closing(
        LayerStream(units, ["ram"] * 6, device=CpuDevice(simulate_gbps=2e-3), slots=2)
    ) as stream:
        walk(stream, units)
        stream.reset_stats()

        def step(seconds: float) -> bool:
            calls.append(1)
            return len(calls) % 4 != 0  # three steps, then nothing fits

        walk(stream, units, on_wait=step)
        stats = stream.stats
        assert len(calls) > 6, "more than once per unit"
        assert stats.callback_seconds > 0
        assert stats.stall_seconds > 0


def test_on_wait_is_not_called_again_when_the_unit_has_arrived() -> None:
    units = NumberedUnits(3)
    units.gates = {0: threading.Semaphore(0)}
    done: list[bool] = []
    with opened(units, 1) as stream:

        def step(seconds: float) -> bool:
            units.gates[0].release()
            stream._loads[0].arrival.result()
            done.append(True)
            return True

        with stream.unit(0, step) as weights:
            units.check(0, weights)
        assert done == [True]
        units.gates.clear()


def test_the_stream_is_usable_after_on_wait_raised() -> None:
    units = NumberedUnits(3)
    units.gates = {0: threading.Semaphore(0)}

    def cancelled(seconds: float) -> bool:
        raise KeyError("the last client left")

    with opened(units, 2) as stream:
        with pytest.raises(KeyError), stream.unit(0, cancelled):
            pass
        units.gates[0].release()
        stream.seek(0)
        units.gates.clear()
        walk(stream, units)


# Measuring the link


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("tiers", [["ram"] * 4, ["disk"] * 4, ["resident", "ram", "disk", "ram"]])
def test_units_are_right_after_the_link_was_measured(tiers: list[Tier], slots: int) -> None:
    units = PiecedUnits(4)
    with opened(units, slots, tiers) as stream:
        assert stream.measure_link() > 0
        assert (stream.stats.units, stream.stats.stall_seconds) == (0, 0.0)
        walk(stream, units)
        walk(stream, units)


def test_the_simulated_bandwidth_is_not_exceeded() -> None:
    units = NumberedUnits(4, rows=2000)
    tiers: list[Tier] = ["ram"] * 4
    with closing(
        LayerStream(units, tiers, device=CpuDevice(simulate_gbps=0.01), slots=3)
    ) as stream:
        assert 0 < stream.measure_link() <= 0.01 * (1 + 1e-6)


def test_without_streamed_units_no_bandwidth_is_measured() -> None:
    units = NumberedUnits(2)
    with opened(units, 2, ["resident", "resident"]) as stream:
        assert stream.measure_link() == 0.0


def test_a_disk_that_fails_while_it_is_measured_is_an_error() -> None:
    units = PiecedUnits(3)
    with opened(units, 1) as stream:
        units.piece_faults = {(2, 0): [OSError("pulled")]}
        with pytest.raises(ModelError, match="pulled"):
            stream.measure_link()
        walk(stream, units)


# Packed files


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PackedUnits]:
    monkeypatch.setattr(disk, "PIECE_BYTES", 4096)
    monkeypatch.setattr("engine.streaming.packed.PIECE_BYTES", 4096)
    pack(NumberedUnits(4, rows=1000), tmp_path / "m", "key", lambda *_: None).close()
    found = PackedUnits(tmp_path / "m", "key")  # without a source to repair from
    yield found
    found.close()


@pytest.mark.parametrize("direct", [False, True])
def test_packed_units_are_read_in_pieces(
    packed: PackedUnits, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(files: Sequence[disk.UnitFile]) -> bool:
        return direct and all(file.open_direct() for file in files)

    monkeypatch.setattr("engine.streaming.packed.direct_is_faster", choose)
    units = NumberedUnits(4, rows=1000)
    with closing(LayerStream(packed, ["disk"] * 4, device=CPU, slots=2)) as stream:
        for _ in range(3):
            walk(stream, units)


@pytest.mark.parametrize("direct", [False, True])
def test_a_packed_file_truncated_while_open_fails_only_its_unit(
    packed: PackedUnits, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(files: Sequence[disk.UnitFile]) -> bool:
        return direct and all(file.open_direct() for file in files)

    monkeypatch.setattr("engine.streaming.packed.direct_is_faster", choose)
    units = NumberedUnits(4, rows=1000)
    path = packed.folder / unit_name(2)
    whole = path.read_bytes()
    with closing(LayerStream(packed, ["disk"] * 4, device=CPU, slots=1)) as stream:
        walk(stream, units)
        path.write_bytes(whole[: random.randrange(len(whole))])
        walk(stream, units, 0, 2)
        with pytest.raises(ModelError, match=r"00002\.unit: ends at"), stream.unit(2):
            pass
        path.write_bytes(whole)
        stream.seek(0)
        walk(stream, units)
        walk(stream, units)


def test_the_error_of_a_damaged_piece_names_the_file(packed: PackedUnits) -> None:
    path = packed.folder / unit_name(1)
    data = bytearray(path.read_bytes())
    data[3 * 4096 + 5] ^= 1
    path.write_bytes(data)
    units = NumberedUnits(4, rows=1000)
    with closing(LayerStream(packed, ["disk"] * 4, device=CPU, slots=2)) as stream:
        with pytest.raises(ModelError, match=r"00001\.unit: wrong checksum"):
            walk(stream, units)
        stream.seek(0)
        with stream.unit(0) as weights:
            units.check(0, weights)
