"""How long steps take by their number of rows, learned as they run."""

from math import ceil, log2

SMOOTHING = 0.15  # weight of the newest step
OUTLIER = 3.0  # a step longer than this many times the expected counts as so many


class StepTimes:
    """Seconds of a step with so many rows: smoothed at powers of two, linear in between."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}  # power of two of rows -> seconds

    def observe(self, rows: int, seconds: float) -> None:
        """A step of so many rows took so long."""
        bucket = _bucket(rows)
        known = self._seconds.get(bucket)
        if known is None:
            self._seconds[bucket] = seconds
        else:
            self._seconds[bucket] = known + SMOOTHING * (min(seconds, OUTLIER * known) - known)

    def expect(self, rows: int) -> float | None:
        """Seconds of such a step; None before the first.

        More rows than ever seen: in proportion where one size is known, else along the last two.
        """
        if not self._seconds:
            return None
        at = float(max(rows, 1))
        known = sorted(self._seconds)
        above = next((bucket for bucket in known if bucket >= at), None)
        below = next((bucket for bucket in reversed(known) if bucket <= at), None)
        if above is not None and below is not None:
            return self._between(below, above, at)
        if below is None:
            return self._seconds[known[0]]
        if len(known) == 1:
            return self._seconds[below] * at / below
        return self._between(known[-2], below, at)

    def _between(self, low: int, high: int, at: float) -> float:
        """On the line through two buckets, never below the first."""
        first, second = self._seconds[low], self._seconds[high]
        if low == high:
            return first
        return max(first, first + (second - first) * (at - low) / (high - low))


def _bucket(rows: int) -> int:
    return int(2 ** ceil(log2(max(rows, 1))))
