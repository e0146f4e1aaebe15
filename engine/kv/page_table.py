"""Which pages hold the keys and values of one sequence."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.kv.page_pool import PAGE


@dataclass
class PageTable:
    """The pages of one sequence: its slot j is `pages[j // PAGE] * PAGE + j % PAGE`.

    The first `length` slots, the prefix, hold the KV of verified tokens; those after them are
    scratch. Only `KVCache` changes a table, since it counts the references to each page.
    """

    salt: int = 0  # sequences of different salts share no page (rope length groups)
    pages: list[int] = field(default_factory=list)
    length: int = 0  # verified tokens stored
    num_published: int = 0  # leading pages that are immutable and indexed
    arrival: int = 0  # the ticket of the last copy that one of the pages waits for (`HostTier`)
    _slots: Tensor | None = None

    @property
    def capacity(self) -> int:
        """Slots of all pages."""
        return len(self.pages) * PAGE

    def slots(self, device: torch.device) -> Tensor:
        """Return the numbers of all slots in order, [capacity] int64 on the device."""
        if self._slots is None:
            pages = torch.tensor(self.pages, dtype=torch.int64)
            slots = (pages[:, None] * PAGE + torch.arange(PAGE)).view(-1)
            self._slots = slots.to(device, non_blocking=True)
        return self._slots

    def append(self, pages: Sequence[int], arrival: int = 0) -> None:
        """Add pages at the end, whose content is there after the copy of ticket `arrival`."""
        self.pages += pages
        self.arrival = max(self.arrival, arrival)
        self._slots = None

    def replace(self, number: int, page: int, arrival: int) -> None:
        """Let another page of the same content stand at place `number`."""
        self.pages[number] = page
        self.arrival = max(self.arrival, arrival)
        self._slots = None

    def extend_prefix(self, rows: int) -> None:
        """Count the next `rows` slots as verified."""
        self.length += rows

    def publish_next(self) -> None:
        """Count one more leading page as immutable and indexed."""
        self.num_published += 1

    def cut_scratch(self) -> list[int]:
        """Remove and return the pages that the prefix does not reach, the last one first."""
        first = -(-self.length // PAGE)
        removed = self.pages[first:]
        if removed:
            del self.pages[first:]
            self._slots = None
        return removed[::-1]

    def clear(self) -> list[int]:
        """Remove and return all pages, the last one first."""
        self.length = self.num_published = self.arrival = 0
        return self.cut_scratch()
