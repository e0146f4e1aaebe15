"""KV pages that wait in host memory, and the copies that take them there and back.

A page is one contiguous block there, [2 L, PAGE x kv heads x head dim]. Copies get tickets. Waiting
for one is waiting for all before it; ticket 0 is always done.
"""

from collections.abc import Sequence

from torch import Tensor

from engine.streaming.pinned import Pin, Slab

STAGING_BYTES = 32 * 2**20  # of a device's own memory; one page if that is larger


class PageStore:
    """Host pages 0 to n - 1; the cache decides what they hold. Copies are done on return.

    A strided copy a page runs at memory speed (10 GB/s for 7 MB pages); gathering many pages by
    index goes through a temporary and took seven times as long.
    """

    def __init__(self, pool: Tensor, num_places: int, pin: Pin) -> None:
        """Make a store for `pool`, [2 L, pages, values of a page and layer]."""
        self._pool = pool
        nbytes = num_places * page_bytes(pool)
        self._slab = Slab(nbytes, "idle KV pages")
        if not (num_places and self._slab.pin(pin)):
            self._slab.memory.zero_()  # touched: memory that was planned is there
        values = self._slab.memory[:nbytes].view(pool.dtype)
        self._places = values.view(num_places, pool.shape[0], pool.shape[2])

    def save(self, pages: Sequence[int], places: Sequence[int]) -> int:
        """Copy pages of the pool to host places, as launched so far on the current stream.

        Returns the ticket after which the pages may be written.
        """
        for page, place in zip(pages, places, strict=True):
            self._places[place].copy_(self._pool[:, page])
        return 0

    def load(self, places: Sequence[int], pages: Sequence[int]) -> int:
        """Copy host places to pages of the pool, after what was launched on the current stream.

        Returns the ticket after which the pages may be read. The places may be saved to at once.
        """
        for place, page in zip(places, pages, strict=True):
            self._pool[:, page].copy_(self._places[place])
        return 0

    def done(self, ticket: int) -> bool:
        """Return whether the copy is over, so that `wait` costs nothing."""
        return True

    def wait(self, ticket: int) -> None:
        """Make what is launched from here on, on the current stream, come after the copy."""

    def close(self) -> None:
        """Wait for the copies, unpin the memory. May be called again."""
        self._slab.unpin()


def page_bytes(pool: Tensor) -> int:
    """Return the bytes of one page over all layers."""
    return pool.shape[0] * pool.shape[2] * pool.itemsize


def num_staging_pages(page_bytes: int, num_places: int) -> int:
    """Return how many staging pages a store takes of the device's own memory beside the pool."""
    return min(max(STAGING_BYTES // page_bytes, 1), num_places)
