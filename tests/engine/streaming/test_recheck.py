"""Tests of checks in idle time: each piece once per period, at a bounded speed, reported once."""

from collections.abc import Callable

import pytest

from engine.errors import ModelError
from engine.messages import WeightsChecked
from engine.streaming.packed import PackedUnits
from engine.streaming.recheck import BYTES_PER_SECOND, QUIET_S, Rechecks

PIECE = BYTES_PER_SECOND  # bytes: one second each
PERIOD_S = 1000.0


class Units(PackedUnits):
    """Units of two pieces each, some of which are damaged or cannot be repaired."""

    def __init__(self) -> None:
        self.num_repaired = 0
        self.checked: list[tuple[int, int]] = []
        self.damaged: set[int] = set()
        self.hopeless: set[int] = set()
        self.on_check: Callable[[], None] = lambda: None

    def pieces(self, index: int) -> list[range]:
        return [range(PIECE), range(PIECE, 2 * PIECE)]

    def recheck(self, index: int, piece: range, is_wanted: Callable[[], bool]) -> bool:
        self.on_check()
        if not is_wanted():
            return False
        self.checked.append((index, piece.start // PIECE))
        if index in self.hopeless:
            raise ModelError("hopeless")
        self.num_repaired += index in self.damaged
        self.damaged.discard(index)
        return True

    def close(self) -> None:
        pass


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def units() -> Units:
    return Units()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def wait_and_run(rechecks: Rechecks, clock: Clock) -> WeightsChecked | None:
    """Move the clock until a check is due, run it, and return the report."""
    seconds = rechecks.seconds_until_due()
    assert seconds is not None
    clock.now += seconds
    rechecks.run()
    return rechecks.take_report()


def test_each_piece_is_checked_once_per_period_at_a_bounded_speed(
    units: Units, clock: Clock
) -> None:
    rechecks = Rechecks(units, [0, 2], PERIOD_S, clock)
    began = clock.now
    times, reports = list[float](), list[WeightsChecked | None]()
    for _ in range(8):
        reports.append(wait_and_run(rechecks, clock))
        times.append(clock.now - began)
    assert units.checked == 2 * [(0, 0), (0, 1), (2, 0), (2, 1)]
    first, second = QUIET_S, QUIET_S + PERIOD_S
    assert times == [*(first + i for i in range(4)), *(second + i for i in range(4))]
    assert reports == 2 * [None, None, None, WeightsChecked(4 * PIECE, 0, 0)]


def test_nothing_is_checked_before_it_is_due(units: Units, clock: Clock) -> None:
    rechecks = Rechecks(units, [0], PERIOD_S, clock)
    clock.now += QUIET_S / 2
    rechecks.postpone()  # a pass
    clock.now += QUIET_S / 2
    rechecks.run()
    assert units.checked == [] and rechecks.seconds_until_due() == QUIET_S / 2


@pytest.mark.parametrize(("indices", "period_s"), [([], PERIOD_S), ([0], 0.0)])
def test_without_units_or_period_no_check_is_ever_due(
    indices: list[int], period_s: float, units: Units, clock: Clock
) -> None:
    for rechecks in (Rechecks(units, indices, period_s, clock), Rechecks(None, indices, period_s)):
        clock.now += 10 * PERIOD_S
        rechecks.run()
        assert rechecks.seconds_until_due() is None and rechecks.take_report() is None
    assert units.checked == []


def test_a_check_that_a_request_ends_is_repeated_later(units: Units, clock: Clock) -> None:
    rechecks = Rechecks(units, [0], PERIOD_S, clock)
    units.on_check = rechecks.preempt  # while it reads
    assert wait_and_run(rechecks, clock) is None and units.checked == []
    units.on_check = lambda: None
    rechecks.postpone()
    wait_and_run(rechecks, clock)
    assert units.checked == [(0, 0)]


def test_damage_is_reported_before_the_round_ends(units: Units, clock: Clock) -> None:
    rechecks = Rechecks(units, [0, 1, 2], PERIOD_S, clock)
    units.damaged, units.hopeless = {0}, {1}
    reports = [wait_and_run(rechecks, clock) for _ in range(6)]
    assert reports == [
        WeightsChecked(PIECE, 1, 0),
        None,
        WeightsChecked(2 * PIECE, 0, 1),
        WeightsChecked(PIECE, 0, 1),
        None,
        WeightsChecked(2 * PIECE, 0, 0),
    ]


def test_units_that_a_pass_repaired_are_reported_too(units: Units, clock: Clock) -> None:
    rechecks = Rechecks(units, [0], 0.0, clock)
    units.num_repaired = 3
    assert rechecks.take_report() == WeightsChecked(0, 3, 0)
    assert rechecks.take_report() is None
