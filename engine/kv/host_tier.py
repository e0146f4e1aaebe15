"""Idle KV pages in host memory, and the copies that take pages there and back.

Pages of the device have the numbers 0 to n - 1; pages of the host go on from n. The host keeps the
pages that were used last: `make_room` drops the others, in the order in which they were stored or
touched. A page whose content is about to be read back is taken out of that order with `hold`.
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice

from engine.kv.page_pool import PagePool


class HostTier:
    """Host pages and the order in which they are dropped, and the state of copies.

    Each copy has a ticket (`engine/streaming/page_store.py`). The last one that reads or writes a
    page of the device is remembered until `claim`, so that no one uses the page before it is done.
    """

    def __init__(self, pool: PagePool, num_pages: int) -> None:
        """Keep up to `num_pages` pages of `pool`. Raises `ModelError` when memory is refused."""
        self._first = pool.num_pages
        self._free = list(range(self._first + num_pages - 1, self._first - 1, -1))
        self._stored: OrderedDict[int, None] = OrderedDict()  # the next to be dropped first
        self._store = pool.device.page_store(pool.pages, num_pages)
        self._tickets = [0] * pool.num_pages  # of the last copy out of or into each device page

    @property
    def num_stored(self) -> int:
        """Pages that are stored and not held."""
        return len(self._stored)

    @property
    def num_free(self) -> int:
        """Pages that hold nothing."""
        return len(self._free)

    def touch(self, page: int) -> None:
        """Make a host page the last one to be dropped. Other pages are left alone."""
        if page in self._stored:
            self._stored.move_to_end(page)

    def make_room(self, count: int) -> list[int]:
        """Free pages until there are `count`. Return those that were dropped."""
        dropped = list(islice(self._stored, max(count - len(self._free), 0)))
        self.free(dropped)
        return dropped

    def save(self, pages: Sequence[int]) -> list[int]:
        """Copy device pages to free host pages and return those."""
        targets = [self._free.pop() for _ in pages]
        self._stored.update(dict.fromkeys(targets))
        ticket = self._store.save(pages, self._places(targets))
        for page in pages:
            self._tickets[page] = ticket
        return targets

    def load(self, sources: Sequence[int], pages: Sequence[int]) -> int:
        """Copy host pages to device pages. Return the ticket after which these may be read."""
        ticket = self._store.load(self._places(sources), pages)
        for page in pages:
            self._tickets[page] = ticket
        return ticket

    def hold(self, pages: Sequence[int]) -> None:
        """Let no other page take the place of these until `put_back` or `free`."""
        for page in pages:
            del self._stored[page]

    def put_back(self, page: int) -> None:
        """Let a held page be dropped again, as the last one."""
        self._stored[page] = None

    def free(self, pages: Sequence[int]) -> None:
        """Give up the content of pages, held or not."""
        for page in pages:
            self._stored.pop(page, None)
            self._free.append(page)

    def ticket(self, page: int) -> int:
        """Return the ticket after which a device page may be used."""
        return self._tickets[page]

    def is_done(self, ticket: int) -> bool:
        """Return True if a copy is through, so that nothing would wait for it."""
        return self._store.done(ticket)

    def wait(self, ticket: int) -> None:
        """Let what is launched next on the current stream run after the copy."""
        self._store.wait(ticket)

    def claim(self, pages: Sequence[int]) -> None:
        """Let what is launched next on the current stream overwrite these device pages."""
        if ticket := max(self._tickets[page] for page in pages):
            self._store.wait(ticket)
        for page in pages:
            self._tickets[page] = 0

    def close(self) -> None:
        """Wait for the copies and unpin the memory. May be called again."""
        self._store.close()

    def _places(self, pages: Sequence[int]) -> list[int]:
        return [page - self._first for page in pages]
