"""The speed of an engine, learned from its passes, as it is reported to others."""

from engine.timing import StepTimes

FEW_ROWS = 64  # are computed at once, so that a pass of fewer rows is not shorter


class PassSpeeds:
    """The seconds of a pass, and those that each row of a prompt takes.

    A row takes the time in which it is computed, also where passes wait for weights and rows seem
    to cost nothing: a pass computes only as many as fit into its time.
    """

    def __init__(self) -> None:
        self._whole, self._computing = StepTimes(), StepTimes()

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
