"""How long the walker may be away, as a table."""

import pytest

from engine.streaming.meter import Smoothed, time_away

# A link that takes 1 s a unit, three slots: the unit waited for is due at 1, the others at 2 and 3.
DUE = (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("now", "due", "left", "compute", "away"),
    [
        # Nothing known of the compute: back when the unit is due.
        (0.25, DUE, 9, None, 0.75),
        # Early in the pass, fast compute: until the slots are full, less the compute that frees one
        (0.0, DUE, 9, 0.1, 2.9),
        (0.5, DUE, 9, 0.1, 2.4),
        # Near the end of the pass: as much as the units left make up for.
        (0.0, DUE, 1, 0.25, 1.75),
        (0.0, DUE, 2, 0.25, 2.5),
        (0.0, DUE, 0, 0.25, 1.0),
        # Compute as slow as the link, or slower: nothing can be made up for.
        (0.0, DUE, 9, 1.0, 1.0),
        (0.0, DUE, 9, 4.0, 1.0),
        # One slot: the link stands still anyway while it is computed with.
        (0.0, (1.0,), 9, 0.1, 1.0),
        # Late: the unit should have been there.
        (4.0, DUE, 9, 0.1, 0.0),
        (4.0, DUE, 9, None, 0.0),
    ],
)
def test_time_away(
    now: float, due: tuple[float, ...], left: int, compute: float | None, away: float
) -> None:
    assert time_away(now, due, [1.0] * left, compute) == pytest.approx(away)


def test_a_slow_link_leaves_more_time_than_a_fast_one() -> None:
    slow = time_away(0.0, [4.0, 8.0], [4.0] * 5, 0.5)
    fast = time_away(0.0, [1.0, 2.0], [1.0] * 5, 0.5)
    assert slow > fast > 0


def test_smoothed_follows_and_fades() -> None:
    figure, seen = Smoothed(), list[float | None]()
    for new in [1.0, *[2.0] * 40]:
        seen.append(figure.value)
        figure.observe(new)
    assert seen[:2] == [None, 1.0]
    assert 1.0 < (seen[2] or 0.0) < 1.5
    assert figure.value == pytest.approx(2.0, rel=1e-3)
