"""Tests of the comparison of the simulation with real servers."""

import pytest

from benchmarks.cluster_check import TRAFFIC, measure, measured_speeds
from benchmarks.real_replicas import Sizes
from engine.messages import PassStats

SIZES = Sizes(max_sequences=2, pages=100, longest=2048)


def passed(rows: int, prompt_rows: int, pass_ms: float, waited_ms: float) -> PassStats:
    return PassStats(
        rows=rows,
        sequences=max(1, rows - prompt_rows),
        accepted=1,
        draft_ms=0.0,
        pass_ms=pass_ms,
        link_gbps=1.0,
        prompt_rows=prompt_rows,
        copy_stall_ms=waited_ms,
    )


def test_the_speeds_are_those_of_the_passes() -> None:
    plain = [passed(1, 0, 400.0, 380.0)] * 3
    found = measured_speeds([*plain, passed(1024, 1024, 1000.0, 0.0)], SIZES)
    assert found.link_seconds == pytest.approx(0.4) and found.tokens_per_pass == 1
    assert found.pass_seconds(1, 0.0) == pytest.approx(0.4)
    assert found.pass_seconds(1024, 0.0) == pytest.approx(1.0)
    assert (found.tree_rows, found.max_rows) == (1, 1024)
    assert (found.max_sequences, found.pages, found.longest) == (2, 100, 2048)


@pytest.mark.long
def test_servers_and_simulation_run_the_same_sessions() -> None:
    figures = measure(TRAFFIC, seconds=6.0)
    (table,) = figures.tables
    (name, served, simulated, _), *others = table.rows
    assert name == "requests" and served == simulated > 0
    assert all(value > 0 for _, value, _, _ in others)
