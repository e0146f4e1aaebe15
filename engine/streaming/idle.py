"""How long the device computes between streamed units, and how long it waits for them.

The thread that computes only launches work on some devices, and the time of launching says little
about the time of computing. So times are those between moments in the launched work, which are
known when the device has reached the later one.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from engine.streaming.meter import MovingAverage


class Moment(Protocol):
    """A moment in the work that a thread launches."""

    def seconds_until(self, later: "Moment") -> float | None:
        """Return the seconds until a later moment of the same device; None if it is not reached."""


class HostMoment:
    """A moment of a device that has computed all work when the call returns."""

    def __init__(self) -> None:
        self._at = time.perf_counter()

    def seconds_until(self, later: Moment) -> float:
        assert isinstance(later, HostMoment), "moments of different devices"
        return later._at - self._at


@dataclass(frozen=True)
class _Wait:
    """A wait for a unit, or the computing before it."""

    first: Moment
    last: Moment
    is_stall: bool
    used_seconds: float = 0.0  # of other work while the unit was waited for


class IdleTimes:
    """The times of computing and of waiting in the passes of one weight stream."""

    def __init__(self, moment: Callable[[], Moment]) -> None:
        """Begin without any times.

        Args:
            moment: returns the present moment in the work that the calling thread launches.
        """
        self._moment = moment
        self._got_unit: Moment | None = None  # when the caller got the last unit of this pass
        self._unknown: deque[_Wait] = deque()  # that the device had not ended when last asked
        self._compute = MovingAverage()
        self._stall_seconds = 0.0

    @property
    def compute_seconds(self) -> float | None:
        """The usual seconds of computing from one streamed unit to the next; None at first."""
        self._settle()
        return self._compute.value

    @property
    def stall_seconds(self) -> float:
        """The seconds since the last reset in which computing waited for a unit."""
        self._settle()
        return self._stall_seconds

    def request(self, *, in_pass: bool) -> Moment:
        """Note that the next unit is requested, and return this moment.

        Args:
            in_pass: whether the unit before it belongs to the same pass.
        """
        now = self._moment()
        if self._got_unit is not None and in_pass:
            self._unknown.append(_Wait(self._got_unit, now, is_stall=False))
        self._got_unit = None
        return now

    def get(self) -> Moment:
        """Note that the requested unit can be used, and return this moment."""
        self._got_unit = self._moment()
        return self._got_unit

    def add_stall(self, requested: Moment, got: Moment, used_seconds: float) -> None:
        """Count the time between two moments as waiting, but for `used_seconds` of other work."""
        self._unknown.append(_Wait(requested, got, is_stall=True, used_seconds=used_seconds))

    def end_pass(self) -> None:
        """Forget the last unit: the next one does not follow it."""
        self._got_unit = None

    def reset_stall(self) -> None:
        """Count the time of waiting from zero again."""
        self._settle()
        self._unknown.clear()
        self._stall_seconds = 0.0

    def forget_compute(self) -> None:
        """Forget how long computing takes."""
        self._unknown.clear()
        self._compute = MovingAverage()

    def _settle(self) -> None:
        """Add the times that the device knows by now."""
        while self._unknown:
            wait = self._unknown[0]
            seconds = wait.first.seconds_until(wait.last)
            if seconds is None:
                return
            self._unknown.popleft()
            if wait.is_stall:
                self._stall_seconds += max(seconds - wait.used_seconds, 0.0)
            else:
                self._compute.observe(seconds)
