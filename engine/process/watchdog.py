"""When to give up on an engine process, when to try again, and whose fault it was.

Pure rules: `now` is a monotonic time in seconds, given by the caller.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import replace
from statistics import median

from engine.messages import Generate

QUIET_S = 30.0  # silence that is always allowed while requests run
FIRST_PASS_QUIET_S = 300.0  # before the first pass is measured: cold caches, kernels compiled
QUIET_PASSES = 10
LATE_S = 5.0  # a look that comes so late was held up by what holds up the process too
RECENT_PASSES = 32
BACKOFF_FIRST_S = 0.5
BACKOFF_LONGEST_S = 30.0
BACKOFF_SERVED_S = 1.0  # the longest after a process that had completed a pass
GOOD_SERVICE_S = 60.0  # after which the backoff starts anew
MANY_RESTARTS = 3  # within `RESTARTS_S`: passes that were completed count no more
RESTARTS_S = 60.0
DEADLY_DEATHS = 2
SUSPICION_S = 600.0
MOST_SUSPECTS = 1024


class Watchdog:
    """Tells when a process that has requests to run was silent for too long.

    The bound is `max(30 s, ten typical passes)`, the typical pass being the median of the recent
    ones; until one was measured it is 300 s.
    """

    def __init__(self, now: float) -> None:
        self._heard_at = now
        self._passes_s: deque[float] = deque(maxlen=RECENT_PASSES)

    def heard(self, now: float) -> None:
        """A message came, or the first request went out: the silence starts anew."""
        self._heard_at = now

    def looked(self, now: float, due: float) -> None:
        """Somebody looks at what remains, who meant to at `due`.

        One who comes far too late was paused (a container, a virtual machine), and the process with
        it: the silence starts anew.
        """
        if now - due > LATE_S:
            self.heard(now)

    def passed(self, seconds: float) -> None:
        """A pass was completed in this time."""
        self._passes_s.append(seconds)

    @property
    def quiet_s(self) -> float:
        """How long the process may be silent."""
        if not self._passes_s:
            return FIRST_PASS_QUIET_S
        return max(QUIET_S, QUIET_PASSES * median(self._passes_s))

    def remaining(self, now: float) -> float:
        """Seconds of silence left; at 0 or below the process counts as stalled."""
        return self._heard_at + self.quiet_s - now


class Backoff:
    """How long to wait before the process is started again: 0.5 s, doubling up to 30 s.

    At most 1 s after a process that had completed a pass, unless this is the third restart within
    a minute.
    """

    def __init__(self) -> None:
        self._next_s = BACKOFF_FIRST_S
        self._restarts: deque[float] = deque(maxlen=MANY_RESTARTS)

    def delay(self, now: float, served_s: float, *, has_served: bool) -> float:
        """Return the seconds to wait after a process that was ready for `served_s` seconds.

        Args:
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


class Suspects:
    """Requests that were running when the process died, by fingerprint.

    One that saw two deaths is refused until 600 s after the last, so that it costs the service at
    most one restart in that time, and so that a bystander is not refused for ever.
    """

    def __init__(self) -> None:
        self._deaths: OrderedDict[Hashable, tuple[int, float]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._deaths)

    def saw_death(self, fingerprint: Hashable, now: float) -> None:
        deaths, _ = self._deaths.pop(fingerprint, (0, now))
        self._deaths[fingerprint] = (deaths + 1, now)
        if len(self._deaths) > MOST_SUSPECTS:
            self._deaths.popitem(last=False)

    def served(self, fingerprint: Hashable) -> None:
        """It was answered to the end: innocent."""
        self._deaths.pop(fingerprint, None)

    def refuses(self, fingerprint: Hashable, now: float) -> bool:
        deaths, last = self._deaths.get(fingerprint, (0, now))
        return deaths >= DEADLY_DEATHS and now - last < SUSPICION_S


def fingerprint(message: Generate) -> Hashable:
    """The same for a repeated request: the front end draws a new seed where a client has none."""
    return hash((message.prompt, replace(message.params, seed=0), message.n))
