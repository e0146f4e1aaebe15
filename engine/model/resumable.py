"""A forward pass that can be interrupted between two layers and resumed later."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any

from torch import Tensor


class OutOfTime(Exception):
    """The exception that interrupts a forward pass; its `ResumableForward` can resume it."""


@dataclass
class ResumableForward:
    """The state of a forward pass that may run in several pieces. It is part of the batch.

    The model's own forward is called once for each piece. It computes everything before its layers
    again. Layers that have run already return the stored hidden states instead of running.
    """

    deadline: float = inf  # time.perf_counter before which the next layer must end
    max_layers: float = inf  # the forward is interrupted after this many layers
    num_run: int = 0  # layers that have run
    hidden: Tensor | None = None  # the output of the last layer that has run
    layer_seconds: float = 0.0  # of the slowest layer so far
    # What layers that have run leave for later ones that share their keys and values, by kind.
    shared_kv: dict[str, Any] = field(default_factory=dict)
    _num_reached: int = 0  # layers called in the current piece

    def resume(self, deadline: float) -> None:
        """Begin a new piece, whose layers must end before `deadline` (time.perf_counter)."""
        self.deadline, self._num_reached = deadline, 0

    def run(self, layer: Callable[[], Tensor]) -> Tensor:
        """Run a layer and return its output, or return the stored output if it has run before.

        Each layer calls this once in every piece, in order. Raises `OutOfTime` if the layer would
        not end before the deadline, judged by the slowest layer so far, or is one too many.
        """
        self._num_reached += 1
        if self._num_reached <= self.num_run:
            assert self.hidden is not None
            return self.hidden
        began = time.perf_counter()
        if self.num_run >= self.max_layers or began + self.layer_seconds > self.deadline:
            raise OutOfTime
        self.hidden = layer()
        self.num_run += 1
        self.layer_seconds = max(self.layer_seconds, time.perf_counter() - began)
        return self.hidden
