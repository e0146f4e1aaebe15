"""The streams that drafting ahead and the pass run on, beside each other.

Three orders are kept. What is drafted ahead sees prefixes and pages as they were when the pass
began (`passing`), and waits for no kernel of the pass. What touches pages, prefixes or scratch
after the pass (keep, accept, trim, close, the next draft) waits for what was drafted ahead
(`join`). And memory that one stream gave back to its allocator, and the other one still read, is
written again only behind such a border.

A stream is "low" only beside a higher one, and CUDA's default priority is the lowest there is: so
the pass, and all else, computes on a stream of high priority (`use_compute_stream`).
"""

# mypy: disallow-untyped-calls=False
# torch.cuda declares no types for streams and events.

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch


class Aside(Protocol):
    """Where drafting ahead runs."""

    def passing(self) -> AbstractContextManager[None]:
        """The block walks a pass, and what is drafted in it runs aside; joined when it is left."""

    def drafting(self) -> AbstractContextManager[None]:
        """The block drafts: aside within a pass, else on the current stream."""

    def join(self) -> None:
        """What is launched from here on comes after all that was drafted aside."""


class InTurn:
    """A device without streams: everything happens in the order of its calls."""

    def passing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def drafting(self) -> AbstractContextManager[None]:
        return nullcontext()

    def join(self) -> None:
        pass


class AheadStream:
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


def open_aside(device: torch.device) -> Aside:
    """Where to draft ahead on this device."""
    return AheadStream(device) if device.type == "cuda" else InTurn()


def use_compute_stream(device: torch.device) -> None:
    """From now on this thread computes on a stream of high priority; on a CPU nothing changes."""
    if device.type != "cuda":
        return
    before = torch.cuda.current_stream(device)
    if before.priority < 0:
        return  # the thread has one
    stream = torch.cuda.Stream(device, priority=-1)
    stream.wait_stream(before)
    torch.cuda.set_stream(stream)
