"""The KV cache with a store on disk: idle pages and states survive the process.

Pages that are indexed and states that are stored are written to the disk while no request runs,
when their memory is needed, and in the end. A prompt that begins with blocks on the disk (`Block`)
gets its pages as usual. Then it waits until the blocks have been read into them, while other
sequences run, and goes on from there as after a hit in memory.
"""

import time
from collections.abc import Callable, Sequence

from torch import Tensor

from engine.kv.cache import KVCache
from engine.kv.disk.block import Block, Kind, prefix_hash, root_hash
from engine.kv.disk.reading import FoundPrefix, Reading
from engine.kv.disk.store import DiskStore
from engine.kv.page_pool import PAGE, PagePool
from engine.kv.page_table import PageTable
from engine.kv.stored_states import StoredState
from engine.recurrent.states import StatePool

MOST_READING = 2  # tables for which blocks are read at the same time
CLOSING_S = 3.0  # in which the rest is written before the process ends
WITHDRAWING_S = 1.0  # in which idle pages are written before their memory is given back


class DiskCache(KVCache):
    """A `KVCache` that has a store on disk after `use_disk`.

    The arguments are those of `KVCache`.
    """

    def __init__(
        self,
        pool: PagePool,
        *,
        prefix_cache: bool = True,
        host_pages: int = 0,
        states: StatePool | None = None,
    ) -> None:
        super().__init__(pool, prefix_cache=prefix_cache, host_pages=host_pages, states=states)
        self._disk: DiskStore | None = None
        # The hash and the number of pages of the prefix that an indexed page ends, by its serial.
        self._prefixes: dict[int, tuple[bytes, int]] = {}
        # What is not on the disk, in the order in which it is written.
        self._unsaved: dict[int, None] = {}  # serial numbers of pages
        self._unsaved_states: list[StoredState] = []
        self._reading: list[PageTable] = []

    def use_disk(self, disk: DiskStore) -> None:
        """Keep idle pages and states in this store too. No page may be indexed before."""
        self._disk = disk

    @property
    def disk(self) -> DiskStore | None:
        """The store on disk; None if there is none."""
        return self._disk

    @property
    def state_bytes(self) -> int:
        """The bytes of a state in all layers; 0 if there are no recurrent layers."""
        return 0 if self.states is None else self.states.state_bytes

    # -- reading

    def open(self, tokens: Sequence[int], salt: int = 0) -> PageTable:
        """Return a table as `KVCache.open` does, or one whose next pages are read from the disk."""
        in_memory = self._count_stored(tokens, salt)
        found = self._find_on_disk(tokens, salt)
        if found is None or found.length <= in_memory:
            return super().open(tokens, salt)
        table = self._open_pages(tokens, salt, found.num_pages)
        if table.length < found.num_pages * PAGE:  # a page could not be loaded from the host
            self.close(table)
            return super().open(tokens, salt)
        assert self._disk is not None
        sizes = self.pool.page_bytes, self.state_bytes
        table.begin_reading(Reading(self._disk, found, tokens, sizes))
        self._reading.append(table)
        self._ask_next()
        return table

    def take_read(self, seconds: float) -> bool:
        """Store what was read for the tables that wait for it, for up to `seconds`.

        Return whether anything was.
        """
        until, has_taken = time.monotonic() + seconds, False
        for table in list(self._reading):
            reading = table.reading
            assert reading is not None
            while (taken := reading.take()) is not None:
                self._put(table, reading, *taken)
                has_taken = True
                if time.monotonic() >= until:
                    return True
            if reading.is_over:
                self._end_reading(table)
        return has_taken

    def wait_for_disk(self, seconds: float) -> None:
        """Wait until `take_read` has something to do, at most for `seconds`.

        Return at once if no table waits for the disk.
        """
        if self._disk is not None and self._reading:
            waiting = [table.reading for table in self._reading if table.reading is not None]
            self._disk.wait(seconds, lambda: any(own.has_next for own in waiting))

    def is_usable(self, table: PageTable) -> bool:
        """Return False as `KVCache.is_usable` does, and if states could not be read."""
        return table.reading is not None or super().is_usable(table)

    def close(self, table: PageTable, tokens: Sequence[int] = ()) -> None:
        """Free all pages of a sequence, as `KVCache.close` does. Nothing more is read for it."""
        self._end_reading(table)
        super().close(table, tokens)

    def _count_stored(self, tokens: Sequence[int], salt: int) -> int:
        """Return how many tokens a table would begin with in memory."""
        found, stored = self._find(tokens, salt)
        if found and self._disk is not None:
            self._disk.touch(self._prefix(self._index.serial(found[-1]))[0])
        if self.states is not None:
            return 0 if stored is None else stored.length
        rest = tuple(tokens[len(found) * PAGE : len(tokens) - 1][:PAGE])
        similar = self._index.find_longest_match(self._parent(found, salt), rest)
        return len(found) * PAGE + (similar[1] if similar else 0)

    def _open_pages(self, tokens: Sequence[int], salt: int, count: int) -> PageTable:
        """Return a table that begins with `count` full pages in memory, and with new states."""
        found = list(self._index.walk(tokens, -salt))[:count]
        pages = [page for page in found if page < self.num_pages]
        ticket = self._add_references(pages)
        loaded, loaded_ticket = self._load_from_host(found[len(pages) :])
        pages += loaded
        table = PageTable(
            salt=salt,
            pages=pages,
            length=len(pages) * PAGE,
            num_published=len(pages),
            ready_ticket=max(ticket, loaded_ticket),
        )
        granted = self._give_state(table)
        assert granted, "no more sequences run than there are states"
        return table

    def _find_on_disk(self, tokens: Sequence[int], salt: int) -> FoundPrefix | None:
        """Return the longest prefix whose blocks are on the disk or in memory; None without one."""
        if self._disk is None or self._disk.is_stalled:
            return None
        folder, most = self._disk.folder, len(tokens) - 1  # the last token is never taken
        in_memory = list(self._index.walk(tokens, -salt))
        hashes = [root_hash(salt)]  # of the first 0, 1, 2, ... pages
        hashes += [self._prefix(self._index.serial(page))[0] for page in in_memory]
        pages: list[Block] = []
        for first in range(len(in_memory) * PAGE, most - PAGE + 1, PAGE):
            page = Block("page", hashes[-1], tuple(tokens[first : first + PAGE]), first // PAGE)
            if page.hash not in folder:
                break
            pages.append(page)
            hashes.append(page.hash)
        if self.states is None:
            full = len(hashes) - 1
            pages += self._rests(hashes[full], full, tokens[full * PAGE : most])[:1]
            length = len(in_memory) * PAGE + sum(len(page.tokens) for page in pages)
            return FoundPrefix(len(in_memory), tuple(pages), None, length) if pages else None
        for full in range(len(hashes) - 1, -1, -1):
            rest = tokens[full * PAGE : most]
            for state in self._rests(hashes[full], full, rest, kind="state"):
                read = pages[: max(full - len(in_memory), 0)]
                if state.tokens:
                    read.append(Block("page", state.parent, state.tokens, full))
                    if read[-1].hash not in folder:
                        continue
                length = full * PAGE + len(state.tokens)
                return FoundPrefix(min(full, len(in_memory)), tuple(read), state, length)
        return None

    def _rests(
        self, parent: bytes, number: int, rest: Sequence[int], kind: Kind = "page"
    ) -> list[Block]:
        """Return the states or partial pages on the disk whose tokens `rest` begins with.

        The longest is the first.
        """
        assert self._disk is not None
        folder = self._disk.folder
        lengths = [count for count in folder.rest_lengths(parent, kind) if count <= len(rest)]
        made = [Block(kind, parent, tuple(rest[:count]), number) for count in lengths]
        return [block for block in made if block.hash in folder]

    def _put(self, table: PageTable, reading: Reading, block: Block, payload: Tensor) -> None:
        """Store a block that was read as the next part of a table."""
        if block.kind == "state":
            assert self.states is not None and table.state is not None
            self.states.copy_in(table.state.slot, payload)
            table.state.begin_at(table.length)
            return
        self.pool.copy_in(table.pages[block.number], payload)
        table.extend_prefix(len(block.tokens))
        self.publish(table, reading.tokens)

    def _ask_next(self) -> None:
        """Let the first tables that wait for the disk read ahead; of more, memory is short."""
        for table in self._reading[:MOST_READING]:
            if table.reading is not None:
                table.reading.ask()

    def _end_reading(self, table: PageTable) -> None:
        """Let a table wait for the disk no longer."""
        if (reading := table.reading) is None:
            return
        reading.cancel()
        table.begin_reading(None)
        self._reading = [own for own in self._reading if own is not table]
        self._ask_next()
        read = table.length - reading.found.num_pages * PAGE
        if self._disk is not None and read > 0 and super().is_usable(table):
            self._disk.count_hit(read)

    # -- writing

    @property
    def has_unsaved(self) -> bool:
        """Whether pages or states are not on the disk that should be."""
        return bool(self._unsaved) or bool(self._unsaved_states)

    @property
    def can_save(self) -> bool:
        """Whether `save_next` can be called: the disk is not behind."""
        nbytes = self.pool.page_bytes if self._unsaved else self.state_bytes
        return self._disk is not None and self._disk.has_room(nbytes)

    def save_next(self) -> None:
        """Queue a page or a state to be written. It is dropped if the disk takes nothing now."""
        if self._unsaved:
            self._save_page(next(iter(self._unsaved)))
        else:
            self._save_state(self._unsaved_states[0])

    def release(self) -> None:
        """Write what is not on the disk, for some seconds at most, and release the memory."""
        if self._disk is not None:
            until = time.monotonic() + CLOSING_S
            while self.has_unsaved and (left := until - time.monotonic()) > 0:
                if self.can_save:
                    self.save_next()
                else:
                    self._disk.wait(left, lambda: self.can_save)
            self._disk.flush(max(until - time.monotonic(), 0.0))
            self._disk.close()
        super().release()

    def withdraw(self, count: int) -> int:
        """Do what `KVCache.withdraw` does. Idle pages are written to the disk before."""
        if self._disk is not None:
            until = time.monotonic() + WITHDRAWING_S
            for page in list(self._idle)[: max(count - len(self._free), 0)]:
                if (serial := self._index.serial(page)) not in self._unsaved:
                    continue
                while not self.can_save and (left := until - time.monotonic()) > 0:
                    self._disk.wait(left, lambda: self.can_save)
                self._save_page(serial)
        return super().withdraw(count)

    def _add_to_index(self, parent: int, tokens: Sequence[int], page: int) -> None:
        super()._add_to_index(parent, tokens, page)
        if self._disk is not None:
            before, number = self._prefix(parent)
            serial, own = self._index.serial(page), prefix_hash(before, tokens)
            self._prefixes[serial] = own, number + 1
            if own not in self._disk:
                self._unsaved[serial] = None

    def _lose(self, page: int) -> None:
        serial = self._index.serial(page)
        if self._disk is not None and self._prefix(serial)[0] not in self._disk:
            self._save_page(serial)
        super()._lose(page)

    def _forget(self, page: int) -> None:
        serial = self._index.serial(page)
        super()._forget(page)
        self._unsaved.pop(serial, None)
        self._prefixes.pop(serial, None)

    def _keep_state(self, stored: StoredState) -> None:
        if self._disk is not None and self._state_block(stored).hash not in self._disk:
            self._unsaved_states.append(stored)

    def _lose_state(self, stored: StoredState) -> None:
        if any(own is stored for own in self._unsaved_states):
            self._save_state(stored)

    def _save_page(self, serial: int) -> None:
        """Queue an indexed page to be written, or drop it."""
        self._unsaved.pop(serial, None)
        page = self._index.page(serial)
        before, number = self._prefix(self._index.parent(page))
        block = Block("page", before, self._index.tokens(page), number)
        self._save(block, self.pool.page_bytes, lambda: self._copy_out(page))

    def _save_state(self, stored: StoredState) -> None:
        """Queue a stored state to be written, or drop it."""
        self._unsaved_states = [own for own in self._unsaved_states if own is not stored]
        states = self.states
        assert states is not None, "there are recurrent layers"
        block = self._state_block(stored)
        self._save(block, self.state_bytes, lambda: states.copy_out(stored.slot))

    def _save(self, block: Block, nbytes: int, copy_out: Callable[[], Tensor]) -> None:
        assert self._disk is not None, "without a disk, nothing is unsaved"
        if self._disk.is_refusing or not self._disk.has_room(nbytes):
            self._disk.drop()
        else:
            self._disk.write(block, copy_out())

    def _state_block(self, stored: StoredState) -> Block:
        before, number = self._prefix(stored.parent)
        return Block("state", before, stored.rest, number)

    def _copy_out(self, page: int) -> Tensor:
        """Return a copy of an indexed page of the device or of the host, uint8."""
        if page >= self.num_pages:
            return self._host.copy_out(page)
        self._host.wait(self._host.ticket(page))
        return self.pool.copy_out(page)

    def _prefix(self, serial: int) -> tuple[bytes, int]:
        """Return the hash and the number of pages of a prefix.

        `serial` is the serial number of its last page, or minus the salt.
        """
        return self._prefixes[serial] if serial > 0 else (root_hash(-serial), 0)
