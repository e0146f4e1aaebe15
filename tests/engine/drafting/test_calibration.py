"""The calibration of drafts, against simulated targets whose hit rates are known."""

import math
import random
from collections.abc import Sequence
from itertools import pairwise

import pytest

from engine.drafting.calibration import (
    BINS,
    MAX_PROBABILITY,
    MEMORY_TRIALS,
    PRIOR_TRIALS,
    TAU,
    TAU_RANGE,
    Calibration,
)
from engine.messages import SamplingParams

GREEDY = SamplingParams(temperature=0.0)
SAMPLED = SamplingParams(temperature=1.0)
PROBABILITIES = (0.001, 0.02, 0.15, 0.4, 0.6, 0.85, 0.97)  # one in each of seven bins


def trained(rates: dict[float, float], trials: int = 3000, seed: int = 0) -> Calibration:
    """Return a calibration after many trials: probability given by the draft -> hit rate."""
    rng, calibration = random.Random(seed), Calibration()
    for _ in range(trials):
        for given, rate in rates.items():
            calibration.observe("model", math.log(given), hit=rng.random() < rate)
    return calibration


def probability(calibration: Calibration, given: float, source: str = "model") -> float:
    """Return the calibrated probability of a token to which its draft gave the one `given`."""
    return math.exp(calibration.calibrate(source, math.log(given)))


@pytest.mark.parametrize("source", ["never seen", "model"])
def test_the_probability_of_an_unknown_draft_is_kept(source: str) -> None:
    calibration = Calibration()
    if source == "model":  # it has trials, but none near this probability
        calibration.observe(source, math.log(0.9), hit=False)
    assert probability(calibration, 0.4, source) == pytest.approx(0.4)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0], ids=["too low", "right", "too high"])
def test_a_drafts_probability_is_mapped_to_its_hit_rate(power: float) -> None:
    rates = {given: given**power for given in PROBABILITIES}
    calibration = trained(rates)
    for given, rate in rates.items():
        assert probability(calibration, given) == pytest.approx(rate, abs=0.04, rel=0.02)


def test_few_trials_change_little() -> None:
    calibration = Calibration()
    calibration.observe("model", math.log(0.5), hit=False)
    assert 0.4 < probability(calibration, 0.5) < 0.5
    for _ in range(int(PRIOR_TRIALS)):
        calibration.observe("model", math.log(0.5), hit=False)
    assert probability(calibration, 0.5) < 0.26


def test_each_source_is_calibrated_separately() -> None:
    calibration = trained({0.4: 0.0})
    assert probability(calibration, 0.4) < 0.02
    assert probability(calibration, 0.4, "ngram") == pytest.approx(0.4)


def test_old_trials_of_a_full_bin_fade() -> None:
    """Trials older than the bin's memory count less and less."""
    calibration = trained({0.4: 0.9})
    for _ in range(int(4 * MEMORY_TRIALS)):
        calibration.observe("model", math.log(0.4), hit=False)
    assert probability(calibration, 0.4) < 0.05


@pytest.mark.parametrize("rate", [0.0, 1.0])
@pytest.mark.parametrize("logprob", [-math.inf, -800.0, -30.0, -1.0, -1e-12, 0.0])
def test_calibrated_log_probabilities_are_finite_and_negative(logprob: float, rate: float) -> None:
    """So scores fall along a path, and a probability of 0 has a finite score too."""
    for calibration in (Calibration(), trained(dict.fromkeys(PROBABILITIES, rate), trials=50)):
        for _ in range(2):
            logprob_of_target = calibration.calibrate("model", logprob)
            assert -25 < logprob_of_target <= math.log(MAX_PROBABILITY) < 0
            calibration.observe("model", logprob, hit=bool(rate))


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_a_higher_probability_stays_higher_after_calibration(power: float) -> None:
    """This holds within a bin, and across bins where the draft's own order is right."""
    calibration = trained({given: given**power for given in PROBABILITIES}, trials=2000)
    edges = [0.0005, *BINS, 0.9999]
    for low, high in pairwise(edges):
        inside = [low + (high - low) * part / 7 for part in range(1, 7)]
        assert is_rising([probability(calibration, given) for given in inside])
    assert is_rising([probability(calibration, given) for given in PROBABILITIES])


def is_rising(values: Sequence[float]) -> bool:
    return all(a <= b for a, b in pairwise(values))


@pytest.mark.parametrize("rate", [0.65, 0.8, 0.95])
def test_tau_converges_until_the_best_childs_probability_is_its_hit_rate(rate: float) -> None:
    """The best of two children leads by one nat, so its probability is sigmoid(1 / tau)."""
    rng, calibration = random.Random(1), Calibration()
    probabilities = []
    for _ in range(6000):
        given = 1 / (1 + math.exp(-1 / calibration.tau(GREEDY)))
        probabilities.append(given)
        calibration.observe_first(GREEDY, math.log(given), hit=rng.random() < rate)
    assert sum(probabilities[-2000:]) / 2000 == pytest.approx(rate, abs=0.03)


def test_tau_falls_after_hits_and_rises_after_misses_within_its_range() -> None:
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


def test_the_probability_mass_of_children_is_smoothed() -> None:
    calibration = Calibration()
    before = calibration.mass
    calibration.observe_mass(0.5)
    assert 0.5 < calibration.mass < before
    for _ in range(1000):
        calibration.observe_mass(0.5)
    assert calibration.mass == pytest.approx(0.5, abs=0.01)


def test_hit_rates_are_shares_of_hits_by_source() -> None:
    calibration = Calibration()
    assert calibration.hit_rates() == {}
    for hit in (True, False, False, False):
        calibration.observe("model", math.log(0.3), hit=hit)
    calibration.observe("ngram", math.log(0.9), hit=True)
    assert calibration.hit_rates() == pytest.approx({"model": 0.25, "ngram": 1.0})
