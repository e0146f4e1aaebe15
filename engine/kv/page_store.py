"""Host memory for KV pages, and the copies between it and the pool.

On the host a page is one contiguous block, [2 L, PAGE x kv heads x head dim], which takes one large
copy. In the pool it is 2 L stretches far apart, so on CUDA it passes through a contiguous staging
page on the device. Once the staging page is filled, the pool's page may be written again, while its
bytes are still on the link.

Each copy gets a ticket. Waiting for one is waiting for all before it; ticket 0 is always done.
"""

# mypy: disallow-untyped-calls=False
# torch.cuda declares no types for streams and events.

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.streaming.pinned import Slab

logger = logging.getLogger(__name__)

STAGING_BYTES = 32 * 2**20  # of the device; one page if that is larger
PURPOSE = "idle KV pages"


class PageStore(Protocol):
    """Places 0 to n - 1 in host memory. `HostTier` decides which page goes to which place."""

    def save(self, pages: Sequence[int], places: Sequence[int]) -> int:
        """Copy pages of the pool to places. Return the ticket after which they may be written.

        Reads what was launched before on the current stream.
        """

    def load(self, places: Sequence[int], pages: Sequence[int]) -> int:
        """Copy places to pages of the pool. Return the ticket after which they may be read.

        The places may be saved to at once. Waits for what was launched before on the current
        stream and may still use the pages.
        """

    def done(self, ticket: int) -> bool:
        """Return True if `wait` would not wait."""

    def wait(self, ticket: int) -> None:
        """Let what is launched from here on, on the current stream, come after the copy."""

    def close(self) -> None:
        """Wait for the copies and unpin the memory. May be called again."""


def open_store(pool: Tensor, num_places: int) -> PageStore:
    """Return a store for `pool`, [2 L, pages, values of a page and layer], on the pool's device.

    Raises `ModelError` when memory is refused.
    """
    if pool.device.type == "cuda" and num_places:
        return CudaPageStore(pool, num_places, pool.device)
    return HostPageStore(pool, num_places)


def num_staging_pages(page_bytes: int, num_places: int) -> int:
    """Return how many pages of device memory a CUDA store takes beside the pool."""
    return min(max(STAGING_BYTES // page_bytes, 1), num_places)


class HostPageStore:
    """`device: cpu`: plain copies, done when the call returns.

    A strided copy a page runs at memory speed (10 GB/s for 7 MB pages); gathering many pages by
    index goes through a temporary and took seven times as long.
    """

    def __init__(self, pool: Tensor, num_places: int) -> None:
        self._pool = pool
        self._places = _places(Slab(num_places * _page_bytes(pool), PURPOSE), pool, num_places)
        self._places.zero_()  # touched: memory that was planned is there

    def save(self, pages: Sequence[int], places: Sequence[int]) -> int:
        for page, place in zip(pages, places, strict=True):
            self._places[place].copy_(self._pool[:, page])
        return 0

    def load(self, places: Sequence[int], pages: Sequence[int]) -> int:
        for place, page in zip(places, pages, strict=True):
            self._pool[:, page].copy_(self._places[place])
        return 0

    def done(self, ticket: int) -> bool:
        return True

    def wait(self, ticket: int) -> None:
        pass

    def close(self) -> None:
        pass


class CudaPageStore:
    """Pinned host memory; copies on one stream of their own, beside the weights'.

    One stream orders all copies among themselves: a staging page or a place that the next copy
    writes has been read by the last. So the host never waits, and the compute stream only where
    it touches a page that a copy has not let go (`wait`).
    """

    def __init__(self, pool: Tensor, num_places: int, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self._pool = pool
        self._slab = Slab(num_places * _page_bytes(pool), PURPOSE)
        if not self._slab.pin(device):
            self._slab.memory.zero_()
            logger.warning(
                "The system refused to pin %.0f MiB of RAM for idle KV pages: they travel more "
                "slowly. Raise the locked-memory limit (ulimit -l, or the container's).",
                self._slab.memory.nbytes / 2**20,
            )
        self._places = _places(self._slab, pool, num_places)
        pages = num_staging_pages(_page_bytes(pool), num_places)
        try:
            with torch.inference_mode(False):
                self._staging = torch.empty(
                    pages, pool.shape[0], pool.shape[2], dtype=pool.dtype, device=device
                )
        except torch.OutOfMemoryError as error:
            self.close()
            raise ModelError(
                f"{device} has no room for {pages} staging pages of KV ({error}). "
                "Lower memory.device."
            ) from error
        self._issued = 0
        self._ended = 0
        self._events: deque[tuple[int, torch.cuda.Event]] = deque()  # of tickets not ended

    def save(self, pages: Sequence[int], places: Sequence[int]) -> int:
        self._follow_compute()
        with torch.cuda.stream(self.stream):
            for batch in self._batches(pages, places):
                for page, _, staged in batch:
                    staged.copy_(self._pool[:, page], non_blocking=True)
                ticket = self._ticket()  # the last batch's counts
                for _, place, staged in batch:
                    self._places[place].copy_(staged, non_blocking=True)
        return ticket

    def load(self, places: Sequence[int], pages: Sequence[int]) -> int:
        self._follow_compute()
        with torch.cuda.stream(self.stream):
            for batch in self._batches(pages, places):
                for _, place, staged in batch:
                    staged.copy_(self._places[place], non_blocking=True)
                for page, _, staged in batch:
                    self._pool[:, page].copy_(staged, non_blocking=True)
            return self._ticket()

    def done(self, ticket: int) -> bool:
        while self._events and self._events[0][1].query():
            self._ended, _ = self._events.popleft()
        return ticket <= self._ended

    def wait(self, ticket: int) -> None:
        if not self.done(ticket):
            event = next(event for number, event in self._events if number >= ticket)
            torch.cuda.current_stream(self.device).wait_event(event)

    def close(self) -> None:
        self.stream.synchronize()
        self._slab.unpin(self.device)

    def _follow_compute(self) -> None:
        """Let later copies come after what the current stream has been given so far."""
        launched = torch.cuda.Event()
        launched.record(torch.cuda.current_stream(self.device))
        self.stream.wait_event(launched)

    def _ticket(self) -> int:
        event = torch.cuda.Event()
        event.record(self.stream)
        self._issued += 1
        self._events.append((self._issued, event))
        return self._issued

    def _batches(
        self, pages: Sequence[int], places: Sequence[int]
    ) -> Iterator[list[tuple[int, int, Tensor]]]:
        """Yield page, place and staging page, as many at a time as there are staging pages."""
        pairs = list(zip(pages, places, strict=True))
        for first in range(0, len(pairs), len(self._staging)):
            batch = pairs[first : first + len(self._staging)]
            yield [(*pair, staged) for pair, staged in zip(batch, self._staging, strict=False)]


def _page_bytes(pool: Tensor) -> int:
    return pool.shape[0] * pool.shape[2] * pool.itemsize


def _places(slab: Slab, pool: Tensor, count: int) -> Tensor:
    """Return the slab as [count, 2 L, values of a page and layer]."""
    memory = slab.memory[: count * _page_bytes(pool)]
    return memory.view(pool.dtype).view(count, pool.shape[0], pool.shape[2])
