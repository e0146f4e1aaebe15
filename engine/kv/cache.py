"""The KV cache: which sequence owns which pages of the pool, and which prefixes are stored.

Three parts work together here. `PagePool` is the device memory. `HostTier` keeps idle pages in host
memory. `KVCache` owns both: it hands pages to sequences, counts references, and finds stored
prefixes by their tokens.

A sequence holds a `PageTable`. A pass or a draft writes into the slots after the table's prefix
(scratch); `keep` compacts the accepted rows, which makes them part of the prefix.

Full pages are immutable and indexed by the tokens that led to them, so that a later prompt with the
same beginning shares them. The last, partial page of a finished sequence is indexed too: a new
prompt gets a copy of the rows it has in common with such a page, so the next turn of a chat runs
only what is new. Pages that no sequence refers to stay indexed (idle) until their room is needed.
Then the least recently used ones move to host memory, and are dropped from there. The end of a
prefix always leaves before its beginning, so that whatever is stored can be found: the parent of a
device page is on the device, and no page outlives its parent.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.kv.host_tier import HostTier
from engine.kv.page_pool import PAGE, PagePool
from engine.kv.page_table import PageTable
from engine.kv.prefix_index import PrefixIndex


class KVCache:
    """Hands the pages of a pool to sequences.

    Args:
        pool: the device memory.
        prefix_cache: False if no sequence shall share pages with a later one.
        host_pages: idle pages to keep in host memory besides, until `release`.
    """

    def __init__(self, pool: PagePool, *, prefix_cache: bool = True, host_pages: int = 0) -> None:
        self.pool = pool
        self.num_pages = pool.num_pages
        self._prefix_cache = prefix_cache
        self._host = HostTier(pool, host_pages)
        self._index = PrefixIndex(PAGE, pool.num_pages)  # of device and host pages
        self._free = list(range(pool.num_pages - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # indexed, unreferenced; oldest first
        self._references = [0] * pool.num_pages

    @property
    def num_free_pages(self) -> int:
        """Pages that can be had now: unused ones, and idle ones."""
        return len(self._free) + len(self._idle)

    @property
    def num_host_pages(self) -> int:
        """Idle pages in host memory."""
        return self._host.num_stored

    def num_pages_to_open(self, tokens: Sequence[int], salt: int = 0) -> int:
        """Return how many free pages a sequence takes that begins with these tokens.

        A page shared with a running sequence costs none; one in host memory costs a device page.
        """
        shared = sum(
            page < self.num_pages and self._references[page] > 0
            for page in self._index.walk(tokens, -salt)
        )
        return -(-len(tokens) // PAGE) - shared

    def open(self, tokens: Sequence[int], salt: int = 0) -> PageTable:
        """Return a table for a sequence with these tokens, sharing the longest stored prefix.

        The last token is never taken from the cache: its row must give logits. Pages in host memory
        come back, as many as there are free pages; on CUDA their copies are then still under way
        (see `is_ready`). After the full pages, the rows in common with another page are copied.
        """
        found = list(self._index.walk(tokens, -salt))
        parent = self._index.serial(found[-1]) if found else -salt
        rest = tuple(tokens[len(found) * PAGE : len(tokens) - 1][:PAGE])
        if similar := self._index.longest(parent, rest):
            self._touch(similar[0])  # it is the last that makes room for those that come back
        pages = [page for page in found if page < self.num_pages]
        arrival = self._share(pages)
        loaded, ticket = self._bring_back(found[len(pages) :])
        pages += loaded
        full = len(pages)
        table = PageTable(salt, pages, full * PAGE, full, max(arrival, ticket))
        if self.num_free_pages and (similar := self._index.longest(parent, rest)):
            self._copy_page(table, *similar)
        return table

    def is_ready(self, table: PageTable) -> bool:
        """Return False while pages come from the host: a pass over them would wait for those."""
        return self._host.is_done(table.arrival)

    def reserve(self, table: PageTable, rows: int) -> bool:
        """Make room for `rows` scratch slots after the prefix. Return False when pages run out."""
        missing = -(-(table.length + rows) // PAGE) - len(table.pages)
        if missing > self.num_free_pages:
            return False
        if missing > 0:
            table.append(self._allocate(missing))
        return True

    def slots(self, table: PageTable) -> Tensor:
        """Return the slot numbers of the sequence in order, [capacity] int64 on the device.

        What is launched next on the current stream sees the pages that came from the host.
        """
        self._host.wait(table.arrival)
        return table.slots(self.pool.device.torch_device)

    def keep(self, table: PageTable, rows: Sequence[int]) -> None:
        """Append scratch rows (ascending, counted from the end of the prefix) to the prefix.

        Kernels are issued in order on one stream, so the copy comes after the pass that wrote the
        rows and before the next one that reads them.
        """
        in_place = sum(row == place for place, row in enumerate(rows))  # the first ones
        moved = [table.length + row for row in rows[in_place:]]
        if moved:
            slots = [table.pages[i // PAGE] * PAGE + i % PAGE for i in moved]
            self.pool.copy_rows(torch.tensor(slots), table.pages, table.length + in_place)
        table.extend_prefix(len(rows))

    def keep_from(self, table: PageTable, source_slots: Tensor) -> None:
        """Append a copy of these slots of the pool to the prefix; any sequence may own the slots.

        `source_slots` [rows] int64 is in the order of the tokens; the table has room for them. The
        copy reads what the current stream wrote, so a stream that drafts must have been waited for.
        """
        assert table.length + len(source_slots) <= table.capacity, "no room: reserve first"
        self.pool.copy_rows(source_slots, table.pages, table.length)
        table.extend_prefix(len(source_slots))

    def publish(self, table: PageTable, tokens: Sequence[int]) -> None:
        """Index the pages that verified tokens have filled; `tokens` is the whole sequence."""
        while self._prefix_cache and (table.num_published + 1) * PAGE <= table.length:
            self._publish_page(table, tokens)
            table.publish_next()

    def fork(self, table: PageTable) -> PageTable | None:
        """Return a second table of the same prefix, or None without a page for its partial one."""
        full, rest = divmod(table.length, PAGE)
        if rest and self.num_free_pages == 0:
            return None
        pages = table.pages[:full]
        arrival = self._share(pages)
        twin = PageTable(table.salt, pages, table.length, table.num_published, arrival)
        if rest:
            twin.append(self._allocate(1))
            self._host.wait(table.arrival)
            self.pool.copy_page(table.pages[full], twin.pages[full], rest)
        return twin

    def trim(self, table: PageTable) -> None:
        """Give back the scratch pages that the prefix does not reach."""
        self._drop(table.cut_scratch())

    def close(self, table: PageTable, tokens: Sequence[int] = ()) -> None:
        """Give all pages of a sequence back; indexed ones can be found until room is needed.

        With `tokens`, the whole sequence, the partial last page of the prefix is indexed too.
        """
        if tokens and self._prefix_cache and table.num_published * PAGE < table.length:
            self._publish_page(table, tokens)  # the others were when they became full
        self._drop(table.clear())

    def release(self) -> None:
        """Unpin the host pages once the copies are through. The cache is not used afterwards."""
        self._host.close()

    def _publish_page(self, table: PageTable, tokens: Sequence[int]) -> None:
        """Index a table's first page that is not indexed, unless its content is stored already."""
        number = table.num_published
        page, first = table.pages[number], number * PAGE
        parent = self._index.serial(table.pages[number - 1]) if number else -table.salt
        own = tuple(tokens[first : min(first + PAGE, table.length)])
        twin = self._index.covering(parent, own)
        if twin is None:
            if (shorter := self._index.beginning(parent, own)) is not None:
                self._discard(shorter)
            self._index.add(parent, own, page)
        elif twin >= self.num_pages and self._index.tokens(twin) == own:
            self._index.rename(twin, page)  # computed again although the host has it
            self._host.free([twin])
        elif len(own) < PAGE:
            self._touch(twin)
        elif twin != page:
            table.replace(number, twin, self._share([twin]))
            self._drop([page])

    def _touch(self, page: int) -> None:
        """Note that an indexed page was used. Its parents are used next, so they stay younger."""
        if page in self._idle:
            self._idle.move_to_end(page)
        self._host.touch(page)

    def _discard(self, page: int) -> None:
        """Forget a page that no sequence refers to, and free its room."""
        self._index.remove(page)
        if page < self.num_pages:
            del self._idle[page]
            self._free.append(page)
        else:
            self._host.free([page])

    def _share(self, pages: Sequence[int]) -> int:
        """Refer to pages once more. Return the ticket after which all of them may be read."""
        for page in pages:
            self._idle.pop(page, None)
            self._references[page] += 1
        return max(map(self._host.ticket, pages), default=0)

    def _copy_page(self, table: PageTable, source: int, count: int) -> None:
        """Add a page of its own to a table, with the first `count` slots of a page just touched.

        If `source` is the only free page it becomes the table's: making room moves it to the host
        or forgets it, and its content is still there.
        """
        if source < self.num_pages:
            (page,) = self._allocate(1)
            ticket = 0
            self._host.wait(self._host.ticket(source))
            self.pool.copy_page(source, page, count)
        else:
            self._host.hold([source])  # the page that makes room must not push it out
            (page,) = self._take(1)
            self._host.put_back(source)
            ticket = self._host.load([source], [page])
        table.append([page], ticket)
        table.extend_prefix(count)

    def _allocate(self, count: int) -> list[int]:
        """Take free pages for what is launched next on the current stream to write."""
        pages = self._take(count)
        self._host.claim(pages)
        return pages

    def _take(self, count: int) -> list[int]:
        """Take free pages; a copy may still be reading or writing them."""
        if count > len(self._free):
            self._evict(count - len(self._free))
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._references[page] = 1
        return pages

    def _evict(self, count: int) -> None:
        """Free the idle pages used least recently; the host keeps as many of them as it can."""
        leaving = [self._idle.popitem(last=False)[0] for _ in range(count)]
        num_forgotten = max(count - self._host.num_free - self._host.num_stored, 0)
        saved = leaving[num_forgotten:]
        for page in [*self._host.make_room(len(saved)), *leaving[:num_forgotten]]:
            self._index.remove(page)
        if saved:
            for page, place in zip(saved, self._host.save(saved), strict=True):
                self._index.rename(page, place)
        self._free += leaving

    def _bring_back(self, stored: Sequence[int]) -> tuple[list[int], int]:
        """Load host pages, from the first on, as many as there are free pages.

        Return the device pages, and the ticket after which all of them may be read.
        """
        for page in reversed(stored):
            self._host.touch(page)  # just used, and the end before the beginning
        coming = list(stored[: self.num_free_pages])
        self._host.hold(coming)  # the pages that make room must not push them out
        loaded: list[int] = []
        ticket = 0
        while coming:
            # No more at once than have room to trade places: then nothing is forgotten.
            room = max(len(self._free) + self._host.num_free, 1)
            sources, coming = coming[:room], coming[room:]
            pages = self._take(len(sources))
            ticket = self._host.load(sources, pages)
            for source, page in zip(sources, pages, strict=True):
                self._index.rename(source, page)
            self._host.free(sources)
            loaded += pages
        return loaded, ticket

    def _drop(self, pages: Sequence[int]) -> None:
        """Refer to pages once less; those without a reference become idle or free."""
        for page in pages:
            self._references[page] -= 1
            assert self._references[page] >= 0
            if self._references[page] == 0:
                if page in self._index:
                    self._idle[page] = None
                else:
                    self._free.append(page)
