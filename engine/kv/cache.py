"""The KV cache: which sequence owns which pages of the pool, and which prefixes are stored.

Three parts work together here. `PagePool` is the device memory. `HostTier` keeps idle pages in host
memory. `KVCache` owns both: it hands pages to sequences, counts references, and finds stored
prefixes by their tokens.

A sequence holds a `PageTable`. A pass or a draft writes into the slots after the table's prefix
(scratch slots). `append_rows` moves the accepted rows to the first of these slots and adds them to
the prefix.

Full pages are immutable and indexed by their own tokens and all tokens before them, so that a later
prompt with the same first tokens shares them. The last, partial page of a finished sequence is
indexed too: a new prompt gets a copy of the rows it has in common with such a page, so the next
turn of a chat runs only its new tokens. Pages that no sequence refers to are called idle. They stay
indexed until their memory is needed. Then the least recently used ones move to host memory, and
later they are dropped from there. The last page of a prefix is always evicted before the pages
ahead of it, because a page is found by way of its parent: the parent of a device page is on the
device, and no page is stored longer than its parent.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.kv.host_tier import HostTier
from engine.kv.page_pool import PAGE, PagePool
from engine.kv.page_table import PageTable
from engine.kv.prefix_index import PrefixIndex
from engine.recurrent.states import StatePool


class KVCache:
    """The owner of a pool's pages: it gives pages to sequences and finds stored prefixes.

    Args:
        pool: the device memory.
        prefix_cache: whether later sequences may share the pages of earlier ones.
        host_pages: how many idle pages to keep in host memory, which is allocated here and freed
            by `release`.
        states: the memory of recurrent layers; None if there are none. A prefix can only be shared
            with its states, which are not stored yet: so there is no prefix cache with them.
    """

    def __init__(
        self,
        pool: PagePool,
        *,
        prefix_cache: bool = True,
        host_pages: int = 0,
        states: StatePool | None = None,
    ) -> None:
        self.pool = pool
        self.states = states
        self.num_pages = pool.num_pages
        self._prefix_cache = prefix_cache and states is None
        self._host = HostTier(pool, host_pages)
        self._index = PrefixIndex(PAGE, pool.num_pages)  # holds device and host pages
        self._free = list(range(pool.num_pages - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # indexed, unreferenced; oldest first
        self._references = [0] * pool.num_pages

    @property
    def num_free_pages(self) -> int:
        """The number of pages that can be given to a sequence now: unused and idle ones."""
        return len(self._free) + len(self._idle)

    @property
    def num_host_pages(self) -> int:
        """The number of idle pages that are stored in host memory."""
        return self._host.num_stored

    def num_pages_to_open(self, tokens: Sequence[int], salt: int = 0) -> int:
        """Return how many free pages `open` and `reserve` take for a sequence of these tokens.

        A page that a running sequence uses can be shared and costs none. An idle page counts, and
        so does a page in host memory, which has to be loaded into a free device page.
        """
        shared = sum(
            page < self.num_pages and self._references[page] > 0
            for page in self._index.walk(tokens, -salt)
        )
        return -(-len(tokens) // PAGE) - shared

    def open(self, tokens: Sequence[int], salt: int = 0) -> PageTable:
        """Return a table for a sequence with these tokens, sharing the longest stored prefix.

        The last token is never taken from the cache: its row must run to give logits. Pages in host
        memory are loaded, as many as there are free device pages. On CUDA these copies are still
        running when this returns (see `is_ready`). Where no full page matches any further, the
        rows that another page has in common with the tokens are copied.
        """
        found = list(self._index.walk(tokens, -salt))
        parent = self._index.serial(found[-1]) if found else -salt
        rest = tuple(tokens[len(found) * PAGE : len(tokens) - 1][:PAGE])
        if similar := self._index.find_longest_match(parent, rest):
            self._touch(similar[0])  # so that the pages loaded below evict it last
        pages = [page for page in found if page < self.num_pages]
        shared_ticket = self._add_references(pages)
        loaded, ticket = self._load_from_host(found[len(pages) :])
        pages += loaded
        full = len(pages)
        table = PageTable(
            salt=salt,
            pages=pages,
            length=full * PAGE,
            num_published=full,
            ready_ticket=max(shared_ticket, ticket),
        )
        if self.num_free_pages and (similar := self._index.find_longest_match(parent, rest)):
            self._copy_page(table, *similar)
        granted = self._give_state(table)
        assert granted, "no more sequences run than there are states"
        return table

    def is_ready(self, table: PageTable) -> bool:
        """Return False while pages of the table are copied from the host: a pass would wait."""
        return self._host.is_done(table.ready_ticket)

    def reserve(self, table: PageTable, rows: int) -> bool:
        """Allocate pages for `rows` scratch slots after the prefix.

        A new table also gets the states of recurrent layers. Return False, and change nothing, if
        there are too few free pages, or no states.
        """
        missing = -(-(table.length + rows) // PAGE) - len(table.pages)
        if missing > self.num_free_pages or not self._give_state(table):
            return False
        if missing > 0:
            table.append(self._allocate(missing))
        return True

    def is_usable(self, table: PageTable) -> bool:
        """Return False if a failed pass has changed states of a running sequence.

        Its pages and states have to be freed then, and its tokens run again.
        """
        return table.state is None or table.state.is_at(table.length)

    def slots(self, table: PageTable) -> Tensor:
        """Return the slot numbers of the sequence in order, [capacity] int64 on the device.

        Make the current stream wait for copies from the host, so that kernels launched after this
        call read complete pages.
        """
        self._host.wait(table.ready_ticket)
        return table.slots(self.pool.device.torch_device)

    def append_rows(self, table: PageTable, rows: Sequence[int]) -> None:
        """Append accepted scratch rows to the prefix and move them next to each other.

        Kernels are launched in order on one stream, so the copy runs after the pass that wrote the
        rows and before the next pass that reads them.

        Args:
            rows: ascending numbers of scratch rows; row 0 is the first slot after the prefix.
        """
        in_place = sum(row == place for place, row in enumerate(rows))  # leading rows: no copy
        moved = [table.length + row for row in rows[in_place:]]
        if moved:
            slots = [table.pages[i // PAGE] * PAGE + i % PAGE for i in moved]
            self.pool.copy_rows(torch.tensor(slots), table.pages, table.length + in_place)
        if table.state is not None:
            table.state.extend(rows)
        table.extend_prefix(len(rows))

    def append_copies(self, table: PageTable, source_slots: Tensor) -> None:
        """Append copies of any slots of the pool to the prefix, whichever sequence owns them.

        The copy runs on the current stream. If another stream wrote the slots, the caller has to
        wait for that stream first.

        Args:
            table: a table that has room for the rows (`reserve`).
            source_slots: slot numbers in the order of the tokens, [rows] int64.
        """
        assert table.length + len(source_slots) <= table.capacity, "no room: reserve first"
        self.pool.copy_rows(source_slots, table.pages, table.length)
        table.extend_prefix(len(source_slots))

    def publish(self, table: PageTable, tokens: Sequence[int]) -> None:
        """Index the pages that the prefix has filled, so that later sequences can share them.

        Args:
            tokens: all tokens of the sequence, from its first one on.
        """
        while self._prefix_cache and (table.num_published + 1) * PAGE <= table.length:
            self._publish_page(table, tokens)
            table.publish_next()

    def fork(self, table: PageTable) -> PageTable | None:
        """Return a second table with the same prefix, for another choice of the same request.

        Full pages are shared, and a partial last page and states are copied. Return None if there
        is no free page for that copy, or no state.
        """
        full, rest = divmod(table.length, PAGE)
        if rest and self.num_free_pages == 0:
            return None
        state = None
        if self.states is not None and table.state is not None:
            state = self.states.fork(table.state)
            if state is None:
                return None
        pages = table.pages[:full]
        ticket = self._add_references(pages)
        forked = PageTable(
            salt=table.salt,
            pages=pages,
            length=table.length,
            num_published=table.num_published,
            ready_ticket=ticket,
            state=state,
        )
        if rest:
            forked.append(self._allocate(1))
            self._host.wait(table.ready_ticket)
            self.pool.copy_page(table.pages[full], forked.pages[full], rest)
        return forked

    def trim(self, table: PageTable) -> None:
        """Free the scratch pages that come after the last page of the prefix."""
        self._drop_references(table.cut_scratch())

    def close(self, table: PageTable, tokens: Sequence[int] = ()) -> None:
        """Free all pages of a sequence. Indexed ones become idle and can still be found.

        Args:
            tokens: all tokens of the sequence. If given, the partial last page of its prefix is
                indexed too.
        """
        if tokens and self._prefix_cache and table.num_published * PAGE < table.length:
            self._publish_page(table, tokens)  # `publish` has indexed the full pages
        self._drop_references(table.clear())
        if self.states is not None and (state := table.take_state()) is not None:
            self.states.close(state)

    def release(self) -> None:
        """Wait for running copies and unpin the host memory. Do not use the cache afterwards."""
        self._host.close()

    def _give_state(self, table: PageTable) -> bool:
        """Give a table the states of a sequence if it has none. Return False without room."""
        if self.states is None or table.state is not None:
            return True
        state = self.states.open()
        if state is None:
            return False
        table.begin_state(state)
        return True

    def _publish_page(self, table: PageTable, tokens: Sequence[int]) -> None:
        """Index the first page of a table that is not indexed yet.

        If a page with the same content is stored already, a full page is replaced by that one, and
        a partial page is not indexed a second time.
        """
        number = table.num_published
        page, first = table.pages[number], number * PAGE
        parent = self._index.serial(table.pages[number - 1]) if number else -table.salt
        page_tokens = tuple(tokens[first : min(first + PAGE, table.length)])
        stored = self._index.find_covering(parent, page_tokens)
        if stored is None:
            if (shorter := self._index.find_prefix(parent, page_tokens)) is not None:
                self._discard(shorter)
            self._index.add(parent, page_tokens, page)
        elif stored >= self.num_pages and self._index.tokens(stored) == page_tokens:
            # The page was computed again although host memory has a copy: this one replaces it.
            self._index.rename(stored, page)
            self._host.free([stored])
        elif len(page_tokens) < PAGE:
            self._touch(stored)
        elif stored != page:
            table.replace(number, stored, self._add_references([stored]))
            self._drop_references([page])

    def _touch(self, page: int) -> None:
        """Mark an indexed page as the most recently used one.

        Callers mark its parents after it, so that the parents are evicted later.
        """
        if page in self._idle:
            self._idle.move_to_end(page)
        self._host.touch(page)

    def _discard(self, page: int) -> None:
        """Remove a page that no sequence refers to from the index, and free its memory."""
        self._index.remove(page)
        if page < self.num_pages:
            del self._idle[page]
            self._free.append(page)
        else:
            self._host.free([page])

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
            self._index.remove(page)
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
