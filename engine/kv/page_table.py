"""The page table of a sequence: which pages hold its keys and values."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.kv.disk.reading import Reading
from engine.kv.page_pool import PAGE
from engine.recurrent.states import SequenceState
from engine.transfer import upload


@dataclass
class PageTable:
    """The pages of one sequence, in order: its slot j is `pages[j // PAGE] * PAGE + j % PAGE`.

    The first `length` slots, the prefix, hold the KV of verified tokens. The slots after them are
    scratch slots. Only `KVCache` changes a table, since it counts the references to each page.
    """

    salt: int = 0  # sequences with different salts share no page (see `engine/model/rope.py`)
    pages: list[int] = field(default_factory=list)
    length: int = 0  # verified tokens stored
    num_published: int = 0  # leading pages that are immutable and indexed
    ready_ticket: int = 0  # of the last copy into one of the pages (see `HostTier`)
    state: SequenceState | None = None  # in recurrent layers, of the same tokens
    reading: Reading | None = None  # the blocks that its next pages are read from
    _slots: Tensor | None = None

    @property
    def capacity(self) -> int:
        """The number of slots in all pages of the table."""
        return len(self.pages) * PAGE

    def slots(self, device: torch.device) -> Tensor:
        """Return the pool's numbers of all slots in order, [capacity] int64 on the device."""
        if self._slots is None:
            pages = torch.tensor(self.pages, dtype=torch.int64)
            slots = (pages[:, None] * PAGE + torch.arange(PAGE)).view(-1)
            self._slots = upload(slots, device)
        return self._slots

    def append(self, pages: Sequence[int], ready_ticket: int = 0) -> None:
        """Add pages at the end. Their content is complete after the copy `ready_ticket`."""
        self.pages += pages
        self.ready_ticket = max(self.ready_ticket, ready_ticket)
        self._slots = None

    def replace(self, number: int, page: int, ready_ticket: int) -> None:
        """Replace the page at index `number` by another page with the same content."""
        self.pages[number] = page
        self.ready_ticket = max(self.ready_ticket, ready_ticket)
        self._slots = None

    def extend_prefix(self, rows: int) -> None:
        """Add the next `rows` slots, whose tokens are verified, to the prefix."""
        self.length += rows

    def take_state(self) -> SequenceState | None:
        """Remove and return the state of the sequence."""
        state, self.state = self.state, None
        return state

    def begin_state(self, state: SequenceState) -> None:
        """Let the sequence have a state, which includes the tokens of the prefix."""
        self.state = state

    def begin_reading(self, reading: Reading | None) -> None:
        """Let the next pages be read from the disk; None: no longer."""
        self.reading = reading

    def publish_next(self) -> None:
        """Mark one more leading page as immutable and indexed."""
        self.num_published += 1

    def cut_scratch(self) -> list[int]:
        """Remove and return the pages after the last page of the prefix, the last one first."""
        first = -(-self.length // PAGE)
        removed = self.pages[first:]
        if removed:
            del self.pages[first:]
            self._slots = None
        return removed[::-1]

    def clear(self) -> list[int]:
        """Remove and return all pages, the last one first."""
        self.length = self.num_published = self.ready_ticket = 0
        return self.cut_scratch()
