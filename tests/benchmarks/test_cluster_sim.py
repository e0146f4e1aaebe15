"""Tests of the simulation of many replicas, on a tiny one."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from benchmarks.cluster_sessions import Traffic, agents
from benchmarks.cluster_sim import POLICIES, Estimated, LeastLoaded, SessionHash, figures, table
from benchmarks.cluster_traffic import Outcome, Policy, Scenario, simulate
from benchmarks.simulated_replicas import Speeds
from engine.timing import StepTimes

TINY = Scenario(6, seconds=350.0, warm_up=60.0, mean_life=300.0)
TRAFFIC = agents(0.45)


def speeds() -> Speeds:
    rows = StepTimes()
    for count in (64, 256, 1024, 4096, 8192):
        rows.observe(count, count * 2e-4)
    return Speeds(
        link_seconds=0.5,
        host_seconds=0.004,
        rows=rows,
        pair_seconds=4e-9,
        tree_rows=53,
        tokens_per_pass=13.0,
        max_sequences=16,
        max_rows=8192,
        pages=3712,
        longest=32_768,
    )


def run(
    policy: Callable[[], Policy], scenario: Scenario = TINY, traffic: Traffic = TRAFFIC
) -> Outcome:
    return simulate(scenario, traffic.sessions(), speeds(), policy())


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    return {name: run(policy) for name, policy in POLICIES.items()}


def test_the_estimate_brings_the_first_token_earliest(outcomes: dict[str, Outcome]) -> None:
    means = {name: mean(outcome.first_token) for name, outcome in outcomes.items()}
    assert min(means, key=means.__getitem__) == "earliest first token"


def test_no_first_token_comes_before_its_pass(outcomes: dict[str, Outcome]) -> None:
    for outcome in outcomes.values():
        assert outcome.first_token and min(outcome.first_token) > 0.5
        assert 0 < outcome.cached_tokens < outcome.prompt_tokens
        assert max(outcome.rates) < 13.0 / 0.5 * 2


def test_streams_of_replicas_that_die_go_on(outcomes: dict[str, Outcome]) -> None:
    for outcome in outcomes.values():
        assert outcome.moved > 0 and outcome.pauses and outcome.lost == 0


def test_the_same_seed_gives_the_same_figures() -> None:
    short = replace(TINY, seconds=120.0)
    assert run(Estimated, short) == run(Estimated, short)
    assert run(Estimated, short) != run(Estimated, short, replace(TRAFFIC, seed=2))


def test_an_upgrade_moves_streams_and_loses_only_those_without_a_replica_of_their_version() -> None:
    upgrade = replace(TINY, mean_life=0.0, upgrade_at=60.0, seconds=400.0)
    outcome = run(LeastLoaded, upgrade)
    assert outcome.moved > 0 and outcome.lost <= outcome.moved
    assert run(LeastLoaded, replace(upgrade, upgrade_at=None)).moved == 0


def test_a_figure_that_was_not_measured_is_a_dash() -> None:
    rows = [figures("none", Outcome()), figures("some", run(SessionHash))]
    lines = table(rows).split("\n")
    assert len(lines) == 4 and "| - |" in lines[2]
