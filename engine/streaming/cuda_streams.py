"""CUDA streams that drafting uses: one to draft ahead on, beside a pass, and captured graphs.

A stream is "low" only beside a higher one, and CUDA's default priority is the lowest there is: so
the pass, and all else, computes on a stream of high priority (`CudaDevice.use_compute_stream`).
"""

# mypy: disallow-untyped-calls=False
# torch.cuda declares no types for streams, events and graphs.

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from engine.streaming.ahead_stream import Aside
from engine.streaming.device import Work


class AheadStream(Aside):
    """A CUDA stream of the lowest priority; `passing` and `join` are called on the pass's own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device, priority=0)
        self._began = torch.cuda.Event()
        self._drafted = torch.cuda.Event()
        self._aside = False  # whether a pass is being walked
        self._waiting = False  # whether something was drafted since the last join

    @contextmanager
    def passing(self) -> Iterator[None]:
        self._began.record(torch.cuda.current_stream(self._device))
        self._aside = True
        try:
            yield
        finally:
            self.join()

    @contextmanager
    def drafting(self) -> Iterator[None]:
        if not self._aside:
            yield
            return
        self._stream.wait_event(self._began)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            self._drafted.record(self._stream)
            self._waiting = True

    def join(self) -> None:
        self._aside = False
        if self._waiting:
            torch.cuda.current_stream(self._device).wait_event(self._drafted)
            self._waiting = False


class CudaCapture:
    """Captures work on a stream of its own; all graphs share one memory pool.

    They can share it because two graphs never run at a time, and the result of one is outside of
    the pool. Their kernels keep the priority of that stream, which is the lowest.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._results: dict[torch.Size, Tensor] = {}  # one is read before the next is written

    def __call__(self, work: Work) -> Work:
        """Run the work once, then record it. Raises `RuntimeError` for what cannot be captured."""
        caller = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(caller)
        graph = torch.cuda.CUDAGraph()
        # The outer block restores the caller's stream where a failed capture does not.
        with torch.cuda.stream(self._stream):
            # Libraries set themselves up in their first call, which cannot be captured.
            logits = work()
            result = self._results.setdefault(logits.shape, torch.empty_like(logits))
            # "thread_local": other threads may read weights and pin memory meanwhile.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                result.copy_(work())
        caller.wait_stream(self._stream)

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay
