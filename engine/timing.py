"""How long steps take by their number of rows, learned as they run."""

from itertools import accumulate
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

        Fewer rows never take longer than more: a time that was measured while the machine was
        busy is believed only until a larger step was faster. Else it would keep steps of its size
        from being made, and so from being measured again. More rows than ever seen: in proportion
        where one size is known, else along the last two.
        """
        if not self._seconds:
            return None
        at = float(max(rows, 1))
        known = sorted(self._seconds)
        quickest = accumulate((self._seconds[bucket] for bucket in reversed(known)), min)
        seconds = dict(zip(reversed(known), quickest, strict=True))
        above = next((bucket for bucket in known if bucket >= at), None)
        below = next((bucket for bucket in reversed(known) if bucket <= at), None)
        if below is None:
            return seconds[known[0]]
        if above is None:
            if len(known) == 1:
                return seconds[below] * at / below
            below, above = known[-2], known[-1]
        if below == above:
            return seconds[below]
        share = (at - below) / (above - below)
        return seconds[below] + (seconds[above] - seconds[below]) * share


def _bucket(rows: int) -> int:
    return int(2 ** ceil(log2(max(rows, 1))))
