"""The KV cache of a draft model: each sequence's prefix, and scratch slots for drafted rows."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from engine.kv.cache import KVCache
from engine.kv.page_pool import PAGE
from engine.kv.page_table import PageTable
from engine.recurrent.branch import advance_states
from engine.recurrent.nodes import NodeMemory
from engine.sequences.sequence import TokenSequence


class DraftCache(Protocol):
    """The keys and values that a draft model reads and writes."""

    cache: KVCache
    nodes: NodeMemory | None  # of drafted rows in recurrent layers, if there are any
    is_shared: bool  # whether it is the target's own cache

    def prefix(self, sequence: TokenSequence) -> PageTable | None:
        """Return the stored prefix of a sequence, or None if there is no room.

        Its pages have room for all tokens of the sequence but the last.
        """

    def keep_pending(self, sequence: TokenSequence, rows: int | None = None) -> None:
        """Add the tokens that were run after the prefix to it.

        Args:
            rows: their number; None: all tokens but the last.
        """

    def catch_up(self, sequences: Sequence[TokenSequence]) -> None:
        """Bring the states of recurrent layers up to all tokens of the sequences but the last."""

    def accept(self, sequence: TokenSequence, slots: Sequence[int]) -> None:
        """Add the next tokens to the prefix. These slots of the pool hold their KV."""

    def release(self, sequence: TokenSequence) -> None:
        """Free the pages of a sequence that ended or was paused."""


class SharedCache:
    """The target's own cache (SubSpec). After each pass its prefix is exact and complete.

    So are the states of recurrent layers after `catch_up`. The draft only reads them.
    """

    is_shared = True

    def __init__(self, cache: KVCache, nodes: NodeMemory | None = None) -> None:
        self.cache = cache
        self.nodes = nodes

    def prefix(self, sequence: TokenSequence) -> PageTable | None:
        """Return the target's own prefix of the sequence."""
        return sequence.pages

    def keep_pending(self, sequence: TokenSequence, rows: int | None = None) -> None:
        """Do nothing: the target's pass has stored all tokens but the last."""

    def catch_up(self, sequences: Sequence[TokenSequence]) -> None:
        """Repeat the rows that the last pass accepted, which the next pass would do otherwise.

        That pass then leaves the states as they are while the draft reads them beside it.
        """
        if self.cache.states is not None:
            states = [own.pages.state for own in sequences if own.pages.state is not None]
            self.cache.states.replay(states)

    def accept(self, sequence: TokenSequence, slots: Sequence[int]) -> None:
        """Do nothing: the target's pass stores exact KV of the accepted tokens."""

    def release(self, sequence: TokenSequence) -> None:
        """Do nothing: the engine frees the sequence's pages."""


class OwnCache:
    """The cache of a separate draft model, with a prefix index of its own.

    States of recurrent layers, if there are any, are the draft's own too. They include the tokens
    of the prefix.
    """

    is_shared = False

    def __init__(
        self, cache: KVCache, is_long: Callable[[int], bool], nodes: NodeMemory | None = None
    ) -> None:
        """Take a cache.

        Args:
            is_long: returns True for a number of tokens at which the draft's rope has its other
                frequencies.
            nodes: the memory of drafted rows in recurrent layers; None if there are none.
        """
        self.cache = cache
        self.nodes = nodes
        self._is_long = is_long
        self._tables: dict[TokenSequence, PageTable] = {}

    def prefix(self, sequence: TokenSequence) -> PageTable | None:
        """Return the sequence's table in this cache.

        It is opened anew where the rope changed, and where a failed step has changed states.
        """
        table = self._tables.get(sequence)
        salt = int(self._is_long(len(sequence.tokens)))
        if table is None or table.salt != salt or not self.cache.is_usable(table):
            self.release(sequence)
            table = self._tables[sequence] = self.cache.open(sequence.tokens, salt)
        pending = len(sequence.tokens) - 1 - table.length
        return table if self.cache.reserve(table, max(pending, 0)) else None

    def keep_pending(self, sequence: TokenSequence, rows: int | None = None) -> None:
        """Add the tokens that were run after the prefix to it, and let other prompts find them."""
        table = self._tables[sequence]
        count = len(sequence.tokens) - 1 - table.length if rows is None else rows
        self.cache.append_rows(table, range(count))
        self.cache.publish(table, sequence.tokens)

    def catch_up(self, sequences: Sequence[TokenSequence]) -> None:
        """Do nothing: no pass of the target changes the states."""

    def accept(self, sequence: TokenSequence, slots: Sequence[int]) -> None:
        """Copy the KV of accepted rows to the prefix, and let the states include these rows.

        Without room the tokens are run again.
        """
        table = self._tables.get(sequence)
        if slots and table is not None and self.cache.reserve(table, len(slots)):
            if self.nodes is not None and table.state is not None:
                advance_states(table.state, self.nodes, slots)
            self.cache.append_copies(table, torch.tensor(slots))
            self.cache.publish(table, sequence.tokens)

    def release(self, sequence: TokenSequence) -> None:
        """Close the sequence's table. Its tokens can still be found by other prompts."""
        table = self._tables.pop(sequence, None)
        if table is not None:
            self.cache.close(table, sequence.tokens)


class Scratch:
    """Slots for the KV of one sequence's drafted rows, in pages that no prefix uses.

    A row with a slot also has memory for what it does to the states of recurrent layers. So have
    pending tokens while they run in a step with a root (`pending`): a step that is dropped then
    leaves the states as they are.
    """

    def __init__(self, cache: KVCache, most: int, nodes: NodeMemory | None = None) -> None:
        """Make an empty set of slots in `cache` that grows to at most `most` slots.

        Args:
            nodes: the memory for recurrent layers; None if there are none.
        """
        self.pending: list[int] = []  # the slots of pending tokens, which are in the prefix's pages
        self._cache = cache
        self._nodes = nodes
        self._taken: set[int] = set()
        self._most = most
        self._table = PageTable()
        self._free: list[int] = []

    @property
    def num_pages(self) -> int:
        return len(self._table.pages)

    def take(self) -> int | None:
        """Return a free slot, or None where the limit is reached or memory is used up."""
        if self._nodes is not None and not self._nodes.num_free:
            return None
        capacity = self._table.capacity
        may_grow = not self._free and capacity + PAGE <= self._most
        if may_grow and self._cache.reserve_pages(self._table, capacity + 1):
            page = self._table.pages[-1]
            self._free += range((page + 1) * PAGE - 1, page * PAGE - 1, -1)
        if not self._free:
            return None
        slot = self._free.pop()
        if self._nodes is not None:
            self._nodes.take(slot)
            self._taken.add(slot)
        return slot

    def give_back(self, slots: Sequence[int]) -> None:
        """Make slots free, so that they can be taken again."""
        self._free += slots
        if self._nodes is not None:
            self._nodes.give_back(slots)
            self._taken.difference_update(slots)

    def take_pending(self, slots: Sequence[int]) -> bool:
        """Take memory for pending tokens, whose KV is in these slots, in recurrent layers.

        Return False, and take none, if that leaves none for the root after them.
        """
        assert self._nodes is not None, "there are recurrent layers"
        self.drop_pending()  # of a step that has failed
        if self._nodes.num_free <= len(slots):
            return False
        for slot in slots:
            self._nodes.take(slot)
        self.pending += slots
        return True

    def drop_pending(self) -> None:
        """Free the memory of pending tokens."""
        if self._nodes is not None:
            self._nodes.give_back(self.pending)
        self.pending.clear()

    def close(self) -> None:
        """Free all slots and give their pages back to the pool."""
        self.drop_pending()
        self._free.clear()
        if self._nodes is not None:
            self._nodes.give_back([*self._taken])
            self._taken.clear()
        self._cache.close(self._table)
