"""Tests of the comparison of the simulation with real servers."""

import pytest

from benchmarks.cluster_check import TRAFFIC, measure, measured_speeds
from benchmarks.cluster_sessions import SessionPlan, TurnPlan
from benchmarks.cluster_sim import Estimated
from benchmarks.cluster_traffic import Outcome, Scenario, simulate
from benchmarks.real_replicas import Sizes
from benchmarks.simulated_replicas import Speeds
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


def speeds() -> Speeds:
    plain = [passed(1, 0, 400.0, 380.0)] * 3
    return measured_speeds([*plain, passed(1024, 1024, 1000.0, 0.0)], SIZES)


def run(*plans: SessionPlan) -> Outcome:
    return simulate(Scenario(1, seconds=100.0, mean_life=0.0), plans, speeds(), Estimated())


def session(number: int, begins: float, *turns: TurnPlan) -> SessionPlan:
    return SessionPlan(number, begins, template=0, template_tokens=640, turns=turns)


def test_the_speeds_are_those_of_the_passes() -> None:
    found = speeds()
    assert found.link_seconds == pytest.approx(0.4) and found.tokens_per_pass == 1
    assert found.pass_seconds(1, 0.0) == pytest.approx(0.4)
    assert found.pass_seconds(1024, 0.0) == pytest.approx(1.0)
    assert (found.tree_rows, found.max_rows) == (1, 1024)
    assert (found.max_sequences, found.pages, found.longest) == (2, 100, 2048)


def test_a_request_alone_takes_its_passes() -> None:
    outcome = run(session(1, 5.0, TurnPlan(added=384, answer=21, pause=0.0)))
    assert outcome.first_token == [pytest.approx(1.0)]
    assert outcome.rates == [pytest.approx(21 / (20 * 0.4))]
    assert (outcome.prompt_tokens, outcome.cached_tokens, outcome.later_turns) == (1024, 0, 0)


def test_a_later_turn_begins_with_the_pages_of_the_turn_before() -> None:
    turn = TurnPlan(added=384, answer=21, pause=3.0)
    outcome = run(session(1, 5.0, turn, turn))
    assert (outcome.later_turns, outcome.returned) == (1, 1)
    assert outcome.cached_tokens == (1024 + 21) // 64 * 64
    assert outcome.prompt_tokens == 1024 + 1024 + 21 + 384


def test_a_request_waits_where_all_places_are_taken() -> None:
    turn = TurnPlan(added=384, answer=21, pause=0.0)
    outcome = run(*(session(number, 5.0 + 0.01 * number, turn) for number in range(3)))
    assert len(outcome.first_token) == 3 and max(outcome.first_token) > 20 * 0.4


@pytest.mark.slow
def test_servers_and_simulation_run_the_same_sessions() -> None:
    figures = measure(TRAFFIC, seconds=6.0)
    (table,) = figures.tables
    (name, served, simulated, _), *others = table.rows
    assert name == "requests" and served == simulated > 0
    assert all(value > 0 for _, value, _, _ in others)
