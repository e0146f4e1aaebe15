"""The KV cache: which sequence owns which pages of the pool, and which prefixes are stored.

Three parts work together here. `PagePool` is the device memory. `HostTier` keeps idle pages in host
memory. `KVCache` owns both: it hands pages to sequences, counts references, and finds stored
prefixes by their tokens.

A sequence holds a `PageTable`. A pass or a draft writes into the slots after the table's prefix
(scratch slots). `append_rows` moves the accepted rows to the first of these slots and adds them to
the prefix.

Full pages are immutable and indexed by their own tokens and all tokens before them, so that a later
prompt with the same first tokens shares them. The last, partial page of a finished sequence is
indexed too: a new prompt gets a copy of the rows it has in common with such a page, so the next
turn of a chat runs only its new tokens. Pages that no sequence refers to are called idle. They stay
indexed until their memory is needed. Then the least recently used ones move to host memory, and
later they are dropped from there. The last page of a prefix is always evicted before the pages
ahead of it, because a page is found by way of its parent: the parent of a device page is on the
device, and no page is stored longer than its parent.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.kv.page_pool import PAGE, PagePool
from engine.kv.page_table import PageTable
from engine.kv.pages import Pages
from engine.kv.stored_states import StoredState, StoredStates
from engine.messages import StateStats
from engine.recurrent.states import SequenceState, StatePool


class KVCache(Pages):
    """The owner of a pool's pages: it gives pages to sequences and finds stored prefixes.

    Args:
        pool: the device memory.
        prefix_cache: whether later sequences may share the pages of earlier ones.
        host_pages: how many idle pages to keep in host memory, which is allocated here and freed
            by `release`.
        states: the memory of recurrent layers; None if there are none. A prefix is then found
            only as far as a state is stored (`stored_states.py`).
    """

    def __init__(
        self,
        pool: PagePool,
        *,
        prefix_cache: bool = True,
        host_pages: int = 0,
        states: StatePool | None = None,
    ) -> None:
        stored = None if states is None else StoredStates(states, self._lose_state)
        super().__init__(pool, host_pages, stored)
        self.states = states
        self._prefix_cache = prefix_cache

    @property
    def num_host_pages(self) -> int:
        """The number of idle pages that are stored in host memory."""
        return self._host.num_stored

    def take_state_stats(self) -> StateStats | None:
        """Return the figures of states, with counts since the last call; None if there are none."""
        if self.states is None or self._stored is None:
            return None
        running, stored = self.states.num_running, self._stored
        nbytes = (running + stored.num_stored) * self.states.state_bytes
        return StateStats(running, stored.num_stored, nbytes, *stored.take_counts())

    def num_pages_to_open(self, tokens: Sequence[int], salt: int = 0) -> int:
        """Return how many free pages `open` and `reserve` take for a sequence of these tokens.

        A page that a running sequence uses can be shared and costs none. An idle page counts, and
        so does a page in host memory, which has to be loaded into a free device page.
        """
        shared = sum(
            page < self.num_pages and self._references[page] > 0
            for page in self._find(tokens, salt)[0]
        )
        return -(-len(tokens) // PAGE) - shared

    def open(self, tokens: Sequence[int], salt: int = 0) -> PageTable:
        """Return a table for a sequence with these tokens, sharing the longest stored prefix.

        The last token is never taken from the cache: its row must run to give logits. Pages in host
        memory are loaded, as many as there are free device pages. On CUDA these copies are still
        running when this returns (see `is_ready`). Where no full page matches any further, the
        rows that another page has in common with the tokens are copied.
        """
        found, stored = self._find(tokens, salt)
        parent = self._parent(found, salt)
        rest = tuple(tokens[len(found) * PAGE : len(tokens) - 1][:PAGE])
        if self._stored is not None:
            rest = () if stored is None else stored.rest
        if similar := self._index.find_longest_match(parent, rest):
            self._touch(similar[0])  # so that the pages loaded below evict it last
        pages = [page for page in found if page < self.num_pages]
        shared_ticket = self._add_references(pages)
        loaded, ticket = self._load_from_host(found[len(pages) :])
        pages += loaded
        full = len(pages)
        table = PageTable(
            salt=salt,
            pages=pages,
            length=full * PAGE,
            num_published=full,
            ready_ticket=max(shared_ticket, ticket),
        )
        if self.num_free_pages and (similar := self._index.find_longest_match(parent, rest)):
            self._copy_page(table, *similar)
        if stored is not None and table.length != stored.length:  # a page could not be loaded
            self._drop_references(table.clear())
            stored = None
        granted = self._give_state(table, stored)
        assert granted, "no more sequences run than there are states"
        return table

    def is_ready(self, table: PageTable) -> bool:
        """Return False while pages of the table are copied from the host: a pass would wait."""
        return self._host.is_done(table.ready_ticket)

    def reserve(self, table: PageTable, rows: int) -> bool:
        """Allocate pages for `rows` scratch slots after the prefix.

        A new table also gets the states of recurrent layers. Return False, and change nothing, if
        there are too few free pages, or no states.
        """
        if self._num_missing(table, rows) > self.num_free_pages or not self._give_state(table):
            return False
        return self.reserve_pages(table, rows)

    def reserve_pages(self, table: PageTable, rows: int) -> bool:
        """Do what `reserve` does, for a table that is not a sequence's and gets no states."""
        missing = self._num_missing(table, rows)
        if missing > self.num_free_pages:
            return False
        if missing > 0:
            table.append(self._allocate(missing))
        return True

    def _num_missing(self, table: PageTable, rows: int) -> int:
        """Return how many pages a table lacks for `rows` slots after the prefix."""
        return -(-(table.length + rows) // PAGE) - len(table.pages)

    def is_usable(self, table: PageTable) -> bool:
        """Return False if a failed pass has changed states of a running sequence.

        Its pages and states have to be freed then, and its tokens run again.
        """
        return table.state is None or table.state.is_at(table.length)

    def slots(self, table: PageTable) -> Tensor:
        """Return the slot numbers of the sequence in order, [capacity] int64 on the device.

        Make the current stream wait for copies from the host, so that kernels launched after this
        call read complete pages.
        """
        self._host.wait(table.ready_ticket)
        return table.slots(self.pool.device.torch_device)

    def append_rows(self, table: PageTable, rows: Sequence[int]) -> None:
        """Append accepted scratch rows to the prefix and move them next to each other.

        Kernels are launched in order on one stream, so the copy runs after the pass that wrote the
        rows and before the next pass that reads them.

        Args:
            rows: ascending numbers of scratch rows; row 0 is the first slot after the prefix.
        """
        in_place = sum(row == place for place, row in enumerate(rows))  # leading rows: no copy
        moved = [table.length + row for row in rows[in_place:]]
        if moved:
            slots = [table.pages[i // PAGE] * PAGE + i % PAGE for i in moved]
            self.pool.copy_rows(torch.tensor(slots), table.pages, table.length + in_place)
        if table.state is not None:
            table.state.extend(rows)
        table.extend_prefix(len(rows))

    def append_copies(self, table: PageTable, source_slots: Tensor) -> None:
        """Append copies of any slots of the pool to the prefix, whichever sequence owns them.

        The copy runs on the current stream. If another stream wrote the slots, the caller has to
        wait for that stream first.

        Args:
            table: a table that has room for the rows (`reserve`).
            source_slots: slot numbers in the order of the tokens, [rows] int64. States of recurrent
                layers include these rows already.
        """
        assert table.length + len(source_slots) <= table.capacity, "no room: reserve first"
        self.pool.copy_rows(source_slots, table.pages, table.length)
        if table.state is not None:
            table.state.extend(range(len(source_slots)))
        table.extend_prefix(len(source_slots))

    def publish(self, table: PageTable, tokens: Sequence[int]) -> None:
        """Index the pages that the prefix has filled, so that later sequences can share them.

        Args:
            tokens: all tokens of the sequence, from its first one on.
        """
        while self._prefix_cache and (table.num_published + 1) * PAGE <= table.length:
            self._publish_page(table, tokens)
            table.publish_next()
        if self._stored is not None and table.state is not None:
            captures = table.state.captures
            for length in sorted(captures):
                if length <= table.num_published * PAGE:
                    self._store(captures.pop(length), table, tokens, length)

    def capture_states(self, table: PageTable, rows: int, end: int) -> None:
        """Let the next pass copy the states at the last two page borders of a prompt.

        Args:
            rows: the rows of the prompt in the pass, which is about to begin.
            end: the length of the whole prompt.
        """
        if self._stored is None or table.state is None or not self._prefix_cache:
            return
        last = (end - 1) // PAGE * PAGE
        for length in (last - PAGE, last):
            if table.length < length <= table.length + rows and length not in table.state.captures:
                if (slot := self._stored.take_slot()) is None:
                    return
                table.state.captures[length] = slot

    def fork(self, table: PageTable) -> PageTable | None:
        """Return a second table with the same prefix, for another choice of the same request.

        Full pages are shared, and a partial last page and states are copied. Return None if there
        is no free page for that copy, or no state.
        """
        full, rest = divmod(table.length, PAGE)
        if rest and self.num_free_pages == 0:
            return None
        state = None
        if self.states is not None and table.state is not None:
            state = self.states.fork(table.state)
            if state is None:
                return None
        pages = table.pages[:full]
        ticket = self._add_references(pages)
        forked = PageTable(
            salt=table.salt,
            pages=pages,
            length=table.length,
            num_published=table.num_published,
            ready_ticket=ticket,
            state=state,
        )
        if rest:
            forked.append(self._allocate(1))
            self._host.wait(table.ready_ticket)
            self.pool.copy_page(table.pages[full], forked.pages[full], rest)
        return forked

    def trim(self, table: PageTable) -> None:
        """Free the scratch pages that come after the last page of the prefix."""
        self._drop_references(table.cut_scratch())

    def close(self, table: PageTable, tokens: Sequence[int] = ()) -> None:
        """Free all pages of a sequence. Indexed ones become idle and can still be found.

        Args:
            tokens: all tokens of the sequence. If given, the partial last page of its prefix is
                indexed too.
        """
        is_stored = bool(tokens) and self._prefix_cache
        if is_stored and table.num_published * PAGE < table.length:
            self._publish_page(table, tokens)  # `publish` has indexed the full pages
        if self.states is not None and (state := table.take_state()) is not None:
            self._close_state(state, table, tokens if is_stored else ())
        self._drop_references(table.clear())

    def release(self) -> None:
        """Wait for running copies and unpin the host memory. Do not use the cache afterwards."""
        self._host.close()

    def _find(self, tokens: Sequence[int], salt: int) -> tuple[list[int], StoredState | None]:
        """Return the full pages of the longest stored prefix, and the state at its end.

        Where there are recurrent layers, a prefix without a state is not found.
        """
        found = list(self._index.walk(tokens, -salt))
        if self._stored is None:
            return found, None
        for count in range(len(found), -1, -1):
            parent = self._parent(found[:count], salt)
            stored = self._stored.find(parent, tokens[count * PAGE : len(tokens) - 1][:PAGE])
            if stored is None:
                continue
            similar = self._index.find_longest_match(parent, stored.rest) if stored.rest else None
            if not stored.rest or (similar is not None and similar[1] >= len(stored.rest)):
                return found[:count], stored
        return [], None

    def _parent(self, pages: Sequence[int], salt: int) -> int:
        """Return the parent of a page that follows these in a prefix."""
        return self._index.serial(pages[-1]) if pages else -salt

    def _store(self, slot: int, table: PageTable, tokens: Sequence[int], length: int) -> None:
        """Store a state that includes the first `length` tokens of a sequence."""
        assert self._stored is not None, "there are recurrent layers"
        full = length // PAGE
        parent = self._parent(table.pages[:full], table.salt)
        shorter = self._find(tokens[:length], table.salt)[1]
        rest = tokens[full * PAGE : length]
        before = 0 if shorter is None else shorter.length
        made = self._stored.add(slot, parent, rest, length, before)
        if made is not None:
            self._keep_state(made)

    def _keep_state(self, stored: StoredState) -> None:
        """Do nothing more with a state that was stored."""

    def _lose_state(self, stored: StoredState) -> None:
        """Do nothing more with a stored state that is dropped, and whose content is still there."""

    def _close_state(self, state: SequenceState, table: PageTable, tokens: Sequence[int]) -> None:
        """Free the state of a sequence, or store it if its tokens are given and it is usable."""
        assert self.states is not None and self._stored is not None
        slot = None
        if tokens and table.length and state.is_at(table.length):
            slot = self._stored.take_slot()
        if slot is None:
            self.states.close(state)
            return
        state.replay()
        self.states.give_back(slot)
        self.states.detach(state)
        self._store(state.slot, table, tokens, table.length)

    def _give_state(self, table: PageTable, stored: StoredState | None = None) -> bool:
        """Give a table the states of a sequence if it has none. Return False without room.

        They begin with a stored one if it is given.
        """
        if self.states is None or self._stored is None or table.state is not None:
            return True
        state = self.states.open() if stored is None else self._stored.open(stored)
        if state is None:
            return False
        table.begin_state(state)
        return True

    def _publish_page(self, table: PageTable, tokens: Sequence[int]) -> None:
        """Index the first page of a table that is not indexed yet.

        If a page with the same content is stored already, a full page is replaced by that one, and
        a partial page is not indexed a second time.
        """
        number = table.num_published
        page, first = table.pages[number], number * PAGE
        parent = self._index.serial(table.pages[number - 1]) if number else -table.salt
        page_tokens = tuple(tokens[first : min(first + PAGE, table.length)])
        stored = self._index.find_covering(parent, page_tokens)
        if stored is None:
            if (shorter := self._index.find_prefix(parent, page_tokens)) is not None:
                self._discard(shorter)
            self._add_to_index(parent, page_tokens, page)
        elif stored >= self.num_pages and self._index.tokens(stored) == page_tokens:
            # The page was computed again although host memory has a copy: this one replaces it.
            self._index.rename(stored, page)
            self._host.free([stored])
        elif len(page_tokens) < PAGE:
            self._touch(stored)
        elif stored != page:
            table.replace(number, stored, self._add_references([stored]))
            self._drop_references([page])
