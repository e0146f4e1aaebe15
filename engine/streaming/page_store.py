"""A store of idle KV pages in host memory, and the copies to it and from it.

In the store a page is one contiguous block, [2 L, PAGE x kv heads x head dim]. Copies have tickets
in ascending order. Waiting for a ticket includes all tickets before it; ticket 0 is always done.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.streaming.pinned import HostBuffer, Pin

STAGING_BYTES = 32 * 2**20  # of the device's own memory; one page if that is larger


class PageStore:
    """A store of host pages 0 to n - 1. The cache decides what they hold.

    In this class copies are done when the methods return. Each page is one strided copy, which runs
    at memory speed (10 GB/s for 7 MB pages). Gathering many pages by index goes through a temporary
    and took seven times as long.
    """

    def __init__(self, pool: Tensor, num_places: int, pin: Pin) -> None:
        """Allocate a store.

        Args:
            pool: the KV cache's memory, [2 L, pages, values of a page and layer].
            num_places: the number of host pages.
            pin: the device's function that pins memory.
        """
        self._pool = pool
        nbytes = num_places * page_bytes(pool)
        self._buffer = HostBuffer(nbytes, "idle KV pages")
        if not (num_places and self._buffer.pin(pin)):
            self._buffer.memory.zero_()  # touched, so that the planned memory is really allocated
        values = self._buffer.memory[:nbytes].view(pool.dtype)
        self._places = values.view(num_places, pool.shape[0], pool.shape[2])

    def save(self, pages: Sequence[int], places: Sequence[int]) -> int:
        """Copy pages of the pool to host pages, after work launched so far on the current stream.

        Return the ticket after which the pages of the pool may be written.
        """
        for page, place in zip(pages, places, strict=True):
            self._places[place].copy_(self._pool[:, page])
        return 0

    def load(self, places: Sequence[int], pages: Sequence[int]) -> int:
        """Copy host pages to pages of the pool, after work launched so far on the current stream.

        Return the ticket after which the pages of the pool may be read. The host pages may be saved
        to without waiting.
        """
        for place, page in zip(places, pages, strict=True):
            self._pool[:, page].copy_(self._places[place])
        return 0

    def copy_out(self, place: int) -> Tensor:
        """Return a copy of a host page, uint8, when the copies to it have ended."""
        return self._places[place].clone().view(-1).view(torch.uint8)

    def done(self, ticket: int) -> bool:
        """Return whether the copies up to a ticket are done, so that `wait` costs nothing."""
        return True

    def wait(self, ticket: int) -> None:
        """Make work launched later on the current stream run after the copies up to a ticket."""

    def close(self) -> None:
        """Wait for the copies and unpin the memory. It may be called again."""
        self._buffer.unpin()


def page_bytes(pool: Tensor) -> int:
    """Return the bytes of one page over all layers."""
    return pool.shape[0] * pool.shape[2] * pool.itemsize


def num_staging_pages(page_bytes: int, num_places: int) -> int:
    """Return how many staging pages a store allocates in the device's own memory."""
    return min(max(STAGING_BYTES // page_bytes, 1), num_places)
