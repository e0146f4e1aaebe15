"""Tests of the simulation of one replica, whose requests take what its passes take."""

import pytest

from benchmarks.cluster_sessions import SessionPlan, TurnPlan
from benchmarks.cluster_sim import Estimated
from benchmarks.cluster_traffic import Outcome, Scenario, simulate
from benchmarks.simulated_replicas import Speeds
from engine.timing import StepTimes


def speeds() -> Speeds:
    """Return the speeds of an engine without drafts: a pass takes 0.4 s, with 1,024 rows 1 s."""
    rows = StepTimes()
    rows.observe(1, 0.02)
    rows.observe(1024, 1.0)
    return Speeds(
        link_seconds=0.4,
        host_seconds=0.0,
        rows=rows,
        pair_seconds=0.0,
        tree_rows=1,
        tokens_per_pass=1.0,
        max_sequences=2,
        max_rows=1024,
        pages=100,
        longest=2048,
    )


def run(*plans: SessionPlan) -> Outcome:
    return simulate(Scenario(1, seconds=100.0, mean_life=0.0), plans, speeds(), Estimated())


def session(number: int, begins: float, *turns: TurnPlan) -> SessionPlan:
    return SessionPlan(number, begins, template=0, template_tokens=640, turns=turns)


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
