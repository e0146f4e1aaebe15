"""The number of replicas: more where requests wait, fewer where replicas are idle. Pure."""

from collections.abc import Collection
from dataclasses import dataclass

from cluster.queue_waits import WaitFigures

LONG_SHARE = 0.1  # of requests that wait for longer than the limit: the 90th percentile is above it
LEAST_WAITS = 4  # of fewer requests, a percentile says nothing


@dataclass(frozen=True)
class Scaling:
    """How many replicas there are.

    Args:
        least, most: replicas; equal ones switch scaling off.
        wait_seconds: the 90th percentile of the queue wait, above which a replica is added.
        idle_seconds: the time without a request, after which a replica is taken away.
    """

    least: int = 1
    most: int = 1
    wait_seconds: float = 2.0
    idle_seconds: float = 600.0

    def wanted(self, target: int, replicas: Collection[WaitFigures]) -> int:
        """Return how many replicas there should be.

        Args:
            target: how many there should be so far. Nothing changes while others are loading.
            replicas: the figures of those that run.
        """
        wanted = target
        if len(replicas) == target:
            waits = sum(own.waits for own in replicas)
            long_waits = sum(own.long_waits for own in replicas)
            if waits >= LEAST_WAITS and long_waits > LONG_SHARE * waits:
                wanted = target + 1
            elif any(own.idle_seconds >= self.idle_seconds for own in replicas):
                wanted = target - 1
        return min(max(wanted, self.least), self.most)
