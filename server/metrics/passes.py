"""Sums over all passes of one engine, and over its passes in the last seconds."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from cluster.pass_speeds import PassSpeeds
from engine.messages import PassStats
from server.schemas.status import PassTotals, RecentPasses

WINDOW_S = 10.0  # passes that ended within it are recent
LEAST_PASSES = 4  # a window of slow passes is as long as this many of the latest
DIGITS = 6  # after the point of seconds and rates


@dataclass(frozen=True)
class Sums:
    """The sums over some passes."""

    passes: int = 0
    tokens: int = 0
    link_bytes: int = 0
    seconds: float = 0.0  # of the passes themselves
    copy: float = 0.0  # seconds that passes waited for weights
    draft: float = 0.0  # seconds of drafting before passes
    host: float = 0.0  # seconds that passes waited for the host
    state_hits: int = 0
    state_evictions: int = 0

    def plus(self, stats: PassStats) -> "Sums":
        """Return the sums with one more pass."""
        return Sums(
            self.passes + 1,
            self.tokens + stats.accepted,
            self.link_bytes + stats.link_bytes,
            self.seconds + stats.pass_ms / 1e3,
            self.copy + stats.copy_stall_ms / 1e3,
            self.draft + stats.draft_ms / 1e3,
            self.host + stats.host_ms / 1e3,
            self.state_hits + (0 if stats.states is None else stats.states.hits),
            self.state_evictions + (0 if stats.states is None else stats.states.evictions),
        )

    def since(self, before: "Sums") -> "Sums":
        """Return the sums over the passes that came after `before` was read."""
        return Sums(
            self.passes - before.passes,
            self.tokens - before.tokens,
            self.link_bytes - before.link_bytes,
            self.seconds - before.seconds,
            self.copy - before.copy,
            self.draft - before.draft,
            self.host - before.host,
            self.state_hits - before.state_hits,
            self.state_evictions - before.state_evictions,
        )

    def totals(self) -> PassTotals:
        """Return the sums as the API answers them."""
        return {
            "seconds": round(self.seconds, DIGITS),
            "passes": self.passes,
            "tokens": self.tokens,
            "link_bytes": self.link_bytes,
            "stall_seconds": {
                "copy": round(self.copy, DIGITS),
                "draft": round(self.draft, DIGITS),
                "host": round(self.host, DIGITS),
            },
        }


@dataclass(frozen=True)
class _Pass:
    """A recent pass: when it began and ended, and the sums before it."""

    began: float
    ended: float
    before: Sums


class PassHistory:
    """The passes of one engine since its model was loaded.

    Args:
        clock: returns the present time in seconds; tests give their own.

    Attributes:
        sums: the sums over all passes.
        last: the figures of the latest pass; None before the first one.
        speeds: those of its passes, as peers are told of them.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.sums = Sums()
        self.last: PassStats | None = None
        self.speeds = PassSpeeds()
        self._clock = clock
        self._recent: deque[_Pass] = deque()

    def add(self, stats: PassStats) -> None:
        """Add a pass that has just ended."""
        now = self._clock()
        took = (stats.draft_ms + stats.pass_ms) / 1e3
        self._recent.append(_Pass(now - took, now, self.sums))
        self.sums = self.sums.plus(stats)
        self.last = stats
        self.speeds.add(stats)
        self._forget(now)

    def recent(self) -> RecentPasses:
        """Return the sums over recent passes, and their rates from the first one until now."""
        now = self._clock()
        self._forget(now)
        first = self._recent[0] if self._recent else _Pass(now, now, self.sums)
        sums, seconds = self.sums.since(first.before), now - first.began
        per_second = 1 / seconds if seconds > 0 else 0.0
        return {
            **sums.totals(),
            "seconds": round(seconds, DIGITS),
            "tokens_per_second": round(sums.tokens * per_second, DIGITS),
            "tokens_per_pass": round(sums.tokens / max(1, sums.passes), DIGITS),
            "link_gbps": round(sums.link_bytes * per_second / 1e9, DIGITS),
        }

    def _forget(self, now: float) -> None:
        """Forget the passes that are not recent any more."""
        if self._recent:
            latest = self._recent[-1]
            window = max(WINDOW_S, LEAST_PASSES * (latest.ended - latest.began))
            while self._recent and now - self._recent[0].ended > window:
                self._recent.popleft()
