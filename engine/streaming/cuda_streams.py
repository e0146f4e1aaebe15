"""CUDA streams, events and graphs: a side stream beside a pass, moments, and captured graphs.

CUDA's default priority is the lowest. So that the side stream has a lower priority than the pass,
all other work computes on a stream of high priority (`CudaDevice.use_compute_stream`).
"""

# mypy: disallow-untyped-calls=False
# torch.cuda declares no types for streams, events and graphs.

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from engine.streaming.device import Work
from engine.streaming.idle import Moment
from engine.streaming.side_stream import SideStream


class CudaMoment:
    """A moment in the work of a stream, by the device's clock."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._event = torch.cuda.Event(enable_timing=True)
        self._event.record(stream)

    def seconds_until(self, later: Moment) -> float | None:
        assert isinstance(later, CudaMoment), "moments of different devices"
        if not later._event.query():
            return None
        return float(self._event.elapsed_time(later._event)) / 1e3


class CudaSideStream(SideStream):
    """A side stream of the lowest priority.

    Call `during_pass` and `join` with the compute stream as the current stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device, priority=0)
        self._began = torch.cuda.Event()
        self._drafted = torch.cuda.Event()
        self._is_in_pass = False  # whether a pass runs
        self._has_drafted = False  # since the last join

    @contextmanager
    def during_pass(self) -> Iterator[None]:
        self._began.record(torch.cuda.current_stream(self._device))
        self._is_in_pass = True
        try:
            yield
        finally:
            self.join()

    @contextmanager
    def drafting(self) -> Iterator[None]:
        if not self._is_in_pass:
            yield
            return
        self._stream.wait_event(self._began)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            self._drafted.record(self._stream)
            self._has_drafted = True

    def join(self) -> None:
        self._is_in_pass = False
        if self._has_drafted:
            torch.cuda.current_stream(self._device).wait_event(self._drafted)
            self._has_drafted = False


class CudaCapture:
    """A function that captures work as a CUDA graph, on a stream of its own.

    All graphs share one memory pool. They can, because two graphs never run at the same time, and
    results are stored outside of the pool. The kernels of a graph keep the priority of the
    capturing stream, which is the lowest.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._results: dict[
            torch.Size, Tensor
        ] = {}  # each is read before the next replay writes it

    def __call__(self, work: Work) -> Work:
        """Run the work once, capture it, and return a function that replays it.

        Raises `RuntimeError` if the work cannot be captured.
        """
        caller = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(caller)
        graph = torch.cuda.CUDAGraph()
        # The outer block restores the caller's stream where a failed capture does not.
        with torch.cuda.stream(self._stream):
            # Libraries initialize themselves in their first call, which cannot be captured.
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
