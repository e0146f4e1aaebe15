"""What a link carried and how long that took, and how much idle time that leaves the walker."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from engine.timing import smoothed

_SMOOTHING = 0.2  # weight of the newest transfer, or walk from one unit to the next


@dataclass(frozen=True)
class Traffic:
    """What one tier's link carried: whole transfers, counted when they end."""

    bytes: int
    seconds: float  # in which at least one transfer was under way

    @property
    def gbps(self) -> float:
        """Return gigabytes (1e9) a second while the link was busy; 0 if nothing was carried."""
        return self.bytes / self.seconds / 1e9 if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class LinkStats:
    """The stream's figures since the last reset."""

    ram: Traffic  # RAM to device
    disk: Traffic  # disk to host memory
    stall_seconds: float  # the caller waited for a unit, time given to `idle` not counted
    units: int  # units walked, resident ones too
    idle_seconds: float = 0.0  # given to `idle`

    @property
    def bytes(self) -> int:
        return self.ram.bytes + self.disk.bytes

    @property
    def busy_seconds(self) -> float:
        """Return the sum over both links, which may carry at the same time."""
        return self.ram.seconds + self.disk.seconds


class Meter:
    """Counts one link's traffic. Transfers may overlap: time is the union of their intervals."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.seconds_per_byte = 0.0  # smoothed over recent transfers; 0.0 before the first
        self.ended = 0.0  # when the last transfer was over, on the clock
        self._lock = threading.Lock()
        self._under_way = 0
        self._counted_until = 0.0
        self._bytes = 0
        self._seconds = 0.0

    @contextmanager
    def carrying(self, nbytes: int) -> Iterator[None]:
        """Enter a block that is a transfer; its bytes count unless it raises."""
        self.begin(self.clock())
        arrived = 0
        try:
            yield
            arrived = nbytes
        finally:
            self.end(self.clock(), arrived)

    def begin(self, at: float) -> None:
        """Count a transfer that begins at this time of the clock."""
        with self._lock:
            if self._under_way == 0:
                self._counted_until = at
            self._under_way += 1

    def end(self, at: float, nbytes: int) -> None:
        """Count the end of a transfer of `nbytes`."""
        with self._lock:
            self._under_way -= 1
            self._count(at - self._counted_until, nbytes)
            self._counted_until = self.ended = at

    def credit(self, seconds: float, nbytes: int) -> None:
        """Count a transfer that the device's own clock timed."""
        with self._lock:
            self._count(seconds, nbytes)
            self.ended = self.clock()

    def traffic(self) -> Traffic:
        with self._lock:
            return Traffic(self._bytes, self._seconds)

    def reset(self) -> None:
        """Count from zero; transfers under way are counted when they end."""
        with self._lock:
            self._bytes, self._seconds = 0, 0.0

    def _count(self, seconds: float, nbytes: int) -> None:
        self._bytes += nbytes
        self._seconds += seconds
        if nbytes:
            pace = seconds / nbytes
            known = self.seconds_per_byte or pace
            self.seconds_per_byte = smoothed(known, pace, _SMOOTHING)


class Smoothed:
    """An exponential average, which is None before the first figure."""

    def __init__(self) -> None:
        self.value: float | None = None  # None before the first figure

    def observe(self, figure: float) -> None:
        known = figure if self.value is None else self.value
        self.value = smoothed(known, figure, _SMOOTHING)


def time_away(
    now: float, due: Sequence[float], later: Sequence[float], compute: float | None
) -> float:
    """Return for how many seconds the walker may do something else at no loss; 0 if it must wait.

    Two things bound them. When everything that was asked for has arrived, the link is idle until a
    slot is free, which takes the compute of the unit in it. And the pass ends no later only if the
    walker can catch up, by computing faster than the link carries.

    Args:
        due: when the unit that the walker waits for arrives, then those asked for after it.
        later: the link's seconds for each streamed unit of the pass after the one waited for.
        compute: the walker's own seconds for one of them; None if they are not known yet.
    """
    if compute is None:
        return max(0.0, due[0] - now)
    made_up = max(0.0, sum(later) - len(later) * compute)
    link_is_free = max(due[0], due[-1] - compute)
    return max(0.0, min(due[0] + made_up, link_is_free) - now)
