"""The KV cache: one pool of pages, prefix reuse, scratch rows, copy on fork.

A page holds 64 token slots of every layer; pages never move. A sequence owns a `PageTable`: slot
j of the sequence is `pages[j // 64] * 64 + j % 64`. The first `length` slots hold the KV of
verified tokens; what a pass or a draft writes lands in the slots behind them (scratch) and
becomes part of the prefix only through `keep`, which compacts the accepted rows.

Full pages are immutable and indexed by the tokens that led to them, so a later prompt with the
same beginning shares them. An index key is (serial of the parent page, the page's tokens): exact,
no hashes to collide. Unreferenced pages stay indexed until their room is needed, the end of a
prefix going before its beginning.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

PAGE = 64  # token slots of a page


@dataclass
class PageTable:
    """The pages of one sequence."""

    salt: int = 0  # sequences of different salts share nothing (rope length groups)
    pages: list[int] = field(default_factory=list)
    length: int = 0  # verified tokens stored
    num_published: int = 0  # leading pages that are immutable and indexed
    _slots: Tensor | None = None

    @property
    def capacity(self) -> int:
        return len(self.pages) * PAGE


class KVCache:
    """Keys and values of all layers, [L, slots, kv heads, head dim], and who owns which page."""

    def __init__(
        self,
        num_layers: int,
        num_pages: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        prefix_cache: bool = True,
    ) -> None:
        shape = (num_layers, num_pages * PAGE, num_kv_heads, head_dim)
        # Zeros, not empty: a masked slot is multiplied by weight zero, and 0 x NaN is NaN.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.num_pages = num_pages
        self._prefix_cache = prefix_cache
        self._device = device
        self._free = list(range(num_pages - 1, -1, -1))
        self._references = [0] * num_pages
        self._index: dict[tuple[int, tuple[int, ...]], int] = {}
        self._keys_of: dict[int, tuple[int, tuple[int, ...]]] = {}
        self._serials: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # indexed, unreferenced; oldest first
        self._next_serial = 1
        self._offsets = torch.arange(PAGE)

    @property
    def num_free_pages(self) -> int:
        """Pages that can be had now: never used, or kept only for a prefix nobody runs."""
        return len(self._free) + len(self._idle)

    def open(self, tokens: Sequence[int], salt: int = 0) -> PageTable:
        """A table for a sequence that begins with these tokens, sharing the longest stored prefix.

        The last token is never taken from the cache: its row must give logits.
        """
        table = PageTable(salt=salt)
        parent = -salt
        for first in range(0, len(tokens) - PAGE, PAGE):
            page = self._index.get((parent, tuple(tokens[first : first + PAGE])))
            if page is None:
                break
            self._take(page)
            table.pages.append(page)
            parent = self._serials[page]
        table.num_published = len(table.pages)
        table.length = table.capacity
        return table

    def reserve(self, table: PageTable, rows: int) -> bool:
        """Make room for `rows` scratch slots behind the prefix; False when pages run out."""
        missing = -(-(table.length + rows) // PAGE) - len(table.pages)
        if missing > self.num_free_pages:
            return False
        for _ in range(missing):
            table.pages.append(self._allocate())
            table._slots = None
        return True

    def room(self, table: PageTable) -> int:
        """The most scratch rows `reserve` could grant this table now."""
        return table.capacity + self.num_free_pages * PAGE - table.length

    def slots(self, table: PageTable) -> Tensor:
        """Slot numbers of the sequence in order, [capacity] int64 on the device."""
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
        moved = [(row, place) for place, row in enumerate(rows) if row != place]
        if moved:
            slots = self.slots(table)
            where = torch.tensor(moved, dtype=torch.int64).to(self._device) + table.length
            source, target = slots[where[:, 0]], slots[where[:, 1]]
            self.keys[:, target] = self.keys[:, source]
            self.values[:, target] = self.values[:, source]
        table.length += len(rows)

    def publish(self, table: PageTable, tokens: Sequence[int]) -> None:
        """Index the pages that verified tokens have filled; `tokens` is the whole sequence."""
        if not self._prefix_cache:
            return
        while (table.num_published + 1) * PAGE <= table.length:
            number = table.num_published
            parent = self._serials[table.pages[number - 1]] if number else -table.salt
            key = (parent, tuple(tokens[number * PAGE : (number + 1) * PAGE]))
            page = table.pages[number]
            twin = self._index.get(key)
            if twin is None:
                self._index[key] = page
                self._keys_of[page] = key
                self._serials[page] = self._next_serial
                self._next_serial += 1
            elif twin != page:
                self._take(twin)
                table.pages[number] = twin
                table._slots = None
                self._drop(page)
            table.num_published += 1

    def fork(self, table: PageTable) -> PageTable | None:
        """A second sequence with the same prefix; None without a page for the partial one."""
        full = table.length // PAGE
        rest = table.length - full * PAGE
        if rest and self.num_free_pages == 0:
            return None
        twin = PageTable(table.salt, table.pages[:full], table.length, table.num_published)
        for page in twin.pages:
            self._take(page)
        if rest:
            page = self._allocate()
            source, target = table.pages[full] * PAGE, page * PAGE
            for pool in (self.keys, self.values):
                pool[:, target : target + rest] = pool[:, source : source + rest]
            twin.pages.append(page)
        return twin

    def trim(self, table: PageTable) -> None:
        """Give scratch pages back that the prefix does not reach."""
        wanted = -(-table.length // PAGE)
        for page in reversed(table.pages[wanted:]):
            self._drop(page)
        if wanted < len(table.pages):
            del table.pages[wanted:]
            table._slots = None

    def close(self, table: PageTable) -> None:
        """Give all pages of a sequence back; indexed ones stay findable until room is needed."""
        for page in reversed(table.pages):
            self._drop(page)
        table.pages.clear()
        table.length = table.num_published = 0
        table._slots = None

    def _allocate(self) -> int:
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._idle.popitem(last=False)
            del self._index[self._keys_of.pop(page)]
            del self._serials[page]
        self._references[page] = 1
        return page

    def _take(self, page: int) -> None:
        self._idle.pop(page, None)
        self._references[page] += 1

    def _drop(self, page: int) -> None:
        self._references[page] -= 1
        assert self._references[page] >= 0
        if self._references[page] == 0:
            if page in self._serials:
                self._idle[page] = None
            else:
                self._free.append(page)
