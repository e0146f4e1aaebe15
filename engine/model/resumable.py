"""A forward that may be left at a layer border and gone on with later."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from torch import Tensor


class OutOfTime(Exception):
    """Raised to leave a forward at a layer border: the same `ResumableForward` continues it."""


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

    def go_on(self, until: float) -> None:
        """A new stretch begins."""
        self.until, self._reached = until, 0

    def run(self, layer: Callable[[], Tensor]) -> Tensor:
        """Run the next layer, or return what is known if it has run. Raises `OutOfTime`.

        It is called once by each layer, in order, in every stretch.
        """
        self._reached += 1
        if self._reached <= self.num_run:
            assert self.hidden is not None
            return self.hidden
        began = time.perf_counter()
        if began + self.layer_seconds > self.until:
            raise OutOfTime
        self.hidden = layer()
        self.num_run += 1
        self.layer_seconds = max(self.layer_seconds, time.perf_counter() - began)
        return self.hidden
