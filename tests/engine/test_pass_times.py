"""The expected seconds of a pass: rows, attention over long contexts, weights, and drafting."""

import pytest

from engine.timing import LONG_CONTEXT, PassTimes

TILE = 64


def make_times(
    pair_seconds: float = 0.0, link_seconds: float = 0.0, ahead: float = 0.0
) -> PassTimes:
    """Return times by which one tile of rows takes one second, and two tiles take two."""
    times = PassTimes(TILE, ahead=ahead, pair_seconds=pair_seconds)
    times.observe(TILE, 1.0, link_seconds)
    times.observe(2 * TILE, 2.0, link_seconds)
    return times


def test_nothing_is_known_before_the_first_pass() -> None:
    assert PassTimes(TILE).expect(1) is None
    assert PassTimes(TILE).expect_cycle(1, 2.0) is None


def test_rows_are_computed_in_whole_tiles_while_weights_travel() -> None:
    times = make_times()
    assert times.expect(1) == times.expect(TILE) == 1.0
    assert times.expect(TILE + 1) == pytest.approx(2.0)
    assert make_times(link_seconds=1.5).expect(1) == 1.5


def test_the_time_of_attention_grows_with_pairs_of_rows_and_tokens() -> None:
    times = make_times(pair_seconds=1e-3)
    assert times.expect(TILE, pairs=5000) == pytest.approx(6.0)
    assert times.expect_cycle(TILE, 0.0, context=100) == pytest.approx(1.0 + 6.4)


def test_passes_with_long_contexts_change_the_time_of_attention_only() -> None:
    times = make_times()
    pairs = TILE * LONG_CONTEXT
    for _ in range(40):
        times.observe(TILE, 1.0 + 1e-4 * pairs, 0.0, pairs=pairs)
    assert times.pair_seconds == pytest.approx(1e-4, rel=0.01)
    assert times.expect(TILE) == 1.0


def test_the_time_of_rows_excludes_attention() -> None:
    times = PassTimes(TILE, pair_seconds=1e-3)
    times.observe(TILE, 1.5, 0.0, pairs=500)
    assert times.expect(TILE) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("elapsed", "cycle"),
    [(0.0, 4.0), (0.9, 4.0), (1.0, 4.0), (1.5, 4.5), (6.0, 9.0)],
)
def test_drafting_costs_nothing_while_the_ring_fills(elapsed: float, cycle: float) -> None:
    """Weights travel for 4 s, compute takes 1 s, and the ring holds a quarter of the weights."""
    times = make_times(link_seconds=4.0, ahead=0.25)
    assert times.expect_cycle(1, elapsed) == pytest.approx(cycle)


def test_a_cycle_that_does_not_wait_for_weights_is_drafting_and_compute() -> None:
    assert make_times(link_seconds=0.5, ahead=0.25).expect_cycle(1, 2.0) == pytest.approx(3.0)
