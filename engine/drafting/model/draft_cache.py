"""Where a draft model's KV lives: behind whose prefix it drafts, and its scratch slots."""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Protocol

import torch

from engine.kv.cache import KVCache
from engine.kv.page_pool import PAGE
from engine.kv.page_table import PageTable
from engine.sequences.sequence import Sequence


class DraftCache(Protocol):
    """The KV a draft model reads and writes."""

    cache: KVCache
    is_shared: bool  # with the target

    def prefix(self, sequence: Sequence) -> PageTable | None:
        """The stored prefix, with room behind it for all tokens but the last; None: no room."""

    def keep_pending(self, sequence: Sequence) -> None:
        """All tokens but the last were run behind the prefix: they belong to it now."""

    def accept(self, sequence: Sequence, slots: Seq[int]) -> None:
        """The tokens behind the prefix have their KV in these slots of the pool."""

    def release(self, sequence: Sequence) -> None:
        """The sequence ended or was paused."""


class SharedCache:
    """The target's own cache (SubSpec): after each pass its prefix is exact and complete."""

    is_shared = True

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache

    def prefix(self, sequence: Sequence) -> PageTable | None:
        return sequence.pages

    def keep_pending(self, sequence: Sequence) -> None:
        """Nothing is pending but the last token."""

    def accept(self, sequence: Sequence, slots: Seq[int]) -> None:
        """The target's own rows are the ones kept."""

    def release(self, sequence: Sequence) -> None:
        """The engine gives the pages back."""


class OwnCache:
    """A separate draft model's cache, with prefix reuse of its own."""

    is_shared = False

    def __init__(self, cache: KVCache, is_long: Callable[[int], bool]) -> None:
        """`is_long`: whether the draft's rope has other frequencies at a length."""
        self.cache = cache
        self._is_long = is_long
        self._tables: dict[Sequence, PageTable] = {}

    def prefix(self, sequence: Sequence) -> PageTable | None:
        table = self._tables.get(sequence)
        salt = int(self._is_long(len(sequence.tokens)))
        if table is not None and table.salt != salt:
            self.cache.close(table, sequence.tokens)
            table = None
        if table is None:
            table = self._tables[sequence] = self.cache.open(sequence.tokens, salt)
        pending = len(sequence.tokens) - 1 - table.length
        return table if self.cache.reserve(table, max(pending, 0)) else None

    def keep_pending(self, sequence: Sequence) -> None:
        table = self._tables[sequence]
        self.cache.keep(table, range(len(sequence.tokens) - 1 - table.length))
        self.cache.publish(table, sequence.tokens)

    def accept(self, sequence: Sequence, slots: Seq[int]) -> None:
        table = self._tables.get(sequence)
        # Without room the tokens are run again.
        if slots and table is not None and self.cache.reserve(table, len(slots)):
            self.cache.keep_from(table, torch.tensor(slots))
            self.cache.publish(table, sequence.tokens)

    def release(self, sequence: Sequence) -> None:
        table = self._tables.pop(sequence, None)
        if table is not None:
            self.cache.close(table, sequence.tokens)


class Scratch:
    """Slots for one sequence's drafted rows, in pages of their own: no prefix moves them."""

    def __init__(self, cache: KVCache, most: int) -> None:
        """`most` slots at a time."""
        self._cache = cache
        self._most = most
        self._table = PageTable()
        self._free: list[int] = []

    @property
    def num_pages(self) -> int:
        return len(self._table.pages)

    def take(self, count: int) -> list[int]:
        """Up to `count` slots; fewer when the pool has no page left."""
        while len(self._free) < count and self._table.capacity + PAGE <= self._most:
            pages = len(self._table.pages)
            if not self._cache.reserve(self._table, self._table.capacity + 1):
                break
            for page in self._table.pages[pages:]:
                self._free += range((page + 1) * PAGE - 1, page * PAGE - 1, -1)
        return [self._free.pop() for _ in range(min(count, len(self._free)))]

    def give_back(self, slots: Seq[int]) -> None:
        self._free += slots

    def close(self) -> None:
        """All pages go back to the pool."""
        self._free.clear()
        self._cache.close(self._table)
