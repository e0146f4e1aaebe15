"""The speed of an engine, learned from its passes, as it is reported to others."""

from engine.messages import PassStats
from engine.timing import StepTimes

FEW_ROWS = 64  # are computed at once, so that a pass of fewer rows is not shorter


class PassSpeeds:
    """The seconds of a pass, and those that each row of a prompt takes.

    A row takes the time in which it is computed, also where passes wait for weights and rows seem
    to cost nothing: a pass computes only as many as fit into its time.
    """

    def __init__(self) -> None:
        self._whole, self._computing = StepTimes(), StepTimes()

    def add(self, stats: PassStats) -> None:
        """Record a pass by its figures. While it drafts ahead, it computes no rows of its own."""
        seconds = (stats.draft_ms + stats.pass_ms) / 1e3
        self.observe(stats.rows, seconds, (stats.copy_stall_ms + stats.ahead_ms) / 1e3)

    def observe(self, rows: int, seconds: float, waited: float) -> None:
        """Record a pass.

        Args:
            seconds: its duration, with its draft.
            waited: the part of it in which nothing was computed, because weights were missing.
        """
        rows = max(rows, FEW_ROWS)
        self._whole.observe(rows, seconds)
        self._computing.observe(rows, max(0.0, seconds - waited))

    @property
    def pass_seconds(self) -> float:
        """The shortest time of a pass; 0 before the first one."""
        return self._whole.expect(FEW_ROWS) or 0.0

    @property
    def row_seconds(self) -> float:
        """The time that each row of a prompt takes; 0 before the first pass."""
        return self._computing.row_seconds
