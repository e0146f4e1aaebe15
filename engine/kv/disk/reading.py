"""The blocks of one prompt that are being read from the disk, in order."""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from engine.kv.disk.block import Block
from engine.kv.disk.store import QUEUED_BYTES, DiskStore

log = logging.getLogger(__name__)

MOST_AHEAD = 16  # blocks that are read before the first of them is taken


@dataclass(frozen=True)
class FoundPrefix:
    """The part of a prompt that is in memory and on the disk, found by its tokens.

    Args:
        num_pages: its leading full pages in memory.
        pages: the further ones on the disk, in order; the last may be a partial one.
        state: the states of recurrent layers at its end; None if there are no such layers.
        length: the tokens of all of it.
    """

    num_pages: int
    pages: tuple[Block, ...]
    state: Block | None
    length: int


@dataclass
class _Slot:
    """A block that was asked for, and its bytes when they have come; None: it cannot be read."""

    block: Block
    payload: Tensor | None = None
    is_read: bool = False

    def deliver(self, payload: Tensor | None) -> None:
        self.payload, self.is_read = payload, True


class Reading:
    """Blocks that a store reads ahead from the first `ask` on, and the caller takes in order.

    Args:
        store: reads the blocks.
        found: names them.
        tokens: the tokens of the prompt.
        sizes: the bytes of a page and of a state.
    """

    def __init__(
        self, store: DiskStore, found: FoundPrefix, tokens: Sequence[int], sizes: tuple[int, int]
    ) -> None:
        self.found = found
        self.tokens = tokens
        self.is_failed = False
        self._store = store
        self._sizes = sizes
        self._waiting = deque(found.pages)
        if found.state is not None:
            self._waiting.append(found.state)
        self._ahead = max(1, min(QUEUED_BYTES // sizes[0], MOST_AHEAD))
        self._asked: deque[_Slot] = deque()
        self._is_cancelled = False

    @property
    def is_over(self) -> bool:
        """Whether no further block will come."""
        return self.is_failed or not (self._asked or self._waiting)

    @property
    def has_next(self) -> bool:
        """Whether the next block has come, or will not come."""
        has_come = bool(self._asked) and self._asked[0].is_read
        return self.is_over or has_come or self._store.is_stalled

    def ask(self) -> None:
        """Ask for the next blocks, as many as may be read ahead. `take` asks for further ones."""
        while self._waiting and len(self._asked) < self._ahead:
            slot = _Slot(self._waiting.popleft())
            self._asked.append(slot)
            page, state = self._sizes
            nbytes = page if slot.block.kind == "page" else state
            self._store.read(slot.block, nbytes, lambda: not self._is_cancelled, slot.deliver)

    def take(self) -> tuple[Block, Tensor] | None:
        """Return the next block and its bytes, uint8; None if it has not come, or will not come."""
        if self.is_over:
            return None
        if not self._asked or not self._asked[0].is_read:
            self.is_failed = self._store.is_stalled
            if self.is_failed:
                log.warning("Reading KV from the disk takes too long. The prompt is computed")
            return None
        slot = self._asked.popleft()
        if slot.payload is None:
            self.is_failed = True
            return None
        self.ask()
        return slot.block, slot.payload

    def cancel(self) -> None:
        """Read no further blocks."""
        self._is_cancelled = True
