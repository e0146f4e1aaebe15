"""Checksums of packed units, compared again while nobody waits.

A disk or a program may damage a file after its first read. What the disk tier reads in every pass
is compared once in a period, a piece at a time and far below the speed of a disk, and a damaged
unit is packed again before a start, or the page cache's loss of its copy, meets the damage.
"""

import logging
import time
from collections.abc import Callable, Sequence
from threading import Event
from typing import TYPE_CHECKING

from engine.errors import ModelError
from engine.messages import WeightsChecked

if TYPE_CHECKING:  # torch, which engines that stand in for the real one do without
    from engine.streaming.packed import PackedUnits

log = logging.getLogger(__name__)

BYTES_PER_SECOND = 32 * 2**20  # read from the disk, at most
QUIET_S = 2.0  # without a pass, before a check begins


class Rechecks:
    """Compares the checksums of some units of a packed folder, all of them once a period.

    One thread calls all methods but `preempt`, which may come from any other.

    Args:
        units: What is compared; None: nothing is packed.
        indices: Which of the units are read from the disk again and again.
        period_s: Seconds from the start of one round to the start of the next; 0: no round.
    """

    def __init__(
        self,
        units: "PackedUnits | None",
        indices: Sequence[int],
        period_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._units = units
        self._period_s = period_s
        self._clock = clock
        self._pieces = [(i, piece) for i in indices for piece in units.pieces(i)] if units else []
        self._next = 0  # of the pieces
        self._began = self._due = clock() + QUIET_S
        self._preempted = Event()
        self._nbytes = 0
        self._unrepaired = 0
        self._num_repaired = 0  # that was reported

    def seconds_until_due(self) -> float | None:
        """Return the seconds until `run` has something to do; None: never."""
        if not self._pieces or not self._period_s:
            return None
        return max(0.0, self._due - self._clock())

    def postpone(self) -> None:
        """Leave the disk alone for a while: a pass has ended, and another may follow."""
        self._due = max(self._due, self._clock() + QUIET_S)

    def preempt(self) -> None:
        """End the check at hand, because a request came; the piece is tried again later.

        Call it after the request can be seen by the thread that runs the checks.
        """
        self._preempted.set()

    def run(self) -> None:
        """Compare one piece, if it is due. A damaged unit is packed again before this returns."""
        if self._units is None or self.seconds_until_due() != 0:
            self._preempted.clear()
            return
        if self._next == 0:
            self._began = self._clock()
        unit, piece = self._pieces[self._next]
        try:
            if not self._units.recheck(unit, piece, lambda: not self._preempted.is_set()):
                return
        except ModelError as error:
            log.error("%s", error)
            self._unrepaired += 1
        finally:
            self._preempted.clear()
        self._nbytes += len(piece)
        self._next = (self._next + 1) % len(self._pieces)
        self._due = self._clock() + len(piece) / BYTES_PER_SECOND
        if self._next == 0:
            self._due = max(self._due, self._began + self._period_s)

    def take_report(self) -> WeightsChecked | None:
        """Return what became known since the last report: after a round, or at once of damage."""
        repaired = self._units.num_repaired - self._num_repaired if self._units else 0
        is_over = self._next == 0 and self._nbytes > 0
        if not (repaired or self._unrepaired or is_over):
            return None
        report = WeightsChecked(self._nbytes, repaired, self._unrepaired)
        self._num_repaired += repaired
        self._nbytes = self._unrepaired = 0
        return report
