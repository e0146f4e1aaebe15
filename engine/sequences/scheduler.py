"""Who runs in the next pass, and with how many rows.

First come first served, round robin per key. Prompts and trees ride the same pass. A sequence
owns all pages its pending tokens need from its admission on; what is left of the pool is scratch
for trees. When pages run out: trees shrink, then the youngest sequence pauses (its pages are
dropped; its tokens are run again in one pass later, so its text does not change).
"""

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf

from engine.kv.cache import KVCache
from engine.kv.page_pool import PAGE
from engine.kv.page_table import PageTable
from engine.sequences.sequence import Sequence, Status
from engine.spec import TILE
from engine.timing import PassTimes, smoothed

log = logging.getLogger(__name__)

LONGER = 1.25  # a pass with prompt rows may last this much longer than one without
AIM = 1.12  # and is planned to: times vary


@dataclass(frozen=True)
class Turn:
    """What one sequence does in a pass."""

    sequence: Sequence
    chain: int  # pending tokens to run, in order; the last pending one is the tree's root
    room: int  # rows its tree may have; 0: the prompt does not end in this pass

    @property
    def is_decoding(self) -> bool:
        """Whether a draft may be made for it."""
        return self.chain == 1 and self.sequence.is_decoding


class PromptCap:
    """How many prompt rows ride beside decoding sequences: what the weights' travel hides.

    The times of passes say how many rows fit. Where they were wrong, the share of these rows that
    is taken halves when a pass was too long, and recovers.
    """

    def __init__(self, passes: PassTimes, largest: int) -> None:
        self._passes = passes
        self._largest = largest
        self._share = 1.0
        self._plain_seconds = 0.0  # smoothed, of a pass without prompt rows; 0 before the first

    def rows(self, beside: int, context: int = 0) -> int:
        """Prompt rows, behind so many tokens, for a pass that has `beside` rows without them."""
        allowed = AIM * (self._plain_seconds or self._passes.expect(beside) or 0.0)
        rows = TILE
        while rows < self._largest:
            pairs = 2 * rows * (context + rows)
            if (self._passes.expect(beside + 2 * rows, pairs) or inf) > allowed:
                break
            rows *= 2
        return max(int(rows * self._share), TILE)

    def observe(self, seconds: float, *, with_prompt: bool, decoding: bool) -> None:
        """A pass took so long."""
        if decoding and not with_prompt:
            self._plain_seconds = smoothed(self._plain_seconds or seconds, seconds, 0.2)
        elif decoding and self._plain_seconds:
            if seconds > LONGER * self._plain_seconds:
                self._share = max(self._share / 2, 1 / 64)
            else:
                self._share = min(self._share * 1.25, 1.0)


class Scheduler:
    """Waiting, running and paused sequences of one engine."""

    def __init__(
        self,
        cache: KVCache,
        *,
        max_sequences: int,
        max_rows: int,
        scratch_rows: int,
        draft_rows: int,
        release: Callable[[Sequence], None],
        reclaim: Callable[[], None],
        num_reclaimable: Callable[[], int],
        passes: PassTimes,
    ) -> None:
        """`max_rows` bounds a pass, `scratch_rows` a tree, `draft_rows` what its draft stores here.

        `release` tells who left the pages; `reclaim` gives back the `num_reclaimable` pages that
        drafts hold; `passes` knows how long passes take.
        """
        self.cache = cache
        self.max_sequences = max_sequences
        self.max_rows = max_rows
        self.scratch_rows = scratch_rows
        self.draft_rows = draft_rows
        self.release = release
        self.reclaim = reclaim
        self.num_reclaimable = num_reclaimable
        self.cap = PromptCap(passes, max_rows)
        self.running: list[Sequence] = []  # oldest first
        self.paused: deque[Sequence] = deque()  # they were running: before any waiting one
        self._waiting: OrderedDict[str, deque[Sequence]] = OrderedDict()

    @property
    def num_waiting(self) -> int:
        return len(self.paused) + sum(map(len, self._waiting.values()))

    def all(self) -> Iterator[Sequence]:
        yield from self.running
        yield from self.paused
        for line in self._waiting.values():
            yield from line

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence behind those of the same key."""
        self._waiting.setdefault(sequence.key, deque()).append(sequence)

    def adopt(self, sequence: Sequence, table: PageTable | None) -> None:
        """Take a fork of a running sequence with its pages, None if there were too few.

        It runs if there is room; else it waits in front of all others.
        """
        if table is not None and len(self.running) < self.max_sequences:
            sequence.run(table)
            self.running.append(sequence)
            return
        if table is not None:
            self.cache.close(table, sequence.tokens)
        sequence.pause()
        self.paused.append(sequence)

    def drop_cancelled(self) -> list[Sequence]:
        """Forget the sequences of clients that left."""
        gone = [s for s in self.all() if s.is_cancelled]
        for sequence in gone:
            self.remove(sequence)
        return gone

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that has ended, whatever its status."""
        if sequence.status is Status.RUNNING:
            self._stop(sequence)
        elif sequence.status is Status.PAUSED:
            self.paused.remove(sequence)
        elif sequence.status is Status.WAITING:
            self._waiting[sequence.key].remove(sequence)
            self._forget_empty(sequence.key)
        sequence.leave()

    def schedule(self) -> list[Turn]:
        """The turns of the next pass; empty when nobody can run."""
        for sequence in reversed(self.running.copy()):  # of those paused, the oldest goes on first
            self.cache.trim(sequence.pages)
            if sequence.is_long != bool(sequence.pages.salt):
                self._pause(sequence)  # it crossed the rope's border: all its KV is other now
        self._make_room()
        self._admit()
        return self._turns()

    def _make_room(self) -> None:
        """Every decoding sequence gets its one row, if need be at the cost of the youngest."""
        for sequence in list(self.running):
            if sequence.status is Status.RUNNING and not self._grow(sequence):
                self.reclaim()
            while sequence.status is Status.RUNNING and not self._grow(sequence):
                youngest = self.running[-1]
                log.info("%s paused: no free KV pages", youngest.request_id)
                self._pause(youngest)

    def _grow(self, sequence: Sequence) -> bool:
        return self.cache.reserve(sequence.pages, sequence.num_pending)

    def _pause(self, sequence: Sequence) -> None:
        self._stop(sequence)
        self.paused.appendleft(sequence)

    def _stop(self, sequence: Sequence) -> None:
        """Take a running sequence out of the passes, and its pages back."""
        self.running.remove(sequence)
        self.cache.close(sequence.pages, sequence.tokens)
        sequence.pause()
        self.release(sequence)

    def _admit(self) -> None:
        while len(self.running) < self.max_sequences and self.num_waiting:
            line = self.paused or next(iter(self._waiting.values()))
            if not self._open(line[0]):
                return
            sequence = line.popleft()
            self.running.append(sequence)
            if line is not self.paused:
                self._waiting.move_to_end(sequence.key)
                self._forget_empty(sequence.key)

    def _forget_empty(self, key: str) -> None:
        """Remove the queue of a key when it is empty."""
        if not self._waiting[key]:
            del self._waiting[key]

    def _open(self, sequence: Sequence) -> bool:
        """Give a sequence its pages, leaving one to grow for each that runs."""
        salt, spare = int(sequence.is_long), len(self.running)
        known = sequence.reusable
        missing = self.cache.num_pages_to_open(known, salt) + spare
        missing += -(-len(sequence.tokens) // PAGE) - -(-len(known) // PAGE)
        missing -= self.cache.num_free_pages
        if missing > self.num_reclaimable():
            return False
        if missing > 0:
            self.reclaim()
        table = self.cache.open(known, salt)
        granted = self.cache.reserve(table, len(sequence.tokens) - table.length)
        assert granted, "the pages it needs are free"
        sequence.run(table)
        return True

    def _turns(self) -> list[Turn]:
        """Trees share the free pages; prompts get what the trees must leave them of the rows."""
        # Who waits for pages from host memory lets the others go first.
        arrived = [s for s in self.running if self.cache.is_ready(s.pages)] or self.running
        decoding = [s for s in arrived if s.is_decoding]
        prompts = [s for s in arrived if not s.is_decoding]
        turns = [self._tree_turn(s, len(decoding) - i) for i, s in enumerate(decoding)]
        rows = self.max_rows - len(decoding)
        if decoding:
            beside = sum(min(turn.room, TILE) for turn in turns)
            context = max((prompt.pages.length for prompt in prompts), default=0)
            rows = min(self.cap.rows(beside, context), max(rows, TILE))
        for sequence in prompts:
            chain = min(sequence.num_pending, rows)
            if chain <= 0:
                break
            rows -= chain
            turns.append(Turn(sequence, chain, room=int(chain == sequence.num_pending)))
        return turns

    def _tree_turn(self, sequence: Sequence, sharing: int) -> Turn:
        """A decoding sequence's rows: its share of the free pages, at most `scratch_rows`.

        Half of the share is left to a draft whose own rows need pages too.
        """
        share = self.cache.num_free_pages // sharing
        if self.draft_rows:
            share //= 2
        spare = sequence.pages.capacity - sequence.pages.length
        room = max(min(self.scratch_rows, spare + share * PAGE), 1)
        granted = self.cache.reserve(sequence.pages, room)
        assert granted, "the share of free pages is free"
        return Turn(sequence, 1, room)
