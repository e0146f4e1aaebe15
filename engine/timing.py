"""How long steps take: timed at start-up, and learned by their number of rows as they run."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf

SMOOTHING = 0.15  # weight of the newest step
OUTLIER = 3.0  # a step longer than this many times the expected counts as so many
LONG = 1024  # tokens that a row sees on average: from here on attention is what a pass tells of
ATTENTION_SMOOTHING = 0.3  # weight of the newest pass in what attention takes
LINK_SMOOTHING = 0.2  # weight of the newest pass in the time in which weights travel


def smoothed(known: float, newest: float, weight: float) -> float:
    """Return the exponential average `known` after one more figure of this weight."""
    return known + weight * (newest - known)


def time_runs(step: Callable[[], object], runs: int, seconds: float = inf) -> list[float]:
    """Return the seconds of each of some runs of `step`.

    No run begins once `seconds` have passed since the first one began.
    """
    taken: list[float] = []
    first = time.perf_counter()
    while len(taken) < runs and (began := time.perf_counter()) - first < seconds:
        step()
        taken.append(time.perf_counter() - began)
    return taken


class StepTimes:
    """Seconds of a step with so many rows: smoothed between powers of two, linear in between."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[float, float]] = {}  # power of two -> rows, seconds

    def observe(self, rows: int, seconds: float) -> None:
        """A step of so many rows took so long."""
        rows = max(rows, 1)
        bucket = 1 << (rows - 1).bit_length()
        usual, known = self._known.get(bucket, (rows, seconds))
        seconds = min(seconds, OUTLIER * known)
        self._known[bucket] = (
            smoothed(usual, rows, SMOOTHING),
            smoothed(known, seconds, SMOOTHING),
        )

    def expect(self, rows: int) -> float | None:
        """Seconds of such a step; None before the first.

        Fewer rows never take longer than more: a time that was measured while the machine was
        busy is believed only until a larger step was faster. Else it would keep steps of its size
        from being made, and so from being measured again. More rows than ever seen: in proportion
        where one size is known, else along the last two.
        """
        if not self._known:
            return None
        at = float(max(rows, 1))
        points = sorted(self._known.values())
        quickest = accumulate((seconds for _, seconds in reversed(points)), min)
        known = [(of, seconds) for (of, _), seconds in zip(points, [*quickest][::-1], strict=True)]
        if at <= known[0][0]:
            return known[0][1]
        if len(known) == 1:
            return known[0][1] * at / known[0][0]
        above = next((i for i, (of, _) in enumerate(known) if of >= at), len(known) - 1)
        (low, quick), (high, slow) = known[above - 1], known[above]
        return quick + (slow - quick) * (at - low) / (high - low)


@dataclass
class PassTimes:
    """Seconds by rows, and by pairs of a row and a token that it sees: attention's share."""

    granularity: int  # rows are computed in so many at a time
    ahead: float = 0.0  # share of the weights that the ring takes in before the pass begins
    pair_seconds: float = 0.0  # of attention over all layers, for one row and one token
    link_seconds: float = 0.0  # smoothed time in which weights travel
    compute: StepTimes = field(default_factory=StepTimes)  # by rows, without attention

    def observe(
        self, rows: int, compute_seconds: float, link_seconds: float, pairs: float = 0.0
    ) -> None:
        """Rows and pairs of a pass, and what it took without waiting for weights."""
        of_rows = self.compute.expect(self.padded(rows))
        if of_rows is not None and pairs >= LONG * rows:
            pace = max(compute_seconds - of_rows, 0.0) / pairs
            self.pair_seconds = smoothed(self.pair_seconds, pace, ATTENTION_SMOOTHING)
        else:
            attention = self.pair_seconds * pairs
            self.compute.observe(self.padded(rows), max(compute_seconds - attention, 0.0))
        known = self.link_seconds or link_seconds
        self.link_seconds = smoothed(known, link_seconds, LINK_SMOOTHING)

    def expect(self, rows: int, pairs: float = 0.0) -> float | None:
        """Return the expected seconds of a pass with `rows` and `pairs`; None before the first."""
        compute = self._compute(rows, pairs)
        return None if compute is None else max(compute, self.link_seconds)

    def expect_cycle(self, rows: int, elapsed: float, context: float = 0.0) -> float | None:
        """Return the expected seconds of drafting and the pass after it; None before the first.

        `elapsed` are the seconds spent on drafting. Each row sees `context` tokens. While the draft
        computes, the link fills the ring with the pass's first units: until the ring is full,
        drafting does not delay a pass that waits for its weights.
        """
        compute = self._compute(rows, rows * context)
        if compute is None:
            return None
        stands = max(elapsed - self.ahead * self.link_seconds, 0.0)
        return max(elapsed + compute, self.link_seconds + stands)

    def padded(self, rows: int) -> int:
        return -(-rows // self.granularity) * self.granularity

    def _compute(self, rows: int, pairs: float) -> float | None:
        of_rows = self.compute.expect(self.padded(rows))
        return None if of_rows is None else of_rows + self.pair_seconds * pairs
