"""A forward that may be left at a layer border and gone on with later."""

import time
from dataclasses import dataclass
from math import inf

from torch import Tensor


class OutOfTime(Exception):
    """The forward was left; called again with the same `ResumableForward`, it goes on there."""


@dataclass
class ResumableForward:
    """How far a forward has come. It travels with the batch; layers tell it of themselves.

    The model's own forward is called again for each stretch: what comes before its layers is
    computed anew, layers that have run give what is behind the last of them.
    """

    until: float = inf  # time.perf_counter; the next layer must end before
    num_run: int = 0
    hidden: Tensor | None = None  # behind the layers that have run
    layer_seconds: float = 0.0  # of the slowest of them
    _reached: int = 0  # by the present stretch
    _entered: float = 0.0

    def go_on(self, until: float) -> None:
        """A new stretch begins."""
        self.until, self._reached = until, 0

    def has_run(self) -> bool:
        """Whether the layer that asks has run; called once by each, in order."""
        self._reached += 1
        return self._reached <= self.num_run

    def enter(self) -> None:
        """A layer is about to run. Raises `OutOfTime`."""
        self._entered = time.perf_counter()
        if self._entered + self.layer_seconds > self.until:
            raise OutOfTime

    def leave(self, hidden: Tensor) -> None:
        """The layer has run."""
        self.hidden = hidden
        self.num_run += 1
        self.layer_seconds = max(self.layer_seconds, time.perf_counter() - self._entered)
