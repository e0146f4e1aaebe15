"""How long steps take by their number of rows, learned as they run."""

from itertools import accumulate
from math import ceil, log2

SMOOTHING = 0.15  # weight of the newest step
OUTLIER = 3.0  # a step longer than this many times the expected counts as so many


class StepTimes:
    """Seconds of a step with so many rows: smoothed between powers of two, linear in between."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[float, float]] = {}  # power of two -> rows, seconds

    def observe(self, rows: int, seconds: float) -> None:
        """A step of so many rows took so long."""
        bucket, rows = _bucket(rows), max(rows, 1)
        if bucket not in self._known:
            self._known[bucket] = rows, seconds
            return
        usual, known = self._known[bucket]
        seconds = min(seconds, OUTLIER * known)
        self._known[bucket] = (
            usual + SMOOTHING * (rows - usual),
            known + SMOOTHING * (seconds - known),
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


def _bucket(rows: int) -> int:
    return int(2 ** ceil(log2(max(rows, 1))))
