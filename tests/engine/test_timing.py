"""The expected times of steps: at known numbers of rows, between them and beyond them."""

import pytest

from engine.timing import OUTLIER, SMOOTHING, StepTimes


def timed(**seconds: float) -> StepTimes:
    """Return times with one known step for each argument; `timed(r4=0.1)` means 4 rows, 0.1 s."""
    times = StepTimes()
    for rows, value in seconds.items():
        times.observe(int(rows[1:]), value)
    return times


def test_nothing_is_known_before_the_first_step() -> None:
    assert StepTimes().expect(1) is None


def test_with_one_known_size_the_time_of_more_rows_is_in_proportion() -> None:
    times = timed(r8=2.0)
    assert times.expect(8) == times.expect(3) == times.expect(0) == 2.0
    assert times.expect(12) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("rows", "seconds"),
    [(1, 1.0), (2, 1.0), (4, 1.0), (6, 1.5), (8, 2.0), (16, 3.0), (24, 4.0), (48, 7.0)],
)
def test_times_are_interpolated_and_extrapolated_linearly(rows: int, seconds: float) -> None:
    times = timed(r4=1.0, r8=2.0, r16=3.0)
    assert times.expect(rows) == pytest.approx(seconds)


def test_a_further_row_takes_the_slope_between_the_smallest_size_and_the_largest() -> None:
    assert StepTimes().row_seconds == 0.0
    assert timed(r8=2.0).row_seconds == pytest.approx(0.25)
    assert timed(r4=1.0, r8=9.0, r16=4.0).row_seconds == pytest.approx(0.25)


def test_fewer_rows_are_never_expected_to_take_longer_than_more() -> None:
    """Otherwise steps of a size would never be tried again after one that was disturbed."""
    times = timed(r1=9.0, r4=2.0, r8=1.0)
    assert times.expect(1) == times.expect(4) == times.expect(6) == 1.0
    assert times.expect(8) == times.expect(64) == 1.0
    times.observe(4, 0.5)
    assert times.expect(8) == 1.0 and times.expect(1) == 1.0
    for _ in range(60):
        times.observe(4, 0.5)
    assert times.expect(2) == pytest.approx(0.5, rel=0.01) and times.expect(8) == 1.0


def test_sizes_between_powers_of_two_share_one_time() -> None:
    times = timed(r5=1.0)
    assert times.expect(5) == 1.0 and times.expect(8) == pytest.approx(1.6)
    times.observe(8, 2.0)
    rows, seconds = 5 + SMOOTHING * 3, 1 + SMOOTHING
    assert times.expect(8) == pytest.approx(seconds * 8 / rows)
    times.observe(0, 0.5)
    assert times.expect(1) == 0.5


def test_times_follow_the_observed_steps() -> None:
    times = timed(r1=1.0)
    for _ in range(60):
        times.observe(1, 0.2)
    assert times.expect(1) == pytest.approx(0.2, rel=0.01)


def test_one_disturbed_step_has_little_weight() -> None:
    times = timed(r1=1.0)
    times.observe(1, 1000.0)
    assert times.expect(1) == pytest.approx(1.0 + SMOOTHING * (OUTLIER - 1))
    for _ in range(100):
        times.observe(1, 1000.0)
    assert times.expect(1) == pytest.approx(1000.0, rel=0.01), "a lasting change is learned"
