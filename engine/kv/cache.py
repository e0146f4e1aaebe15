"""The KV cache: one pool of pages, prefix reuse, scratch rows, copy on fork.

A page holds 64 token slots of every layer; pages of the pool never move. A sequence owns a
`PageTable`: slot j of the sequence is `pages[j // 64] * 64 + j % 64`. The first `length` slots
hold the KV of verified tokens; what a pass or a draft writes lands in the slots behind them
(scratch) and becomes part of the prefix only through `keep`, which compacts the accepted rows.

Full pages are immutable and indexed by the tokens that led to them, so a later prompt with the
same beginning shares them. So is the last, partial page of a sequence that has gone; what a prompt
has in common with a page that it leaves is copied, so a chat's next turn runs what is new in it.
Unreferenced pages stay indexed until their room is needed; then the least recently used move to
host memory, and from there into oblivion. In both places the end of a prefix goes before its
beginning, so whatever is stored can be found: a page on the device has its parent on the device,
and none outlives its parent.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.kv.prefix_index import PrefixIndex
from engine.streaming.device import Device

PAGE = 64  # token slots of a page


@dataclass
class PageTable:
    """The pages of one sequence."""

    salt: int = 0  # sequences of different salts share nothing (rope length groups)
    pages: list[int] = field(default_factory=list)
    length: int = 0  # verified tokens stored
    num_published: int = 0  # leading pages that are immutable and indexed
    _slots: Tensor | None = None
    _arrival: int = 0  # the ticket of the last of its pages to come back from the host

    @property
    def capacity(self) -> int:
        return len(self.pages) * PAGE


class KVCache:
    """Keys and values of all layers, [L, slots, kv heads, head dim], and who owns which page.

    `host_pages` idle pages more are kept in host memory, pinned where `device` can pin, until
    `release`. All memory is written once here, so what was planned is there. Raises `ModelError`
    when it is refused.
    """

    def __init__(
        self,
        num_layers: int,
        num_pages: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: Device,
        *,
        prefix_cache: bool = True,
        host_pages: int = 0,
    ) -> None:
        shape = (2 * num_layers, num_pages * PAGE, num_kv_heads, head_dim)
        try:
            # Zeros, not empty: a masked slot is multiplied by weight zero, and 0 x NaN is NaN.
            self._pool = torch.zeros(shape, dtype=dtype, device=device.torch_device)
        except RuntimeError as error:  # both allocators' refusals
            raise ModelError(
                f"{device} has no room for {num_pages * PAGE} tokens of KV ({error}). "
                "Lower memory.device or context_length."
            ) from error
        self.keys, self.values = self._pool[:num_layers], self._pool[num_layers:]
        self.num_pages = num_pages
        self._prefix_cache = prefix_cache
        self._device = device.torch_device
        self._free = list(range(num_pages - 1, -1, -1))
        self._references = [0] * num_pages
        self._copies = [0] * num_pages  # ticket of the last copy out of a page, or into it
        self._idle: OrderedDict[int, None] = OrderedDict()  # indexed, unreferenced; oldest first
        # Pages from num_pages on are the host's: places of the store.
        self._host_free = list(range(num_pages + host_pages - 1, num_pages - 1, -1))
        self._stored: OrderedDict[int, None] = OrderedDict()  # host pages in use; oldest first
        self._store = device.page_store(self._pool.view(2 * num_layers, num_pages, -1), host_pages)
        self._index = PrefixIndex(PAGE, num_pages)  # of the pages of both
        self._offsets = torch.arange(PAGE)

    @property
    def num_free_pages(self) -> int:
        """Pages that can be had now: never used, or kept only for a prefix nobody runs."""
        return len(self._free) + len(self._idle)

    @property
    def num_host_pages(self) -> int:
        """Idle pages that wait in host memory."""
        return len(self._stored)

    def num_pages_to_open(self, tokens: Sequence[int], salt: int = 0) -> int:
        """How many of the free pages a sequence takes that begins with these tokens.

        What is shared with a running sequence costs none; what waits in host memory costs a page.
        """
        shared = sum(
            page < self.num_pages and self._references[page] > 0
            for page in self._index.walk(tokens, -salt)
        )
        return -(-len(tokens) // PAGE) - shared

    def open(self, tokens: Sequence[int], salt: int = 0) -> PageTable:
        """A table for a sequence that begins with these tokens, sharing the longest stored prefix.

        The last token is never taken from the cache: its row must give logits. Pages in host
        memory come back, as many as there are free pages; on CUDA their copies are then under way
        (see `ready`). Behind the full pages, what another page has in common is copied.
        """
        table = PageTable(salt=salt)
        found = list(self._index.walk(tokens, -salt))
        parent = self._index.serial(found[-1]) if found else -salt
        rest = tuple(tokens[len(found) * PAGE : len(tokens) - 1][:PAGE])
        if similar := self._index.longest(parent, rest):
            self._touch(similar[0])  # it is the last that makes room for those that come back
        table.pages += [page for page in found if page < self.num_pages]
        for page in table.pages:
            self._take(table, page)
        self._bring_back(table, found[len(table.pages) :])
        table.num_published = len(table.pages)
        table.length = table.capacity
        if self.num_free_pages and (similar := self._index.longest(parent, rest)):
            self._copy_page(table, *similar)
        return table

    def ready(self, table: PageTable) -> bool:
        """Whether its pages are all there; if not, a pass over them waits on the device."""
        if table._arrival and self._store.done(table._arrival):
            table._arrival = 0
        return table._arrival == 0

    def reserve(self, table: PageTable, rows: int) -> bool:
        """Make room for `rows` scratch slots behind the prefix; False when pages run out."""
        missing = -(-(table.length + rows) // PAGE) - len(table.pages)
        if missing > self.num_free_pages:
            return False
        if missing > 0:
            table.pages += self._allocate(missing)
            table._slots = None
        return True

    def room(self, table: PageTable) -> int:
        """The most scratch rows `reserve` could grant this table now."""
        return table.capacity + self.num_free_pages * PAGE - table.length

    def slots(self, table: PageTable) -> Tensor:
        """Slot numbers of the sequence in order, [capacity] int64 on the device.

        What is launched next on the current stream sees the pages that came from the host.
        """
        if not self.ready(table):
            self._store.wait(table._arrival)
        if table._slots is None:
            pages = torch.tensor(table.pages, dtype=torch.int64)
            slots = (pages[:, None] * PAGE + self._offsets).view(-1)
            table._slots = slots.to(self._device, non_blocking=True)
        return table._slots

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [rows, kv heads, head dim] of one layer."""
        self.keys[layer].index_copy_(0, slots, keys)
        self.values[layer].index_copy_(0, slots, values)

    def read(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer at these slots, [rows, kv heads, head dim] each."""
        return self.keys[layer].index_select(0, slots), self.values[layer].index_select(0, slots)

    def keep(self, table: PageTable, rows: Sequence[int]) -> None:
        """Append scratch rows (ascending, counted from the end of the prefix) to the prefix.

        Kernels are issued in order on one stream, so the copy comes after the pass that wrote the
        rows and before the next one that reads them.
        """
        in_place = sum(row == place for place, row in enumerate(rows))  # the first ones
        moved = [table.length + row for row in rows[in_place:]]
        if moved:
            slots = [table.pages[i // PAGE] * PAGE + i % PAGE for i in moved]
            self._copy_behind(table, table.length + in_place, torch.tensor(slots))
        table.length += len(rows)

    def keep_from(self, table: PageTable, source_slots: Tensor) -> None:
        """Append to the prefix what is stored in these slots of the pool, whoever owns them.

        `source_slots` [rows] int64, in the order of the tokens; the table has room for them. It
        reads what the current stream wrote: a stream that drafts has been waited for.
        """
        assert table.length + len(source_slots) <= table.capacity, "no room: reserve first"
        self._copy_behind(table, table.length, source_slots)
        table.length += len(source_slots)

    def publish(self, table: PageTable, tokens: Sequence[int]) -> None:
        """Index the pages that verified tokens have filled; `tokens` is the whole sequence."""
        while self._prefix_cache and (table.num_published + 1) * PAGE <= table.length:
            self._publish_page(table, tokens)
            table.num_published += 1

    def fork(self, table: PageTable) -> PageTable | None:
        """A second sequence with the same prefix; None without a page for the partial one."""
        full = table.length // PAGE
        rest = table.length - full * PAGE
        if rest and self.num_free_pages == 0:
            return None
        twin = PageTable(table.salt, table.pages[:full], table.length, table.num_published)
        for page in twin.pages:
            self._take(twin, page)
        if rest:
            twin.pages += self._allocate(1)
            self._store.wait(table._arrival)
            self._copy_slots(table.pages[full], twin.pages[full], rest)
        return twin

    def trim(self, table: PageTable) -> None:
        """Give scratch pages back that the prefix does not reach."""
        wanted = -(-table.length // PAGE)
        for page in reversed(table.pages[wanted:]):
            self._drop(page)
        if wanted < len(table.pages):
            del table.pages[wanted:]
            table._slots = None

    def close(self, table: PageTable, tokens: Sequence[int] = ()) -> None:
        """Give all pages of a sequence back; indexed ones stay findable until room is needed.

        With `tokens`, the whole sequence, its last verified ones are indexed too, although they
        do not fill their page.
        """
        if tokens and self._prefix_cache and table.num_published * PAGE < table.length:
            self._publish_page(table, tokens)  # the others were when they became full
        for page in reversed(table.pages):
            self._drop(page)
        table.pages.clear()
        table.length = table.num_published = table._arrival = 0
        table._slots = None

    def release(self) -> None:
        """Unpin the host pages, once the copies are through; nothing is asked of it afterwards."""
        self._store.close()

    def _publish_page(self, table: PageTable, tokens: Sequence[int]) -> None:
        """Index the first page of a table that is not, unless what it holds is stored already."""
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
            del self._stored[twin]  # computed again although the host has it
            self._index.rename(twin, page)
            self._host_free.append(twin)
        elif len(own) < PAGE:
            self._touch(twin)
        elif twin != page:
            self._take(table, twin)
            table.pages[number] = twin
            table._slots = None
            self._drop(page)

    def _touch(self, page: int) -> None:
        """An indexed page was just used. Its parents are used next: they stay younger."""
        for idle in (self._idle, self._stored):
            if page in idle:
                idle.move_to_end(page)

    def _discard(self, page: int) -> None:
        """Forget a page that nobody runs, and free its room."""
        self._index.remove(page)
        if page < self.num_pages:
            del self._idle[page]
            self._free.append(page)
        else:
            del self._stored[page]
            self._host_free.append(page)

    def _take(self, table: PageTable, page: int) -> None:
        """One more table has this page, which may still be on its way from the host."""
        self._idle.pop(page, None)
        self._references[page] += 1
        if self._copies[page] and self._store.done(self._copies[page]):
            self._copies[page] = 0
        table._arrival = max(table._arrival, self._copies[page])

    def _copy_page(self, table: PageTable, source: int, count: int) -> None:
        """Add a page of its own to a table, with the first `count` slots of a page just touched.

        If that is the only free page it becomes the table's: who allocates lets it move to the
        host, or be forgotten, and finds its content still there.
        """
        if source < self.num_pages:
            (page,) = self._allocate(1)
            self._store.wait(self._copies[source])
            self._copy_slots(source, page, count)
        else:
            del self._stored[source]  # the page that makes room must not push it out
            (page,) = self._claim(1)
            self._stored[source] = None
            self._copies[page] = self._store.load([source - self.num_pages], [page])
            table._arrival = max(table._arrival, self._copies[page])
        table.pages.append(page)
        table.length += count

    def _copy_slots(self, source: int, target: int, count: int) -> None:
        """Copy the first slots of a page to those of another."""
        old, new = source * PAGE, target * PAGE
        self._pool[:, new : new + count] = self._pool[:, old : old + count]

    def _copy_behind(self, table: PageTable, start: int, source_slots: Tensor) -> None:
        """Copy slots of the pool to slot `start` of the sequence and those behind it.

        The targets are stretches of pages: slices, which cost a sixth of an index over all layers.
        """
        rows = self._pool.index_select(1, source_slots.to(self._device, non_blocking=True))
        done = 0
        while done < rows.shape[1]:
            number, offset = divmod(start + done, PAGE)
            count = min(PAGE - offset, rows.shape[1] - done)
            target = table.pages[number] * PAGE + offset
            self._pool[:, target : target + count] = rows[:, done : done + count]
            done += count

    def _allocate(self, count: int) -> list[int]:
        """So many of the free pages, for what is launched next on the current stream to write."""
        pages = self._claim(count)
        if ticket := max(self._copies[page] for page in pages):
            self._store.wait(ticket)
        for page in pages:
            self._copies[page] = 0
        return pages

    def _claim(self, count: int) -> list[int]:
        """So many of the free pages; a copy may still read them, or write to them."""
        if count > len(self._free):
            self._evict(count - len(self._free))
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._references[page] = 1
        return pages

    def _evict(self, count: int) -> None:
        """Free the idle pages used least recently; the host keeps as many of them as it can."""
        leaving = [self._idle.popitem(last=False)[0] for _ in range(count)]
        room = len(self._host_free) + len(self._stored)
        saved = leaving[max(count - room, 0) :]
        while len(self._host_free) < len(saved):
            place, _ = self._stored.popitem(last=False)
            self._index.remove(place)
            self._host_free.append(place)
        for page in leaving[: count - len(saved)]:
            self._index.remove(page)
        if saved:
            places = [self._host_free.pop() for _ in saved]
            ticket = self._store.save(saved, [place - self.num_pages for place in places])
            for page, place in zip(saved, places, strict=True):
                self._index.rename(page, place)
                self._stored[place] = None
                self._copies[page] = ticket
        self._free += leaving

    def _bring_back(self, table: PageTable, stored: Sequence[int]) -> None:
        """Add pages from the host to a table, from the first, as many as there are free pages."""
        for place in reversed(stored):
            self._stored.move_to_end(place)  # just used, and the end before the beginning
        coming = list(stored[: self.num_free_pages])
        for place in coming:
            del self._stored[place]  # the pages that make room must not push it out
        while coming:
            # No more at once than have room to trade places: then nothing is forgotten.
            room = len(self._free) + len(self._host_free)
            places, coming = coming[: max(room, 1)], coming[max(room, 1) :]
            pages = self._claim(len(places))
            ticket = self._store.load([place - self.num_pages for place in places], pages)
            for place, page in zip(places, pages, strict=True):
                self._index.rename(place, page)
                self._host_free.append(place)
                self._copies[page] = ticket
            table.pages += pages
            table._arrival = max(table._arrival, ticket)

    def _drop(self, page: int) -> None:
        self._references[page] -= 1
        assert self._references[page] >= 0
        if self._references[page] == 0:
            if page in self._index:
                self._idle[page] = None
            else:
                self._free.append(page)
