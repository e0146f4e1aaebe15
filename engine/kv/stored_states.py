"""Stored states of recurrent layers: at the ends of prefixes whose pages are stored.

A state is as large as the KV of dozens of pages, and a prefix can only be shared up to a token
after which there is one. So few are kept: after the last two pages of a prompt, because templates
may change what follows them in the next turn, and at the end of an answer.

When their number is used up, the state with the least priority is dropped: the tokens that it
saves, more than a state that is stored for a part of its prefix, plus the priority of the last one
that was dropped (GreedyDual, Young 1994). So states that are not used again leave in the end.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from engine.recurrent.states import SequenceState, StatePool


@dataclass
class StoredState:
    """A state that no sequence owns.

    Args:
        slot: its number in the pool.
        parent: the serial number of the last full page of its prefix, or minus the salt.
        rest: the tokens after that page.
        length: the tokens of its prefix.
        saved: those of them that no shorter stored state saves.
        priority: the state with the least is dropped first.
    """

    slot: int
    parent: int
    rest: tuple[int, ...]
    length: int
    saved: int
    priority: int


class StoredStates:
    """The states of stored prefixes, by the last full page and the tokens after it."""

    def __init__(
        self, pool: StatePool, on_drop: Callable[[StoredState], None] = lambda stored: None
    ) -> None:
        """Create a collection without states.

        Args:
            pool: their memory.
            on_drop: called with each state that is dropped, before its memory is free.
        """
        self._pool = pool
        self._on_drop = on_drop
        self._by_parent: dict[int, list[StoredState]] = {}
        self._oldest = 0  # the priority of the state that was dropped last
        self._hits = 0  # sequences that began with a stored state
        self._evictions = 0  # stored states that were dropped

    @property
    def num_stored(self) -> int:
        """The number of stored states."""
        return sum(map(len, self._by_parent.values()))

    def __iter__(self) -> Iterator[StoredState]:
        for found in self._by_parent.values():
            yield from found

    def take_counts(self) -> tuple[int, int]:
        """Return how many sequences began with a stored state, and how many states were dropped.

        Both are counted since the last call.
        """
        counts = self._hits, self._evictions
        self._hits = self._evictions = 0
        return counts

    def find(self, parent: int, rest: Sequence[int]) -> StoredState | None:
        """Return the stored state after a page whose tokens are the longest prefix of `rest`."""
        found = self._by_parent.get(parent, ())
        fitting = [own for own in found if own.rest == tuple(rest[: len(own.rest)])]
        return max(fitting, key=lambda own: own.length, default=None)

    def open(self, stored: StoredState) -> SequenceState | None:
        """Return the state of a new sequence that begins with a stored one; None without room."""
        state = self._pool.open()
        if state is not None:
            stored.priority = self._oldest + stored.saved
            self._pool.copy_slot(stored.slot, state.slot)
            state.begin_at(stored.length)
            self._hits += 1
        return state

    def take_slot(self) -> int | None:
        """Return a slot for a state to store, for which another may be dropped; None if none is."""
        if not self._pool.num_unreserved:
            every = list(self)
            if not every:
                return None
            least = min(every, key=lambda own: own.priority)
            self._oldest = least.priority
            self.drop(least)
        return self._pool.take_slot()

    def add(
        self, slot: int, parent: int, rest: Sequence[int], length: int, shorter: int
    ) -> StoredState | None:
        """Store a state. If there is one of the same tokens, the slot is freed; return None then.

        Args:
            shorter: the length of the longest state that is stored for a part of its prefix.
        """
        same = self.find(parent, rest)
        if same is not None and len(same.rest) == len(rest):
            same.priority = self._oldest + same.saved
            self._pool.give_back(slot)
            return None
        saved = length - shorter
        made = StoredState(slot, parent, tuple(rest), length, saved, self._oldest + saved)
        self._by_parent.setdefault(parent, []).append(made)
        return made

    def drop(self, stored: StoredState) -> None:
        """Free a stored state."""
        self._on_drop(stored)
        found = self._by_parent[stored.parent]
        found.remove(stored)
        if not found:
            del self._by_parent[stored.parent]
        self._pool.give_back(stored.slot)
        self._evictions += 1

    def drop_after(self, parent: int) -> None:
        """Free the states after a page that is stored no longer."""
        for stored in list(self._by_parent.get(parent, ())):
            self.drop(stored)
