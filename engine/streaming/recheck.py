"""Checks that compare the checksums of packed units again while no request runs.

A disk or a program may damage a file after its first read. So the units of the disk tier are
checked once per period, a piece at a time and far below the speed of a disk. A damaged unit is
packed again before the damage can matter: at the next start, or when the page cache drops its copy.
"""

import logging
import time
from collections.abc import Callable, Sequence
from threading import Event
from typing import TYPE_CHECKING

from engine.errors import ModelError
from engine.messages import WeightsChecked

if TYPE_CHECKING:  # it imports torch, which the fake engine of tests does not need
    from engine.streaming.packed import PackedUnits

log = logging.getLogger(__name__)

BYTES_PER_SECOND = 32 * 2**20  # the most that checks read from the disk
QUIET_S = 2.0  # seconds without a pass before a check begins


class Rechecks:
    """A schedule of checks that compares the checksums of some packed units once per period.

    One thread calls all methods but `preempt`, which any thread may call.

    Args:
        units: the packed units; None if there are none.
        indices: the units that are read from the disk in every pass. Only these are checked.
        period_s: seconds from the start of one round to the start of the next; 0: no rounds.
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
        self._next = 0  # index of the next piece
        self._began = self._due = clock() + QUIET_S
        self._preempted = Event()
        self._nbytes = 0
        self._unrepaired = 0
        self._num_repaired = 0  # units that were reported as repaired

    def seconds_until_due(self) -> float | None:
        """Return the seconds until `run` has something to do, or None if it never has."""
        if not self._pieces or not self._period_s:
            return None
        return max(0.0, self._due - self._clock())

    def postpone(self) -> None:
        """Do not check for `QUIET_S` seconds, because a pass has ended and another may follow."""
        self._due = max(self._due, self._clock() + QUIET_S)

    def preempt(self) -> None:
        """End the running check, because a request has arrived. The piece is checked again later.

        Queue the request before calling this, so that the checking thread sees it.
        """
        self._preempted.set()

    def run(self) -> None:
        """Check one piece if it is due. A damaged unit is packed again before this returns."""
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
        """Return a report after a round, and after damage was found or repaired; otherwise None."""
        repaired = self._units.num_repaired - self._num_repaired if self._units else 0
        is_over = self._next == 0 and self._nbytes > 0
        if not (repaired or self._unrepaired or is_over):
            return None
        report = WeightsChecked(self._nbytes, repaired, self._unrepaired)
        self._num_repaired += repaired
        self._nbytes = self._unrepaired = 0
        return report
