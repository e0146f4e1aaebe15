"""The pages of a pool by their use: unused, referred to by sequences, idle, or withdrawn.

Idle pages are indexed, and no sequence refers to them. When their memory is needed, they move to
host memory, and later they are dropped from there, with the states that are stored after them.
Withdrawn pages have no memory: it was given back to the system.
"""

from collections import OrderedDict
from collections.abc import Sequence

from engine.kv.host_tier import HostTier
from engine.kv.page_pool import PAGE, PagePool
from engine.kv.page_table import PageTable
from engine.kv.prefix_index import PrefixIndex
from engine.kv.stored_states import StoredStates


class Pages:
    """The references to the pages of a pool, and the index of those that are stored.

    Args:
        pool: the device memory.
        host_pages: how many idle pages to keep in host memory.
        stored: the states of recurrent layers after stored pages; None if there are none.
    """

    def __init__(self, pool: PagePool, host_pages: int, stored: StoredStates | None) -> None:
        self.pool = pool
        self.num_pages = pool.num_pages
        self._stored = stored
        self._host = HostTier(pool, host_pages)
        self._index = PrefixIndex(PAGE, pool.num_pages)  # holds device and host pages
        self._free = list(range(pool.num_pages - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # indexed, unreferenced; oldest first
        self._references = [0] * pool.num_pages
        self._withdrawn: list[int] = []

    @property
    def num_free_pages(self) -> int:
        """The number of pages that can be given to a sequence now: unused and idle ones."""
        return len(self._free) + len(self._idle)

    @property
    def num_withdrawn(self) -> int:
        """The number of pages whose memory was given back to the system."""
        return len(self._withdrawn)

    def withdraw(self, count: int) -> int:
        """Give the memory of up to `count` free pages back; idle ones are evicted for it.

        Return how many there were. `restore` makes them free again.
        """
        count = min(count, self.num_free_pages)
        if count > len(self._free):
            self._evict(count - len(self._free))
        if pages := [self._free.pop() for _ in range(count)]:
            self._host.claim(pages)
            self.pool.give_back(pages)
            self._withdrawn += pages
        return count

    def restore(self, count: int) -> int:
        """Make up to `count` withdrawn pages free again, and return how many there were."""
        count = min(count, len(self._withdrawn))
        self._free += [self._withdrawn.pop() for _ in range(count)]
        return count

    def _touch(self, page: int) -> None:
        """Mark an indexed page as the most recently used one.

        Callers mark its parents after it, so that the parents are evicted later.
        """
        if page in self._idle:
            self._idle.move_to_end(page)
        self._host.touch(page)

    def _discard(self, page: int) -> None:
        """Remove a page that no sequence refers to from the index, and free its memory."""
        self._forget(page)
        if page < self.num_pages:
            del self._idle[page]
            self._free.append(page)
        else:
            self._host.free([page])

    def _add_to_index(self, parent: int, tokens: Sequence[int], page: int) -> None:
        """Index a page by its tokens and by the serial number of its parent, or minus the salt."""
        self._index.add(parent, tuple(tokens), page)

    def _lose(self, page: int) -> None:
        """Forget a page whose memory is needed, and whose content is still there."""
        self._forget(page)

    def _forget(self, page: int) -> None:
        """Remove a page from the index, and the states that are stored after it."""
        if self._stored is not None:
            self._stored.drop_after(self._index.serial(page))
        self._index.remove(page)

    def _add_references(self, pages: Sequence[int]) -> int:
        """Count one more reference to each page. Return the ticket to wait for before reading."""
        for page in pages:
            self._idle.pop(page, None)
            self._references[page] += 1
        return max(map(self._host.ticket, pages), default=0)

    def _copy_page(self, table: PageTable, source: int, count: int) -> None:
        """Add a new page to a table and copy the first `count` slots of page `source` into it.

        `source` may be the only free page. Then the table gets that page itself: it has been
        evicted, but its content is unchanged. The caller has marked `source` as most recently used,
        so it is evicted last.
        """
        if source < self.num_pages:
            (page,) = self._allocate(1)
            ticket = 0
            self._host.wait(self._host.ticket(source))
            self.pool.copy_page(source, page, count)
        else:
            self._host.hold([source])  # evicting a page to the host must not drop it
            (page,) = self._take_free(1)
            self._host.put_back(source)
            ticket = self._host.load([source], [page])
        table.append([page], ticket)
        table.extend_prefix(count)

    def _allocate(self, count: int) -> list[int]:
        """Return `count` free pages that kernels launched next on the current stream may write."""
        pages = self._take_free(count)
        self._host.claim(pages)
        return pages

    def _take_free(self, count: int) -> list[int]:
        """Return `count` free pages, evicting idle ones if needed. Copies may still use them."""
        if count > len(self._free):
            self._evict(count - len(self._free))
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._references[page] = 1
        return pages

    def _evict(self, count: int) -> None:
        """Free the `count` least recently used idle pages.

        As many of them as fit, the most recently used ones, are copied to host memory. If host
        memory is full, its own least recently used pages are dropped for them.
        """
        leaving = [self._idle.popitem(last=False)[0] for _ in range(count)]
        num_forgotten = max(count - self._host.num_free - self._host.num_stored, 0)
        saved = leaving[num_forgotten:]
        for page in [*self._host.make_room(len(saved)), *leaving[:num_forgotten]]:
            self._lose(page)
        if saved:
            for page, place in zip(saved, self._host.save(saved), strict=True):
                self._index.rename(page, place)
        self._free += leaving

    def _load_from_host(self, stored: Sequence[int]) -> tuple[list[int], int]:
        """Load host pages into free device pages, from the first on, as many as there are.

        Return the device pages, and the ticket to wait for before reading them.
        """
        for page in reversed(stored):
            self._host.touch(page)  # the first page last, so that it is dropped last
        remaining = list(stored[: self.num_free_pages])
        self._host.hold(remaining)  # pages evicted to the host must not drop them
        loaded: list[int] = []
        ticket = 0
        while remaining:
            # Taking device pages may evict others to the host. With no more pages at a time than
            # both sides have free, no stored page is dropped, and each round frees host pages.
            room = max(len(self._free) + self._host.num_free, 1)
            sources, remaining = remaining[:room], remaining[room:]
            pages = self._take_free(len(sources))
            ticket = self._host.load(sources, pages)
            for source, page in zip(sources, pages, strict=True):
                self._index.rename(source, page)
            self._host.free(sources)
            loaded += pages
        return loaded, ticket

    def _drop_references(self, pages: Sequence[int]) -> None:
        """Count one reference less to each page. Pages without one become idle or free."""
        for page in pages:
            self._references[page] -= 1
            assert self._references[page] >= 0
            if self._references[page] == 0:
                if page in self._index:
                    self._idle[page] = None
                else:
                    self._free.append(page)
