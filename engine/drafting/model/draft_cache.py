"""Where a draft model keeps its keys and values: the prefix it drafts after, and scratch slots."""

from collections.abc import Callable, Sequence as Seq
from typing import Protocol

import torch

from engine.kv.cache import KVCache
from engine.kv.page_pool import PAGE
from engine.kv.page_table import PageTable
from engine.sequences.sequence import Sequence


class DraftCache(Protocol):
    """The keys and values that a draft model reads and writes."""

    cache: KVCache
    is_shared: bool  # with the target

    def prefix(self, sequence: Sequence) -> PageTable | None:
        """Return the stored prefix, with room after it for all tokens but the last, or None."""

    def keep_pending(self, sequence: Sequence) -> None:
        """Add all tokens but the last, which were run after the prefix, to the prefix."""

    def accept(self, sequence: Sequence, slots: Seq[int]) -> None:
        """Add the next tokens to the prefix; these slots of the pool hold their KV."""

    def release(self, sequence: Sequence) -> None:
        """Give the pages back: the sequence ended or was paused."""


class SharedCache:
    """The target's own cache (SubSpec). After each pass its prefix is exact and complete."""

    is_shared = True

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache

    def prefix(self, sequence: Sequence) -> PageTable | None:
        return sequence.pages

    def keep_pending(self, sequence: Sequence) -> None:
        """Do nothing: only the last token is pending."""

    def accept(self, sequence: Sequence, slots: Seq[int]) -> None:
        """Do nothing: the target's own rows are kept."""

    def release(self, sequence: Sequence) -> None:
        """Do nothing: the engine gives the pages back."""


class OwnCache:
    """A separate draft model's cache, with prefix reuse of its own."""

    is_shared = False

    def __init__(self, cache: KVCache, is_long: Callable[[int], bool]) -> None:
        """Take a cache; `is_long` tells if the draft's rope has other frequencies at a length."""
        self.cache = cache
        self._is_long = is_long
        self._tables: dict[Sequence, PageTable] = {}

    def prefix(self, sequence: Sequence) -> PageTable | None:
        table = self._tables.get(sequence)
        salt = int(self._is_long(len(sequence.tokens)))
        if table is None or table.salt != salt:
            self.release(sequence)
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
    """Slots for the drafted rows of one sequence, in pages that no prefix uses."""

    def __init__(self, cache: KVCache, most: int) -> None:
        """Take at most `most` slots at a time."""
        self._cache = cache
        self._most = most
        self._table = PageTable()
        self._free: list[int] = []

    @property
    def num_pages(self) -> int:
        return len(self._table.pages)

    def take(self) -> int | None:
        """Return a slot, or None when the pool has no page left."""
        capacity = self._table.capacity
        may_grow = not self._free and capacity + PAGE <= self._most
        if may_grow and self._cache.reserve(self._table, capacity + 1):
            page = self._table.pages[-1]
            self._free += range((page + 1) * PAGE - 1, page * PAGE - 1, -1)
        return self._free.pop() if self._free else None

    def give_back(self, slots: Seq[int]) -> None:
        """Let slots be taken again."""
        self._free += slots

    def close(self) -> None:
        """Give all pages back to the pool."""
        self._free.clear()
        self._cache.close(self._table)
