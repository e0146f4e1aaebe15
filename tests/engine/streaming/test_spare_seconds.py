"""Tests of the time that a pass leaves for other work, as a table."""

import pytest

from engine.streaming.meter import MovingAverage, spare_seconds

# A link that takes 1 s per unit, and three slots: units arrive at 1, 2 and 3 s.
DUE = (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("now", "due", "left", "compute", "expected"),
    [
        # The time of computing is not known: until the next unit arrives.
        (0.25, DUE, 9, None, 0.75),
        # Early in the pass, computing is fast: until the slots are full, less the time to free one
        (0.0, DUE, 9, 0.1, 2.9),
        (0.5, DUE, 9, 0.1, 2.4),
        # Near the end of the pass: as much as can be caught up with the units that are left.
        (0.0, DUE, 1, 0.25, 1.75),
        (0.0, DUE, 2, 0.25, 2.5),
        (0.0, DUE, 0, 0.25, 1.0),
        # Computing is as slow as the link, or slower: it cannot catch up.
        (0.0, DUE, 9, 1.0, 1.0),
        (0.0, DUE, 9, 4.0, 1.0),
        # One slot: the link is idle anyway while its unit is computed.
        (0.0, (1.0,), 9, 0.1, 1.0),
        # The unit is late already.
        (4.0, DUE, 9, 0.1, 0.0),
        (4.0, DUE, 9, None, 0.0),
    ],
)
def test_spare_seconds_of_a_table_of_cases(
    now: float, due: tuple[float, ...], left: int, compute: float | None, expected: float
) -> None:
    assert spare_seconds(now, due, [1.0] * left, compute) == pytest.approx(expected)


def test_a_slow_link_leaves_more_time_than_a_fast_one() -> None:
    slow = spare_seconds(0.0, [4.0, 8.0], [4.0] * 5, 0.5)
    fast = spare_seconds(0.0, [1.0, 2.0], [1.0] * 5, 0.5)
    assert slow > fast > 0


def test_a_moving_average_follows_its_figures() -> None:
    figure, seen = MovingAverage(), list[float | None]()
    for new in [1.0, *[2.0] * 40]:
        seen.append(figure.value)
        figure.observe(new)
    assert seen[:2] == [None, 1.0]
    assert 1.0 < (seen[2] or 0.0) < 1.5
    assert figure.value == pytest.approx(2.0, rel=1e-3)


def test_all_units_of_a_layer_are_computed_before_the_link_is_idle() -> None:
    one = spare_seconds(0.0, [1.0, 2.0, 3.0, 4.0], [1.0] * 20, 0.5)
    four = spare_seconds(0.0, [1.0, 2.0, 3.0, 4.0], [1.0] * 20, 0.5, 4)
    assert (one, four) == (3.5, 2.0)
