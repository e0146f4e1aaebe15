"""Bytes and durations of a link's transfers, and the time they leave for other work."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from engine.timing import smoothed

_SMOOTHING = 0.2  # weight of the newest figure in a moving average


@dataclass(frozen=True)
class Traffic:
    """The traffic of one link. Only whole transfers are counted, when they end."""

    bytes: int
    seconds: float  # in which at least one transfer was running

    @property
    def gbps(self) -> float:
        """Gigabytes (1e9) per second while the link was busy; 0 if nothing was carried."""
        return self.bytes / self.seconds / 1e9 if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class LinkStats:
    """The figures of a weight stream since the last reset."""

    ram: Traffic  # RAM to device
    disk: Traffic  # disk to host memory
    stall_seconds: float  # in which the caller waited for a unit, without the time of `on_wait`
    units: int  # units that were used, resident ones too
    callback_seconds: float = 0.0  # in which `on_wait` ran

    @property
    def bytes(self) -> int:
        """The bytes that both links carried."""
        return self.ram.bytes + self.disk.bytes

    @property
    def busy_seconds(self) -> float:
        """The sum of the seconds of both links, which may be busy at the same time."""
        return self.ram.seconds + self.disk.seconds


class Meter:
    """A counter of one link's traffic. The time of transfers that overlap is counted once."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.seconds_per_byte = 0.0  # smoothed over recent transfers; 0.0 before the first
        self.ended = 0.0  # when the last transfer ended, on the clock
        self._lock = threading.Lock()
        self._num_running = 0
        self._counted_until = 0.0
        self._bytes = 0
        self._seconds = 0.0

    @contextmanager
    def time_transfer(self, nbytes: int) -> Iterator[None]:
        """Enter a block that runs a transfer. Its bytes are counted unless it raises."""
        self.begin(self.clock())
        arrived = 0
        try:
            yield
            arrived = nbytes
        finally:
            self.end(self.clock(), arrived)

    def begin(self, at: float) -> None:
        """Record that a transfer begins at this time of the clock."""
        with self._lock:
            if self._num_running == 0:
                self._counted_until = at
            self._num_running += 1

    def end(self, at: float, nbytes: int) -> None:
        """Record that a transfer of `nbytes` ends at this time of the clock."""
        with self._lock:
            self._num_running -= 1
            self._count(at - self._counted_until, nbytes)
            self._counted_until = self.ended = at

    def add_transfer(self, seconds: float, nbytes: int) -> None:
        """Record a transfer that the device's own clock timed."""
        with self._lock:
            self._count(seconds, nbytes)
            self.ended = self.clock()

    def traffic(self) -> Traffic:
        """Return the traffic since the last reset."""
        with self._lock:
            return Traffic(self._bytes, self._seconds)

    def reset(self) -> None:
        """Count from zero again. Running transfers are counted when they end."""
        with self._lock:
            self._bytes, self._seconds = 0, 0.0

    def _count(self, seconds: float, nbytes: int) -> None:
        self._bytes += nbytes
        self._seconds += seconds
        if nbytes:
            newest = seconds / nbytes
            known = self.seconds_per_byte or newest
            self.seconds_per_byte = smoothed(known, newest, _SMOOTHING)


class MovingAverage:
    """An exponential moving average of figures."""

    def __init__(self) -> None:
        self.value: float | None = None  # None before the first figure

    def observe(self, figure: float) -> None:
        """Include one more figure in the average."""
        known = figure if self.value is None else self.value
        self.value = smoothed(known, figure, _SMOOTHING)


def spare_seconds(
    now: float,
    due: Sequence[float],
    later: Sequence[float],
    compute: float | None,
    num_until_free: int = 1,
) -> float:
    """Return the seconds of other work that do not delay the pass; 0 if the thread must wait.

    There are two bounds. Once all requested units have arrived, the link is idle until a slot is
    free, that is until the units in use have been computed. And the pass ends no later only if the
    computing thread can catch up, which it can if it computes units faster than the link carries
    them.

    Args:
        now: the current time, on the clock of `due`.
        due: when the next unit arrives, then the units requested after it.
        later: the link's seconds for each streamed unit of the pass after the next one.
        compute: the thread's own seconds for one of them; None if they are not known yet.
        num_until_free: units that are computed before a slot is free: those left of a layer.
    """
    if compute is None:
        return max(0.0, due[0] - now)
    made_up = max(0.0, sum(later) - len(later) * compute)
    link_is_free = max(due[0], due[-1] - num_until_free * compute)
    return max(0.0, min(due[0] + made_up, link_is_free) - now)
