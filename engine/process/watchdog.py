"""The rules of supervision: when a process is stalled, and when it is restarted.

The rules do no I/O: callers give them the monotonic time `now` in seconds.
"""

from collections import deque
from statistics import median

MIN_SILENCE_S = 30.0  # silence that is always allowed while requests run
FIRST_PASS_SILENCE_S = 300.0  # before the first pass is measured: cold caches, compiled kernels
LOAD_SILENCE_S = 300.0  # while a process loads: some of its steps report nothing
SILENT_PASSES = 10  # typical passes during which the process may be silent
LATE_S = 5.0  # a check that is later than this was paused together with the process
RECENT_PASSES = 32
BACKOFF_FIRST_S = 0.5
BACKOFF_LONGEST_S = 30.0
BACKOFF_SERVED_S = 1.0  # the longest wait after a process that had completed a pass
GOOD_SERVICE_S = 60.0  # time of service after which the backoff starts anew
MANY_RESTARTS = 3  # within `RESTARTS_S`: then `BACKOFF_SERVED_S` does not apply
RESTARTS_S = 60.0


class Watchdog:
    """A timer that shows when a process with running requests was silent for too long.

    The limit is `max(30 s, ten typical passes)`, where a typical pass takes the median of the
    recent ones. Until the first pass is measured it is 300 s, and during the load too.
    """

    def __init__(self, now: float, *, is_loading: bool = False) -> None:
        self._silent_since = now
        self._is_loading = is_loading
        self._passes_s: deque[float] = deque(maxlen=RECENT_PASSES)

    def restart_timer(self, now: float) -> None:
        """Start the timer anew, because a message came or the first request was sent."""
        self._silent_since = now

    def restart_timer_if_late(self, now: float, due: float) -> None:
        """Start the timer anew if a check is far later than `due`.

        In this case the machine (a container, a virtual machine) was paused, and the process with
        it.
        """
        if now - due > LATE_S:
            self.restart_timer(now)

    def end_load(self) -> None:
        """Note that the process has loaded its model."""
        self._is_loading = False

    def record_pass(self, seconds: float) -> None:
        """Record the duration of a finished pass."""
        self._passes_s.append(seconds)

    @property
    def max_silence_s(self) -> float:
        """The seconds for which the process may be silent."""
        if self._is_loading:
            return LOAD_SILENCE_S
        if not self._passes_s:
            return FIRST_PASS_SILENCE_S
        return max(MIN_SILENCE_S, SILENT_PASSES * median(self._passes_s))

    def remaining_s(self, now: float) -> float:
        """Return the seconds of silence left; at 0 or below the process is stalled."""
        return self._silent_since + self.max_silence_s - now


class Backoff:
    """The waiting time before each restart of the process: 0.5 s, doubling up to 30 s.

    It is at most 1 s after a process that had completed a pass, unless this is the third restart
    within a minute.
    """

    def __init__(self) -> None:
        self._next_s = BACKOFF_FIRST_S
        self._restarts: deque[float] = deque(maxlen=MANY_RESTARTS)

    def next_delay(self, now: float, served_s: float, *, has_served: bool) -> float:
        """Record a restart, and return the seconds to wait before it.

        Args:
            served_s: the seconds for which the ended process was ready.
            has_served: whether it had completed a pass.
        """
        self._restarts.append(now)
        is_full = len(self._restarts) == MANY_RESTARTS
        are_many = is_full and now - self._restarts[0] < RESTARTS_S
        if served_s >= GOOD_SERVICE_S:
            self._next_s = BACKOFF_FIRST_S
        elif has_served and not are_many:
            self._next_s = min(self._next_s, BACKOFF_SERVED_S)
        delay = self._next_s
        self._next_s = min(2 * delay, BACKOFF_LONGEST_S)
        return delay
