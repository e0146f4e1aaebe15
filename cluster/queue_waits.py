"""How long requests wait for their first pass, by which the number of replicas is chosen."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

WINDOW_SECONDS = 60.0  # in which waits count


@dataclass(frozen=True)
class WaitFigures:
    """The waits of one replica in the last minute.

    Counts of replicas can be added, which percentiles cannot.

    Args:
        waits: requests that began, or that still wait for longer than the limit.
        long_waits: of them those that waited for longer than the limit.
        idle_seconds: the time since the replica had a request; 0 while it has one.
    """

    waits: int
    long_waits: int
    idle_seconds: float


class QueueWaits:
    """The waits of a replica's requests.

    Args:
        limit: seconds; a longer wait is a long one.
        clock: returns the present time in seconds; tests give their own.
    """

    def __init__(self, limit: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock = limit, clock
        self._arrived: dict[str, float] = {}  # requests that wait
        self._begun: set[str] = set()  # requests that run
        self._waits: deque[tuple[float, float]] = deque()  # when a wait ended, and its seconds
        self._idle_since = clock()

    def arrive(self, name: str) -> None:
        """Note a request that waits from now on."""
        self._arrived[name] = self._clock()

    def begin(self, name: str) -> None:
        """Note that a request takes part in a pass. Further calls change nothing."""
        arrived = self._arrived.pop(name, None)
        if arrived is not None:
            now = self._clock()
            self._waits.append((now, now - arrived))
            self._begun.add(name)

    def leave(self, name: str) -> None:
        """Note that a request has ended, or was given up."""
        self._arrived.pop(name, None)
        self._begun.discard(name)
        self._idle_since = self._clock()

    def figures(self) -> WaitFigures:
        """Return the figures of the last minute."""
        now = self._clock()
        while self._waits and self._waits[0][0] < now - WINDOW_SECONDS:
            self._waits.popleft()
        waiting = sum(now - arrived > self._limit for arrived in self._arrived.values())
        long = sum(seconds > self._limit for _, seconds in self._waits)
        is_idle = not self._arrived and not self._begun
        return WaitFigures(
            waits=len(self._waits) + waiting,
            long_waits=long + waiting,
            idle_seconds=now - self._idle_since if is_idle else 0.0,
        )
