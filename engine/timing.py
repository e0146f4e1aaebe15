"""Durations of steps: measured at start-up, and learned from running steps by number of rows."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf

SMOOTHING = 0.15  # weight of the newest step
OUTLIER = 3.0  # the duration of a step counts as at most this many times the expected one
# Average tokens that a row attends to, from which on the time of a pass is used to learn attention.
LONG_CONTEXT = 1024
ATTENTION_SMOOTHING = 0.3  # weight of the newest pass in the time of attention
LINK_SMOOTHING = 0.2  # weight of the newest pass in the time in which weights travel


def smoothed(known: float, newest: float, weight: float) -> float:
    """Return the exponential average `known` after a further figure of this weight."""
    return known + weight * (newest - known)


def time_runs(step: Callable[[], object], runs: int, seconds: float = inf) -> list[float]:
    """Return the seconds of each of up to `runs` runs of `step`.

    No run begins once `seconds` have passed since the first one began.
    """
    taken: list[float] = []
    first = time.perf_counter()
    while len(taken) < runs and (began := time.perf_counter()) - first < seconds:
        step()
        taken.append(time.perf_counter() - began)
    return taken


class StepTimes:
    """The seconds of a step by its number of rows, learned from steps that ran.

    Steps between the same powers of two share one smoothed time, and others are interpolated.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[float, float]] = {}  # power of two -> rows, seconds

    def observe(self, rows: int, seconds: float) -> None:
        """Record the duration of a step of `rows` rows."""
        rows = max(rows, 1)
        bucket = 1 << (rows - 1).bit_length()
        usual, known = self._known.get(bucket, (rows, seconds))
        seconds = min(seconds, OUTLIER * known)
        self._known[bucket] = (
            smoothed(usual, rows, SMOOTHING),
            smoothed(known, seconds, SMOOTHING),
        )

    def expect(self, rows: int) -> float | None:
        """Return the expected seconds of a step of `rows` rows; None before the first step.

        Fewer rows are never expected to take longer than more: a time that was measured while the
        machine was busy is ignored once a larger step was faster. Otherwise steps of its size would
        not be chosen, and so not be measured again. Beyond the largest known size the time grows in
        proportion to the rows, or along the line through the last two sizes.
        """
        known, at = self._points(), float(max(rows, 1))
        if not known:
            return None
        if at <= known[0][0]:
            return known[0][1]
        if len(known) == 1:
            return known[0][1] * at / known[0][0]
        above = next((i for i, (of, _) in enumerate(known) if of >= at), len(known) - 1)
        (low, quick), (high, slow) = known[above - 1], known[above]
        return quick + (slow - quick) * (at - low) / (high - low)

    @property
    def row_seconds(self) -> float:
        """The seconds that a further row takes, from the smallest known size to the largest.

        Of a single size it is in proportion to the rows; 0 before the first step.
        """
        known = self._points()
        if len(known) < 2:
            return known[0][1] / known[0][0] if known else 0.0
        (low, quick), (high, slow) = known[0], known[-1]
        return (slow - quick) / (high - low)

    def _points(self) -> list[tuple[float, float]]:
        """Return rows and seconds of the known sizes, in order; the seconds never fall."""
        points = sorted(self._known.values())
        quickest = accumulate((seconds for _, seconds in reversed(points)), min)
        return [(of, seconds) for (of, _), seconds in zip(points, [*quickest][::-1], strict=True)]


@dataclass
class PassTimes:
    """The seconds of a pass, learned from passes that ran.

    The time of attention is learned by pairs of a row and a token that it attends to, the rest by
    the number of rows.
    """

    granularity: int  # rows are computed in multiples of this number
    ahead: float = 0.0  # share of the weights that the ring can hold before the pass begins
    pair_seconds: float = 0.0  # of attention over all layers, for one pair
    link_seconds: float = 0.0  # smoothed time in which all weights travel
    compute: StepTimes = field(default_factory=StepTimes)  # by rows, without attention

    def observe(
        self, rows: int, compute_seconds: float, link_seconds: float, pairs: float = 0.0
    ) -> None:
        """Record a pass.

        Args:
            compute_seconds: its duration without waiting for weights.
            link_seconds: the time in which its weights travelled.
            pairs: its pairs of a row and a token that the row attends to.
        """
        of_rows = self.compute.expect(self.padded(rows))
        if of_rows is not None and pairs >= LONG_CONTEXT * rows:
            pace = max(compute_seconds - of_rows, 0.0) / pairs
            self.pair_seconds = smoothed(self.pair_seconds, pace, ATTENTION_SMOOTHING)
        else:
            attention = self.pair_seconds * pairs
            self.compute.observe(self.padded(rows), max(compute_seconds - attention, 0.0))
        known = self.link_seconds or link_seconds
        self.link_seconds = smoothed(known, link_seconds, LINK_SMOOTHING)

    def change_link(self, share: float, ahead: float) -> None:
        """Expect other transfers, because units have moved.

        Args:
            share: the bytes that travel from now on, over those that travelled before.
            ahead: the share of them that the ring can hold before the pass begins.
        """
        self.link_seconds *= share
        self.ahead = ahead

    def expect(self, rows: int, pairs: float = 0.0) -> float | None:
        """Return the expected seconds of a pass with `rows` and `pairs`; None before the first."""
        compute = self._compute(rows, pairs)
        return None if compute is None else max(compute, self.link_seconds)

    def expect_cycle(self, rows: int, elapsed: float, context: float = 0.0) -> float | None:
        """Return the expected seconds of drafting and the pass after it; None before the first.

        While the draft computes, the link fills the ring with the pass's first units. Until the
        ring is full, drafting does not delay a pass that waits for its weights.

        Args:
            elapsed: the seconds spent on drafting.
            context: the tokens that each row attends to.
        """
        compute = self._compute(rows, rows * context)
        if compute is None:
            return None
        idle = max(elapsed - self.ahead * self.link_seconds, 0.0)  # of the link: the ring is full
        return max(elapsed + compute, self.link_seconds + idle)

    def padded(self, rows: int) -> int:
        """Return the rows that are computed for `rows`: the next multiple of the granularity."""
        return -(-rows // self.granularity) * self.granularity

    def _compute(self, rows: int, pairs: float) -> float | None:
        of_rows = self.compute.expect(self.padded(rows))
        return None if of_rows is None else of_rows + self.pair_seconds * pairs
