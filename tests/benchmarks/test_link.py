"""Tests of the arithmetic of `benchmarks.link`."""

from dataclasses import replace

import pytest

from benchmarks.link import Cycles, Link

LINK = Link(gbps=2.0, streamed_bytes=400_000_000, compute_s=0.1, step_s=0.005)
CYCLES = Cycles(
    cycle_s=0.32,
    draft_s=0.1,
    ahead_s=0.0,
    stall_s=0.1,
    pass_s=0.21,
    busy_s=0.2,
    tokens=8.0,
    rows=64.0,
)


def test_the_limit_is_the_slower_of_link_and_compute_plus_the_draft() -> None:
    assert LINK.seconds == pytest.approx(0.2)
    assert CYCLES.limit(LINK) == pytest.approx(0.3)
    assert CYCLES.limit(replace(LINK, compute_s=0.5)) == pytest.approx(0.6)
    assert replace(CYCLES, draft_s=0.0).limit(LINK) == pytest.approx(0.2)


def test_ratio_to_the_limit_duty_and_speed_of_a_cycle() -> None:
    assert CYCLES.over_limit(LINK) == pytest.approx(0.32 / 0.3)
    assert CYCLES.duty == pytest.approx(62.5)
    assert CYCLES.tokens_per_second == pytest.approx(25.0)


@pytest.mark.parametrize(("share", "depth"), [(0.5, 20), (0.1, 4), (0.001, 1)])
def test_depth_is_the_number_of_steps_in_a_share_of_the_link_time(share: float, depth: int) -> None:
    assert LINK.depth(share) == depth
