"""Calibration: from a draft's probability of a token to how often the target takes that token.

Each loaded model has one calibration, which is kept across requests and learns from every pass. It
has a map for each source of drafts, in bins of the draft's probability. tau, the temperature of a
draft model's scores, follows the hit rate of its first candidates.
"""

from bisect import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, log

from engine.messages import SamplingParams
from engine.sampling.logit_rules import is_greedy
from engine.timing import smoothed

BINS = (0.003, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98, 0.995)
TAU = 0.5  # at first: draft and target share noise, so the best child is almost certainly taken
TAU_RANGE = (0.05, 3.0)
RATE = 0.02  # learning rate of tau
MEMORY_TRIALS = 2000.0  # of a bin: from here on each trial makes the older ones count less
PRIOR_TRIALS = 10.0  # trials that the draft's own probability counts for
MAX_PROBABILITY = 0.999
MIN_PROBABILITY = 1e-9  # so that a token that is all but impossible has a finite logarithm


@dataclass
class _Bin:
    """Decayed sums over the trials whose probability is in one range."""

    trials: float = 0.0
    expected_hits: float = 0.0  # the sum of the draft's probabilities
    hits: float = 0.0

    def add(self, probability: float, hit: bool) -> None:
        keep = 1 - 1 / MEMORY_TRIALS if self.trials >= MEMORY_TRIALS else 1.0
        self.trials = keep * self.trials + 1
        self.expected_hits = keep * self.expected_hits + probability
        self.hits = keep * self.hits + hit

    def correct(self, probability: float) -> float:
        """Return the hit rate to expect where the draft gives a probability of this bin."""
        prior = PRIOR_TRIALS * probability
        scale = (self.hits + prior) / (self.expected_hits + prior)
        return min(probability * scale, MAX_PROBABILITY)


class Calibration:
    """What one model has learned of how often the target takes drafted tokens."""

    def __init__(self) -> None:
        self._bins: dict[str, list[_Bin]] = {}
        self._tau = {True: TAU, False: TAU}  # by whether decoding is greedy
        self.mass = 0.9  # smoothed probability that a node's successor is among its children

    def tau(self, params: SamplingParams) -> float:
        """Return the temperature of a draft model's scores for requests of these parameters."""
        return self._tau[is_greedy(params)]

    def calibrate(self, source: str, logprob: float) -> float:
        """Return the log-probability that the target takes a drafted token.

        Args:
            source: the draft that proposed the token.
            logprob: the log-probability that this draft gave it.
        """
        probability = max(exp(logprob), MIN_PROBABILITY)
        bins = self._bins.get(source)
        if bins is not None:
            probability = bins[bisect(BINS, probability)].correct(probability)
        return log(max(min(probability, MAX_PROBABILITY), MIN_PROBABILITY))

    def observe(self, source: str, logprob: float, *, hit: bool) -> None:
        """Record whether the target, having reached a drafted token's parent, took the token.

        Args:
            source: the draft that proposed the token.
            logprob: the log-probability that this draft gave it.
        """
        bins = self._bins.setdefault(source, [_Bin() for _ in range(len(BINS) + 1)])
        probability = exp(logprob)
        bins[bisect(BINS, probability)].add(probability, hit)

    def observe_first(self, params: SamplingParams, logprob: float, *, hit: bool) -> None:
        """Adapt tau to whether the target took the best child that the draft model proposed.

        tau falls while this child is taken more often than its probability `exp(logprob)` says. It
        is a stochastic approximation (Robbins and Monro, 1951) of the tau at which the mean
        probability of the best child equals its hit rate.
        """
        low, high = TAU_RANGE
        greedy = is_greedy(params)
        self._tau[greedy] *= exp(RATE * (exp(logprob) - hit))
        self._tau[greedy] = min(max(self._tau[greedy], low), high)

    def observe_mass(self, mass: float) -> None:
        """Record the total calibrated probability of a node's children."""
        self.mass = smoothed(self.mass, mass, 0.01)

    def hit_rates(self) -> Mapping[str, float]:
        """Return by source the share of its tokens at reached rows that the target took."""
        rates = {}
        for source, bins in self._bins.items():
            trials = sum(b.trials for b in bins)
            rates[source] = sum(b.hits for b in bins) / trials if trials else 0.0
        return rates
