"""What travelled over the link, how long that took, and a link of pretended bandwidth."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_SMOOTHING = 0.2  # weight of the newest transfer in the expected time per byte


@dataclass(frozen=True)
class Traffic:
    """What one tier's link carried: whole transfers, counted when they end."""

    bytes: int
    seconds: float  # in which at least one transfer was under way

    @property
    def gbps(self) -> float:
        """Gigabytes (1e9) a second while the link was busy; 0 if nothing was carried."""
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
        """Sum over the links: RAM and disk carry at the same time where both are used."""
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
        """The block is a transfer; its bytes count unless it raises."""
        self.begin(self.clock())
        arrived = 0
        try:
            yield
            arrived = nbytes
        finally:
            self.end(self.clock(), arrived)

    def begin(self, at: float) -> None:
        """A transfer begins at this time of the clock."""
        with self._lock:
            if self._under_way == 0:
                self._counted_until = at
            self._under_way += 1

    def end(self, at: float, nbytes: int) -> None:
        """A transfer of so many bytes is over."""
        with self._lock:
            self._under_way -= 1
            self._count(at - self._counted_until, nbytes)
            self._counted_until = self.ended = at

    def credit(self, seconds: float, nbytes: int) -> None:
        """Count a transfer timed elsewhere, by the device's own clock."""
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
            self.seconds_per_byte = known + _SMOOTHING * (pace - known)


class SimulatedLink:
    """RAM behind a link of `gbps` gigabytes (1e9) a second. Carries one transfer at a time.

    A transfer takes its bytes over the bandwidth from when it was asked for or the link became
    free. The next one starts from that computed end, not from when the sleep returned, so the
    bandwidth is met on average; it is never exceeded.
    """

    def __init__(
        self, gbps: float, meter: Meter, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        assert gbps > 0, f"a link of {gbps} GB/s carries nothing"
        self._seconds_per_byte = 1 / (gbps * 1e9)
        self._meter = meter
        self._sleep = sleep
        self._free_at = 0.0

    def carry(self, nbytes: int, asked: float, copy: Callable[[], None]) -> None:
        """Run `copy`, which moves `nbytes`, and return when the link would be through.

        `asked` is the time of the meter's clock at which the transfer could have begun.
        """
        clock = self._meter.clock
        start = max(asked, self._free_at)
        self._meter.begin(start)
        copy()
        self._free_at = max(start + nbytes * self._seconds_per_byte, clock())
        while (left := self._free_at - clock()) > 0:
            self._sleep(left)
        self._meter.end(self._free_at, nbytes)
