"""The scheduler: which sequences run in the next pass, and with how many rows.

Sequences are admitted in order of arrival, round robin over the keys of their requests. Prompts and
draft trees run in the same pass. From its admission on, a sequence owns all pages that its pending
tokens need; the other pages of the pool are used as scratch for trees. When pages run out, trees
get fewer rows. If that is not enough, the youngest sequence is paused: its pages are freed, and its
tokens are run again later, so its text does not change.
"""

import logging
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf

from engine.kv.cache import KVCache
from engine.kv.page_pool import PAGE
from engine.kv.page_table import PageTable
from engine.log_lines import of_request
from engine.sequences.sequence import Status, TokenSequence
from engine.spec import TILE
from engine.timing import PassTimes, smoothed

log = logging.getLogger(__name__)

MAX_SLOWDOWN = 1.25  # the longest pass with prompt rows, relative to a pass without
PLANNED_SLOWDOWN = 1.04  # the relative length that is planned for; lower, since times vary


@dataclass(frozen=True)
class Turn:
    """One sequence's part of a pass.

    Args:
        sequence: the sequence that runs.
        num_pending: the number of pending tokens to run, in order. The last pending token is the
            root of the sequence's tree.
        max_tree_rows: the most rows of the tree, the root included; 0 if the prompt does not end in
            this pass.
    """

    sequence: TokenSequence
    num_pending: int
    max_tree_rows: int

    @property
    def num_rows(self) -> int:
        """The most rows in the pass: the root is the last pending token and a row of the tree."""
        return self.num_pending + max(self.max_tree_rows - 1, 0)

    @property
    def is_decoding(self) -> bool:
        """Whether the sequence may have a draft in this pass."""
        return self.num_pending == 1 and self.sequence.is_decoding


class PrefillBudget:
    """The number of prompt rows that may join a pass with decoding sequences.

    As long as a pass waits for weights anyway, prompt rows cost no time. The expected times of
    passes say how many rows that is. If a pass takes too long all the same, the share of these rows
    that is used is halved; after passes that are short enough it grows again.
    """

    def __init__(self, passes: PassTimes, largest: int) -> None:
        self._passes = passes
        self._largest = largest
        self._share = 1.0
        self._plain_seconds = 0.0  # smoothed time of a pass without prompts; 0: none yet

    def rows(self, beside: int, context: int = 0) -> int:
        """Return how many prompt tokens may join a pass that has `beside` other rows.

        `context` is the number of cached tokens that the prompt rows see.
        """
        allowed = PLANNED_SLOWDOWN * (self._plain_seconds or self._passes.expect(beside) or 0.0)

        def expected(rows: int) -> float:
            return self._passes.expect(beside + rows, rows * (context + rows / 2)) or inf

        more = range(2 * TILE, self._largest + 1, TILE)
        tiles = 1 + bisect_right(more, allowed, key=expected)
        return max(int(tiles * self._share), 1) * TILE

    def observe(self, seconds: float, *, with_prompt: bool, decoding: bool) -> None:
        """Record the duration of a finished pass and adapt the share of prompt rows.

        Args:
            with_prompt: whether the pass had prompt rows.
            decoding: whether it had decoding sequences.
        """
        if decoding and not with_prompt:
            self._plain_seconds = smoothed(self._plain_seconds or seconds, seconds, 0.2)
        elif decoding and self._plain_seconds:
            if seconds > MAX_SLOWDOWN * self._plain_seconds:
                self._share = max(self._share / 2, 1 / 64)
            else:
                self._share = min(self._share * 1.25, 1.0)


class Scheduler:
    """The waiting, running and paused sequences of one engine."""

    def __init__(
        self,
        cache: KVCache,
        *,
        max_sequences: int,
        max_rows: int,
        scratch_rows: int,
        draft_rows: int,
        release: Callable[[TokenSequence], None],
        reclaim: Callable[[], None],
        num_reclaimable: Callable[[], int],
        passes: PassTimes,
    ) -> None:
        """Create a scheduler without sequences.

        Args:
            max_sequences: the most running sequences.
            max_rows: the most rows of a pass, as planned.
            scratch_rows: the most rows of a tree.
            draft_rows: the most scratch rows that a tree's draft stores in this cache; 0 if it has
                a cache of its own, or none.
            release: called with each sequence that stops running, after its pages were freed.
            reclaim: frees the scratch pages that drafts hold in this cache.
            num_reclaimable: returns how many pages `reclaim` would free.
            passes: the expected times of passes.
        """
        self.cache = cache
        self.max_sequences = max_sequences
        self.max_rows = max_rows
        self._lowered_rows: int | None = None  # after a pass that did not fit the memory
        self.alone: TokenSequence | None = None  # the only one to run: see `lower_max_rows`
        self.scratch_rows = scratch_rows
        self.draft_rows = draft_rows
        self.release = release
        self.reclaim = reclaim
        self.num_reclaimable = num_reclaimable
        self.prefill_budget = PrefillBudget(passes, max_rows)
        self.running: list[TokenSequence] = []  # oldest first
        self.paused: deque[TokenSequence] = deque()  # resumed before any waiting one is admitted
        self._waiting: OrderedDict[str, deque[TokenSequence]] = OrderedDict()

    @property
    def allowed_rows(self) -> int:
        """The most rows of the next pass: `max_rows`, or fewer after one that did not fit."""
        return self._lowered_rows or self.max_rows

    @property
    def num_waiting(self) -> int:
        """The number of waiting and paused sequences."""
        return len(self.paused) + sum(map(len, self._waiting.values()))

    def all_sequences(self) -> Iterator[TokenSequence]:
        """Yield all sequences: the running, then the paused, then the waiting ones."""
        yield from self.running
        yield from self.paused
        for queue in self._waiting.values():
            yield from queue

    def add(self, sequence: TokenSequence) -> None:
        """Append a new sequence to the queue of its key."""
        self._waiting.setdefault(sequence.key, deque()).append(sequence)

    def add_fork(self, sequence: TokenSequence, table: PageTable | None) -> None:
        """Add a fork of a running sequence.

        It runs at once if it has pages and fewer than `max_sequences` run. Otherwise it is paused,
        and resumes when there is room, before waiting sequences.

        Args:
            table: the pages of the fork; None if there were too few free pages for them.
        """
        if table is not None and len(self.running) < self.max_sequences:
            sequence.run(table)
            self.running.append(sequence)
            return
        if table is not None:
            self.cache.close(table, sequence.tokens)
        self.add_paused(sequence)

    def add_paused(self, sequence: TokenSequence) -> None:
        """Add a sequence that has tokens of an answer and no pages; it resumes in its turn."""
        sequence.pause()
        self.paused.append(sequence)

    def lower_max_rows(self, turns: Sequence[Turn]) -> None:
        """Give the next passes at most half the rows of these turns, which did not fit the memory.

        If the pass had a tile at most, its sequence with the most tokens runs alone until a pass
        succeeds.
        """
        rows = min(sum(turn.num_rows for turn in turns), self.allowed_rows)
        self._lowered_rows = max(rows // 2, 1)
        if rows <= TILE:
            self.alone = max((turn.sequence for turn in turns), key=lambda own: len(own.tokens))

    def raise_max_rows(self) -> None:
        """Give the next passes an eighth more rows than the last one, up to `max_rows`."""
        self.alone = None
        more = self.allowed_rows + max(self.allowed_rows // 8, 1)
        self._lowered_rows = more if more < self.max_rows else None

    def drop_cancelled(self) -> list[TokenSequence]:
        """Remove and return the sequences whose clients have left."""
        cancelled = [s for s in self.all_sequences() if s.is_cancelled]
        for sequence in cancelled:
            self.remove(sequence)
        return cancelled

    def remove(self, sequence: TokenSequence) -> None:
        """Remove a sequence, whatever its status, and mark it as finished."""
        if sequence.status is Status.RUNNING:
            self._stop(sequence)
        elif sequence.status is Status.PAUSED:
            self.paused.remove(sequence)
        elif sequence.status is Status.WAITING:
            self._waiting[sequence.key].remove(sequence)
            self._remove_empty_queue(sequence.key)
        sequence.mark_finished()

    def schedule(self) -> list[Turn]:
        """Return the turns of the next pass. The list is empty if no sequence can run."""
        # In reverse order: of several that are paused here, the oldest is then resumed first.
        for sequence in reversed(self.running.copy()):
            self.cache.trim(sequence.pages)
            if sequence.is_long != bool(sequence.pages.salt):
                # It has grown beyond the original length of the rope: its KV has to be recomputed.
                self._pause(sequence)
            elif not self.cache.is_usable(sequence.pages):
                self._pause(sequence)
        self._make_room()
        self._admit()
        return self._plan_turns()

    def _make_room(self) -> None:
        """Reserve pages for the pending tokens of all running sequences.

        If there are too few, reclaim the drafts' scratch pages, then pause the youngest sequences.
        """
        for sequence in list(self.running):
            if sequence.status is Status.RUNNING and not self._reserve_pending(sequence):
                self.reclaim()
            while sequence.status is Status.RUNNING and not self._reserve_pending(sequence):
                if self.pause_youngest() or self.cache.restore(1):
                    continue
                self._pause_for_pages(sequence)

    def _reserve_pending(self, sequence: TokenSequence) -> bool:
        """Reserve pages for a sequence's pending tokens. Return False if too few are free."""
        return self.cache.reserve(sequence.pages, sequence.num_pending)

    def pause_youngest(self) -> bool:
        """Pause the youngest running sequence if it is not the only one. Return whether it was."""
        if len(self.running) < 2:
            return False
        self._pause_for_pages(self.running[-1])
        return True

    def _pause_for_pages(self, sequence: TokenSequence) -> None:
        http_id = sequence.request.message.http_id
        log.info(
            "%s is paused: no KV pages are free", sequence.request_id, extra=of_request(http_id)
        )
        self._pause(sequence)

    def _pause(self, sequence: TokenSequence) -> None:
        self._stop(sequence)
        self.paused.appendleft(sequence)

    def _stop(self, sequence: TokenSequence) -> None:
        """Stop a running sequence and free its pages. Its status becomes paused."""
        self.running.remove(sequence)
        self.cache.close(sequence.pages, sequence.tokens)
        sequence.pause()
        self.release(sequence)

    def _admit(self) -> None:
        """Start paused and waiting sequences, in order, until one does not get its pages."""
        while len(self.running) < self.max_sequences and self.num_waiting:
            queue = self.paused or next(iter(self._waiting.values()))
            if not self._try_admit(queue[0]):
                return
            sequence = queue.popleft()
            self.running.append(sequence)
            if queue is not self.paused:
                self._waiting.move_to_end(sequence.key)
                self._remove_empty_queue(sequence.key)

    def _remove_empty_queue(self, key: str) -> None:
        """Remove the queue of a key when it is empty."""
        if not self._waiting[key]:
            del self._waiting[key]

    def _try_admit(self, sequence: TokenSequence) -> bool:
        """Give a sequence the pages for all its tokens, and return True if it can run.

        One free page is left for each running sequence, so that it can grow.
        """
        salt, spare = int(sequence.is_long), len(self.running)
        known = sequence.reusable
        missing = self.cache.num_pages_to_open(known, salt) + spare
        missing += -(-len(sequence.tokens) // PAGE) - -(-len(known) // PAGE)
        missing -= self.cache.num_free_pages
        if not self.running and missing > self.num_reclaimable():
            missing -= self.cache.restore(missing)  # one sequence can always run
        if missing > self.num_reclaimable():
            return False
        if missing > 0:
            self.reclaim()
        table = self.cache.open(known, salt)
        granted = self.cache.reserve(table, len(sequence.tokens) - table.length)
        assert granted, "the pages it needs are free"
        sequence.run(table)
        return True

    def _plan_turns(self) -> list[Turn]:
        """Return the turns of a pass: trees share the free pages, prompts the remaining rows."""
        # Sequences whose pages are still being read from the disk run in a later pass, and so do
        # those whose pages are loaded from the host, unless there are no others.
        read = [s for s in self.running if s.pages.reading is None]
        for sequence in read:
            sequence.note_cached()
        arrived = [s for s in read if self.cache.is_ready(s.pages)] or read
        arrived = [s for s in read if s is self.alone] or arrived
        decoding = [s for s in arrived if s.is_decoding][: self.allowed_rows]
        prompts = [s for s in arrived if not s.is_decoding]
        most = self.scratch_rows
        if self._lowered_rows is not None:
            most = min(most, self.allowed_rows // max(len(decoding), 1))
        turns = [self._plan_tree(s, len(decoding) - i, most) for i, s in enumerate(decoding)]
        rows = self.allowed_rows - len(decoding)
        if decoding:
            beside = sum(min(turn.max_tree_rows, TILE) for turn in turns)
            context = max((prompt.pages.length for prompt in prompts), default=0)
            if self._lowered_rows is None:
                rows = max(rows, TILE)
            rows = min(self.prefill_budget.rows(beside, context), rows)
        for sequence in prompts:
            num_pending = min(sequence.num_pending, rows)
            if num_pending <= 0:
                break
            rows -= num_pending
            ends = num_pending == sequence.num_pending
            turns.append(Turn(sequence, num_pending, max_tree_rows=int(ends)))
        return turns

    def _plan_tree(self, sequence: TokenSequence, sharing: int, most: int) -> Turn:
        """Return a decoding sequence's turn, with its share of the free pages for its tree.

        If the tree's draft stores rows in this cache too, half of the share is left for them.

        Args:
            sharing: the number of sequences that share the free pages, this one included.
            most: the most rows of the tree.
        """
        share = self.cache.num_free_pages // sharing
        if self.draft_rows:
            share //= 2
        spare = sequence.pages.capacity - sequence.pages.length
        max_rows = max(min(most, spare + share * PAGE), 1)
        granted = self.cache.reserve(sequence.pages, max_rows)
        assert granted, "the share of free pages is free"
        return Turn(sequence, 1, max_rows)
