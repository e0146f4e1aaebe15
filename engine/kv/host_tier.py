"""Idle KV pages in host memory, and the copies between host and device pages.

Pages of the device have the numbers 0 to n - 1, and pages of the host have the numbers from n on.
The host keeps the most recently used pages: `make_room` drops the least recently stored or touched
ones first. `hold` protects a page whose content is about to be loaded from being dropped.
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice

from torch import Tensor

from engine.kv.page_pool import PagePool


class HostTier:
    """The host pages of a KV cache, in the order in which they are dropped.

    Each copy has a ticket, a number that can be waited for (`engine/streaming/page_store.py`). For
    each device page the ticket of the last copy that reads or writes it is stored until `claim`, so
    that the page is not used before that copy has ended.
    """

    def __init__(self, pool: PagePool, num_pages: int) -> None:
        """Allocate host memory for `num_pages` pages of `pool`.

        Raises `ModelError` if that memory cannot be allocated.
        """
        self._first = pool.num_pages
        self._free = list(range(self._first + num_pages - 1, self._first - 1, -1))
        self._stored: OrderedDict[int, None] = OrderedDict()  # ordered; the first is dropped next
        self._store = pool.device.page_store(pool.pages, num_pages)
        self._tickets = [0] * pool.num_pages  # last copy out of or into each device page

    @property
    def num_stored(self) -> int:
        """The number of pages that are stored and not held."""
        return len(self._stored)

    @property
    def num_free(self) -> int:
        """The number of host pages without content."""
        return len(self._free)

    def touch(self, page: int) -> None:
        """Make a stored host page the last one to be dropped. Ignore any other page."""
        if page in self._stored:
            self._stored.move_to_end(page)

    def make_room(self, count: int) -> list[int]:
        """Drop pages until `count` host pages are free. Return the dropped pages."""
        dropped = list(islice(self._stored, max(count - len(self._free), 0)))
        self.free(dropped)
        return dropped

    def save(self, pages: Sequence[int]) -> list[int]:
        """Copy device pages to free host pages, and return these host pages."""
        targets = [self._free.pop() for _ in pages]
        self._stored.update(dict.fromkeys(targets))
        ticket = self._store.save(pages, self._places(targets))
        for page in pages:
            self._tickets[page] = ticket
        return targets

    def load(self, sources: Sequence[int], pages: Sequence[int]) -> int:
        """Copy host pages to device pages. Return the ticket to wait for before reading these."""
        ticket = self._store.load(self._places(sources), pages)
        for page in pages:
            self._tickets[page] = ticket
        return ticket

    def copy_out(self, page: int) -> Tensor:
        """Return a copy of a host page, uint8."""
        return self._store.copy_out(page - self._first)

    def hold(self, pages: Sequence[int]) -> None:
        """Protect pages from being dropped until `put_back` or `free`."""
        for page in pages:
            del self._stored[page]

    def put_back(self, page: int) -> None:
        """End the protection of a held page, which becomes the last one to be dropped."""
        self._stored[page] = None

    def free(self, pages: Sequence[int]) -> None:
        """Free pages and forget their content, whether they are held or not."""
        for page in pages:
            self._stored.pop(page, None)
            self._free.append(page)

    def ticket(self, page: int) -> int:
        """Return the ticket to wait for before using a device page; 0 if there is none."""
        return self._tickets[page]

    def is_done(self, ticket: int) -> bool:
        """Return True if the copy with this ticket has ended."""
        return self._store.done(ticket)

    def wait(self, ticket: int) -> None:
        """Make kernels that are launched next on the current stream run after the copy."""
        self._store.wait(ticket)

    def claim(self, pages: Sequence[int]) -> None:
        """Make kernels launched next on the current stream wait until they may overwrite pages."""
        if ticket := max(self._tickets[page] for page in pages):
            self._store.wait(ticket)
        for page in pages:
            self._tickets[page] = 0

    def close(self) -> None:
        """Wait for running copies and unpin the memory. Calling it twice is allowed."""
        self._store.close()

    def _places(self, pages: Sequence[int]) -> list[int]:
        """Return the places of host pages in the page store, which counts from 0."""
        return [page - self._first for page in pages]
