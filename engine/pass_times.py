"""How long a pass of the target takes: its weights' travel, or its rows' compute."""

from dataclasses import dataclass, field

from engine.timing import StepTimes

LONG = 1024  # tokens that a row sees on average: from here on attention is what a pass tells of
SMOOTHING = 0.3  # weight of the newest pass in what attention takes


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
            self.pair_seconds += SMOOTHING * (pace - self.pair_seconds)
        else:
            attention = self.pair_seconds * pairs
            self.compute.observe(self.padded(rows), max(compute_seconds - attention, 0.0))
        known = self.link_seconds or link_seconds
        self.link_seconds = known + 0.2 * (link_seconds - known)

    def expect(self, rows: int, pairs: float = 0.0) -> float | None:
        """Seconds of a pass of so many rows and pairs; None before the first."""
        compute = self._compute(rows, pairs)
        return None if compute is None else max(compute, self.link_seconds)

    def expect_cycle(self, rows: int, elapsed: float, context: float = 0.0) -> float | None:
        """Seconds of drafting, `elapsed`, and the pass behind it; None before the first.

        Each row sees `context` tokens. While the draft computes, the link fills the ring with the
        pass's first units: until that is full, drafting costs a pass that waits for its weights
        nothing.
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
