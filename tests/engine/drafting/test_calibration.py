"""What a draft believes, against simulated targets whose hit rates are known."""

import math
import random
from collections.abc import Sequence
from itertools import pairwise

import pytest

from engine.drafting.calibration import BINS, MEMORY, PRIOR, SUREST, TAU, TAU_RANGE, Calibration
from engine.messages import SamplingParams

GREEDY = SamplingParams(temperature=0.0)
SAMPLED = SamplingParams(temperature=1.0)
BELIEFS = (0.001, 0.02, 0.15, 0.4, 0.6, 0.85, 0.97)  # one in each of seven bins


def taught(rates: dict[float, float], trials: int = 3000, seed: int = 0) -> Calibration:
    """A calibration that saw a draft's beliefs come true at these rates."""
    chance, calibration = random.Random(seed), Calibration()
    for _ in range(trials):
        for belief, rate in rates.items():
            calibration.observe("model", math.log(belief), hit=chance.random() < rate)
    return calibration


def probability(calibration: Calibration, belief: float, source: str = "model") -> float:
    return math.exp(calibration.gain(source, math.log(belief)))


@pytest.mark.parametrize("source", ["never seen", "model"])
def test_an_unknown_draft_is_believed(source: str) -> None:
    calibration = Calibration()
    if source == "model":  # seen, but never with such a belief
        calibration.observe(source, math.log(0.9), hit=False)
    assert probability(calibration, 0.4, source) == pytest.approx(0.4)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0], ids=["too modest", "honest", "too sure"])
def test_a_drafts_belief_becomes_how_often_it_is_right(power: float) -> None:
    rates = {belief: belief**power for belief in BELIEFS}
    calibration = taught(rates)
    for belief, rate in rates.items():
        assert probability(calibration, belief) == pytest.approx(rate, abs=0.04, rel=0.02)


def test_few_trials_change_little() -> None:
    calibration = Calibration()
    calibration.observe("model", math.log(0.5), hit=False)
    assert 0.4 < probability(calibration, 0.5) < 0.5
    for _ in range(int(PRIOR)):
        calibration.observe("model", math.log(0.5), hit=False)
    assert probability(calibration, 0.5) < 0.26


def test_a_draft_is_no_judge_of_another() -> None:
    calibration = taught({0.4: 0.0})
    assert probability(calibration, 0.4) < 0.02
    assert probability(calibration, 0.4, "ngram") == pytest.approx(0.4)


def test_a_change_of_the_text_is_followed() -> None:
    """What is older than the bin's memory counts ever less."""
    calibration = taught({0.4: 0.9})
    for _ in range(int(4 * MEMORY)):
        calibration.observe("model", math.log(0.4), hit=False)
    assert probability(calibration, 0.4) < 0.05


@pytest.mark.parametrize("rate", [0.0, 1.0])
@pytest.mark.parametrize("belief", [-math.inf, -800.0, -30.0, -1.0, -1e-12, 0.0])
def test_a_gain_is_finite_and_negative_whatever_is_believed(belief: float, rate: float) -> None:
    """So scores fall along a path, and a probability of nought is no fault."""
    for calibration in (Calibration(), taught(dict.fromkeys(BELIEFS, rate), trials=50)):
        for _ in range(2):
            gain = calibration.gain("model", belief)
            assert -25 < gain <= math.log(SUREST) < 0
            calibration.observe("model", belief, hit=bool(rate))


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_a_surer_child_has_the_better_gain(power: float) -> None:
    """Within a bin always; across bins where the draft's own order is right."""
    calibration = taught({belief: belief**power for belief in BELIEFS}, trials=2000)
    edges = [0.0005, *BINS, 0.9999]
    for low, high in pairwise(edges):
        inside = [low + (high - low) * part / 7 for part in range(1, 7)]
        assert rising([probability(calibration, belief) for belief in inside])
    assert rising([probability(calibration, belief) for belief in BELIEFS])


def rising(values: Sequence[float]) -> bool:
    return all(a <= b for a, b in pairwise(values))


@pytest.mark.parametrize("rate", [0.65, 0.8, 0.95])
def test_tau_goes_where_the_first_candidates_belief_is_its_hit_rate(rate: float) -> None:
    """A draft whose first candidate leads by one nat: belief sigmoid(1 / tau)."""
    chance, calibration = random.Random(1), Calibration()
    beliefs = []
    for _ in range(6000):
        belief = 1 / (1 + math.exp(-1 / calibration.tau(GREEDY)))
        beliefs.append(belief)
        calibration.observe_first(GREEDY, math.log(belief), hit=chance.random() < rate)
    assert sum(beliefs[-2000:]) / 2000 == pytest.approx(rate, abs=0.03)


def test_tau_falls_after_hits_rises_after_misses_and_keeps_to_its_range() -> None:
    low, high = TAU_RANGE
    for hit, end in ((True, low), (False, high)):
        calibration = Calibration()
        calibration.observe_first(GREEDY, math.log(0.5), hit=hit)
        assert (calibration.tau(GREEDY) < TAU) is hit
        for _ in range(2000):
            calibration.observe_first(GREEDY, math.log(0.5), hit=hit)
        assert calibration.tau(GREEDY) == end


def test_greedy_and_sampled_requests_have_their_own_tau() -> None:
    calibration = Calibration()
    for _ in range(50):
        calibration.observe_first(SAMPLED, math.log(0.9), hit=False)
    assert calibration.tau(GREEDY) == TAU < calibration.tau(SAMPLED)


def test_the_childrens_share_of_the_probability_is_smoothed() -> None:
    calibration = Calibration()
    before = calibration.mass
    calibration.observe_mass(0.5)
    assert 0.5 < calibration.mass < before
    for _ in range(1000):
        calibration.observe_mass(0.5)
    assert calibration.mass == pytest.approx(0.5, abs=0.01)


def test_hit_rates_tell_each_drafts_share_of_hits() -> None:
    calibration = Calibration()
    assert calibration.hit_rates() == {}
    for hit in (True, False, False, False):
        calibration.observe("model", math.log(0.3), hit=hit)
    calibration.observe("ngram", math.log(0.9), hit=True)
    assert calibration.hit_rates() == pytest.approx({"model": 0.25, "ngram": 1.0})
