"""From what a draft believes to how often the target agrees: learned as passes go by.

One for each loaded model, kept across requests. The map is per source of drafts and in bins of
belief; tau, which sharpens a draft model's scores, follows from its first candidates.
"""

from bisect import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, log

from engine.messages import SamplingParams
from engine.sampling.logit_rules import is_greedy
from engine.timing import smoothed

BINS = (0.003, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98, 0.995)
TAU = 0.5  # to begin with: draft and target share noise, so a child's win is near certain
TAU_RANGE = (0.05, 3.0)
RATE = 0.02  # of learning tau
MEMORY = 2000.0  # trials a bin remembers: older ones fade
PRIOR = 10.0  # trials' worth of trust in the draft's own belief
SUREST = 0.999
LEAST = 1e-9  # so that what is all but impossible has a logarithm


@dataclass
class _Bin:
    """Decayed sums over the trials of one range of belief."""

    trials: float = 0.0
    believed: float = 0.0  # sum of probabilities
    hits: float = 0.0

    def add(self, belief: float, hit: bool) -> None:
        keep = 1 - 1 / MEMORY if self.trials >= MEMORY else 1.0
        self.trials = keep * self.trials + 1
        self.believed = keep * self.believed + belief
        self.hits = keep * self.hits + hit

    def correct(self, belief: float) -> float:
        """Probability for a belief of this bin."""
        prior = PRIOR * belief
        return min(belief * (self.hits + prior) / (self.believed + prior), SUREST)


class Calibration:
    """What the target made of drafted tokens so far."""

    def __init__(self) -> None:
        self._bins: dict[str, list[_Bin]] = {}
        self._tau = {True: TAU, False: TAU}  # greedy or sampled
        self.mass = 0.9  # smoothed probability that a node's successor is among its children

    def tau(self, params: SamplingParams) -> float:
        """How much a draft model's scores are sharpened for such requests."""
        return self._tau[is_greedy(params)]

    def gain(self, source: str, belief: float) -> float:
        """Log-probability that the target takes a token its draft gave this log-probability."""
        probability = max(exp(belief), LEAST)
        bins = self._bins.get(source)
        if bins is not None:
            probability = bins[bisect(BINS, probability)].correct(probability)
        return log(max(min(probability, SUREST), LEAST))

    def observe(self, source: str, belief: float, *, hit: bool) -> None:
        """The target reached the parent of a drafted token, and took it or did not."""
        bins = self._bins.setdefault(source, [_Bin() for _ in range(len(BINS) + 1)])
        probability = exp(belief)
        bins[bisect(BINS, probability)].add(probability, hit)

    def observe_first(self, params: SamplingParams, belief: float, *, hit: bool) -> None:
        """Of a draft model's children, the first: tau falls while it is right more than it says.

        Stochastic approximation (Robbins and Monro, 1951) of the tau at which the mean belief in
        the first candidate is its hit rate.
        """
        low, high = TAU_RANGE
        greedy = is_greedy(params)
        self._tau[greedy] *= exp(RATE * (exp(belief) - hit))
        self._tau[greedy] = min(max(self._tau[greedy], low), high)

    def observe_mass(self, mass: float) -> None:
        """A draft model gave the children of a node so much probability together."""
        self.mass = smoothed(self.mass, mass, 0.01)

    def hit_rates(self) -> Mapping[str, float]:
        """Source -> share of the drafted tokens at reached rows that the target took."""
        rates = {}
        for source, bins in self._bins.items():
            trials = sum(b.trials for b in bins)
            rates[source] = sum(b.hits for b in bins) / trials if trials else 0.0
        return rates
