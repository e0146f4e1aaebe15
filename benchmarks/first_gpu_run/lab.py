"""The device that the stages measure, with sizes, streams and clocks that also work on a CPU.

On a CPU everything is tiny and runs in order, so times mean nothing: it is a dry run.
"""

# mypy: disallow-untyped-calls=False
# torch.cuda declares no types for streams, events and graphs.

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks.row_bits import SHAPES

MIB = 1 << 20
Work = Callable[[], Any]
T = TypeVar("T")

# The weights of a dry run, (outputs, inputs).
TINY_PRODUCTS = {"square": (64, 128), "wide": (192, 128), "down": (64, 256)}
CACHE_BYTES = 192 * MIB  # weights of this size together do not stay in a device's cache


class CannotRun(Exception):
    """A stage cannot run on this machine; the message says why."""


class OutOfTime(Exception):
    """The limit of a stage is near: it ends, and what it has measured is kept."""


class _InOrder:
    """A stream or an event of a CPU, where all work is done when a call returns."""

    def synchronize(self) -> None: ...
    def record(self, *_: Any) -> None: ...
    def wait_event(self, *_: Any) -> None: ...
    def wait_stream(self, *_: Any) -> None: ...
    def query(self) -> bool:
        return True


class Lab:
    """A device, and what stages need to measure it.

    Args:
        device: "cpu" for a dry run, or the name of a GPU.
        kept: a folder for checkpoints and caches, which later runs use again.
        folder: where results are written.
        layers: those of the 7 B model that the engine serves.
        cap_bytes: the device memory that the engine may use.
        part: the stage's `part`.
        deadline: when the stage has to end, by `time.monotonic`.
    """

    def __init__(
        self,
        device: str,
        *,
        kept: Path,
        folder: Path,
        layers: int,
        cap_bytes: int,
        part: str,
        deadline: float,
    ) -> None:
        self.device = torch.device(device)
        self.is_dry = self.device.type == "cpu"
        self.kept = kept
        self.folder = folder
        self.layers = layers
        self.cap_bytes = cap_bytes
        self.part = part
        self.deadline = deadline
        self.products = TINY_PRODUCTS if self.is_dry else SHAPES

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def check(self) -> None:
        """Raise `OutOfTime` if the stage has to end."""
        if self.seconds_left < 0:
            raise OutOfTime

    def require_device(self, why: str) -> None:
        """Raise `CannotRun` in a dry run, with the reason."""
        if self.is_dry:
            raise CannotRun(why)

    def choose(self, real: T, tiny: T) -> T:
        """Return the first value on a GPU, and the second one in a dry run."""
        return tiny if self.is_dry else real

    def stream(self, priority: int = 0) -> Any:
        return _InOrder() if self.is_dry else torch.cuda.Stream(self.device, priority=priority)

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """Enter a block whose work runs on a stream of `stream()`."""
        return nullcontext() if self.is_dry else torch.cuda.stream(stream)

    def event(self, *, timed: bool = False) -> Any:
        return _InOrder() if self.is_dry else torch.cuda.Event(enable_timing=timed)

    def synchronize(self) -> None:
        if not self.is_dry:
            torch.cuda.synchronize(self.device)

    def give_back_freed(self) -> None:
        if not self.is_dry:
            torch.cuda.empty_cache()

    def random(
        self, *shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0
    ) -> Tensor:
        """Return normally distributed numbers on the device."""
        return torch.randn(shape, device=self.device, dtype=dtype).mul_(scale)

    def pinned(self, nbytes: int) -> Tensor:
        """Return written host memory, pinned if there is a GPU, [nbytes] uint8."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=not self.is_dry).fill_(1)

    def allocate(self, nbytes: int) -> Tensor:
        """Return device memory, [nbytes] uint8."""
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def wall_seconds(self, work: Work, times: int = 10) -> float:
        """Return the median seconds of a call and of the wait for the device."""
        taken = []
        for _ in range(1 + self.choose(times + 1, 1)):
            self.check()
            self.synchronize()
            began = time.perf_counter()
            work()
            self.synchronize()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken[1:])

    def device_seconds(self, works: Sequence[Work], times: int = 5) -> float:
        """Return the median seconds of one of the works on the device, without launches.

        The works are replayed from one graph. Give several that read different memory, so that no
        cache holds what they read.
        """
        self.check()
        if self.is_dry:
            return self.wall_seconds(lambda: [work() for work in works]) / len(works)
        replay = self.capture(works)
        return statistics.median(self.event_seconds(replay) for _ in range(times)) / len(works)

    def event_seconds(self, work: Work) -> float:
        """Return the seconds between the work's start and end on the current stream."""
        if self.is_dry:
            return self.wall_seconds(work)
        begin, end = self.event(timed=True), self.event(timed=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def capture(self, works: Sequence[Work]) -> Work:
        """Return a function that replays the works from one CUDA graph."""
        if self.is_dry:
            return lambda: [work() for work in works]
        side = self._capturing
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for work in works:
                work()
        self.synchronize()
        graph = torch.cuda.CUDAGraph()
        # `torch.cuda.graph` would also collect garbage and empty the cache, hundreds of times.
        with torch.cuda.stream(side):
            graph.capture_begin()
            try:
                kept = [work() for work in works]
            finally:
                graph.capture_end()
        self.synchronize()

        def replay(_: Any = kept) -> None:  # the results' memory lives as long as this function
            graph.replay()

        replay()
        return replay

    def peak_bytes(self, work: Work) -> int | None:
        """Return the most device memory that a call allocates beside what exists; None on a CPU."""
        if self.is_dry:
            return None
        self.synchronize()
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        self.synchronize()
        return int(torch.cuda.max_memory_allocated(self.device)) - before

    def link_bandwidth(self) -> float:
        """Return the bytes per second of large copies from pinned RAM to the device."""
        nbytes = self.choose(256 * MIB, MIB)
        source, target = self.pinned(nbytes), self.allocate(nbytes)
        return nbytes / self.wall_seconds(lambda: target.copy_(source, non_blocking=True))

    def memory_bandwidth(self) -> float:
        """Return the bytes per second that a copy within device memory reads and writes."""
        nbytes = self.choose(1 << 30, MIB)
        source, target = self.allocate(nbytes).fill_(1), self.allocate(nbytes)
        return 2 * nbytes / self.device_seconds([lambda: target.copy_(source)])

    def copies(self, nbytes: int) -> int:
        """Return how many copies of a weight do not fit a cache together."""
        return self.choose(max(2, min(12, -(-CACHE_BYTES // nbytes))), 1)

    @cached_property
    def _capturing(self) -> Any:
        return torch.cuda.Stream(self.device)  # one for all graphs: cuBLAS keeps memory for each


def differing_rows(one: Tensor, other: Tensor) -> Tensor:
    """Return, on the device, how many rows of two tensors of one shape differ in any bit."""
    kind = {2: torch.int16, 4: torch.int32}[one.element_size()]
    return (one.contiguous().view(kind) != other.contiguous().view(kind)).any(-1).sum()


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Return the norm of the error divided by the norm of the exact values."""
    exact = exact.double()
    return float((found.double() - exact).norm() / exact.norm())


def us(seconds: float) -> float:
    return round(seconds * 1e6, 2)


def ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


def gbps(nbytes: float, seconds: float) -> float:
    return round(nbytes / seconds / 1e9, 2)
