"""Random traffic over a KV cache, with a reference for the content of each slot.

The value stored for a token depends on all tokens up to it and on the layer. So a page that is
loaded to the wrong place, or shared by the wrong prefix, is noticed. Used by tests/engine/kv and
tests/gpu.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from engine.kv.cache import KVCache
from engine.kv.page_pool import PAGE, PagePool
from engine.kv.page_table import PageTable
from engine.streaming.cpu_link import CpuDevice
from engine.streaming.device import Device

LAYERS, HEADS, DIM = 2, 1, 2
CPU = CpuDevice()


def small_cache(num_pages: int, host_pages: int = 0, device: Device = CPU) -> KVCache:
    pool = PagePool(
        num_layers=LAYERS,
        num_pages=num_pages,
        num_kv_heads=HEADS,
        head_dim=DIM,
        dtype=torch.float32,
        device=device,
    )
    return KVCache(pool, host_pages=host_pages)


def expected_values(tokens: Sequence[int], first: int = 0) -> Tensor:
    """Return the value stored for each of `tokens[first:]`, [rows], exact in float32."""
    value, found = 1, []
    for token in tokens:
        value = (value * 31 + token + 7) % 2**22
        found.append(value)
    return torch.tensor(found[first:], dtype=torch.float32)


def write(cache: KVCache, slots: Tensor, values: Tensor) -> None:
    """Write `value + layer` into the keys of each row, and the negated number into its values."""
    rows = values.to(slots.device).view(-1, 1, 1).expand(-1, HEADS, DIM)
    for layer in range(LAYERS):
        cache.pool.write(layer, slots, rows + layer, -(rows + layer))


def count_wrong(cache: KVCache, table: PageTable, tokens: Sequence[int]) -> Tensor:
    """Return how many stored numbers differ from the expected ones, [] on the device."""
    slots = cache.slots(table)[: table.length]
    want = expected_values(tokens[: table.length]).to(slots.device).view(-1, 1, 1)
    total = torch.zeros((), dtype=torch.int64, device=slots.device)
    for layer in range(LAYERS):
        keys, values = cache.pool.read(layer, slots)
        total += (keys != want + layer).sum() + (values != -(want + layer)).sum()
    return total


def run_prompt(cache: KVCache, table: PageTable, tokens: Sequence[int]) -> bool:
    """Store the missing tokens of a table, as a pass over a prompt. Return False without room."""
    rows = len(tokens) - table.length
    if not cache.reserve(table, rows):
        return False
    slots = cache.slots(table)[table.length : len(tokens)]
    write(cache, slots, expected_values(tokens, table.length))
    cache.append_rows(table, range(rows))
    return True


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the longest common prefix."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


@dataclass
class LiveSequence:
    """A sequence that is running (it has a table) or paused."""

    tokens: list[int]
    salt: int
    table: PageTable | None = None


class Traffic:
    """Sequences that are opened, extended, forked, paused and closed at random by `step`."""

    def __init__(
        self, cache: KVCache, seed: int, *, texts: int = 5, all_kept: bool = False
    ) -> None:
        """Set `all_kept` if the host has room for all pages: then all stored tokens are found."""
        self.cache = cache
        self.random = random.Random(seed)
        self.sequences: list[LiveSequence] = []
        self.wrong: list[Tensor] = []
        self.stored: set[tuple[int, tuple[int, ...]]] = set()  # (salt, stored tokens)
        self._all_kept = all_kept
        self._texts = [[self.random.randrange(9) for _ in range(6 * PAGE)] for _ in range(texts)]
        self._things: list[tuple[int, Callable[[], None]]] = [
            (4, self.arrive),
            (8, self.decode),
            (2, self.accept_from_elsewhere),
            (1, self.fork),
            (2, self.pause),
            (2, self.finish),
        ]

    def step(self) -> None:
        weights, things = zip(*self._things, strict=True)
        self.random.choices(things, weights)[0]()

    def arrive(self) -> None:
        """Open a new or a paused sequence, and run the tokens that are not stored."""
        paused = [s for s in self.sequences if s.table is None]
        if paused:
            live = self.random.choice(paused)
        else:
            text = self.random.choice(self._texts)
            own = [self.random.randrange(9) for _ in range(self.random.randrange(1, PAGE))]
            salt = int(self.random.random() < 0.1)
            live = LiveSequence(text[: self.random.randrange(len(text))] + own, salt)
            self.sequences.append(live)
        cost = self.cache.num_pages_to_open(live.tokens, live.salt)
        free = self.cache.num_free_pages
        live.table = self.cache.open(live.tokens, live.salt)
        longest = self.longest_stored(live)
        assert live.table.length <= longest < len(live.tokens)
        if self._all_kept and cost <= free:
            assert live.table.length == longest
        self.queue_check(live)
        granted = run_prompt(self.cache, live.table, live.tokens)
        assert granted == (cost <= free)
        if granted:
            assert (
                self.cache.num_free_pages >= free - cost
            )  # more if it ran tokens that were stored
            self._publish(live)
        else:
            self._leave(live)

    def decode(self) -> None:
        """Run a tree: some of its rows are correct and kept, the others hold wrong values."""
        if (live := self._running()) is None:
            return
        assert live.table is not None
        rows = self.random.randrange(1, 40)
        if not self.cache.reserve(live.table, rows):
            self.pause()
            return
        kept = sorted(self.random.sample(range(rows), self.random.randrange(rows + 1)))
        tokens = live.tokens + [self.random.randrange(9) for _ in kept]
        values = torch.full((rows,), -1.0)
        values[kept] = expected_values(tokens, len(live.tokens))
        start = live.table.length
        write(self.cache, self.cache.slots(live.table)[start : start + rows], values)
        self.cache.append_rows(live.table, kept)
        self._grew(live, tokens)

    def accept_from_elsewhere(self) -> None:
        """Append rows that were written into another table's slots in any order."""
        if (live := self._running()) is None:
            return
        assert live.table is not None
        scratch, count = PageTable(), self.random.randrange(1, 2 * PAGE)
        if self.cache.reserve(live.table, count) and self.cache.reserve(scratch, count):
            tokens = live.tokens + [self.random.randrange(9) for _ in range(count)]
            order = self.random.sample(range(count), count)
            slots = self.cache.slots(scratch)[torch.tensor(order)]
            write(self.cache, slots, expected_values(tokens, len(live.tokens)))
            self.cache.append_copies(live.table, slots)
            self._grew(live, tokens)
        self.cache.close(scratch)

    def fork(self) -> None:
        if (live := self._running()) is None:
            return
        assert live.table is not None
        forked = self.cache.fork(live.table)
        if forked is not None:
            self.sequences.append(LiveSequence(list(live.tokens), live.salt, forked))

    def pause(self) -> None:
        if (live := self._running()) is not None:
            self._leave(live)

    def finish(self) -> None:
        if (live := self._running()) is not None:
            self._leave(live)
            self.sequences.remove(live)

    def finish_all(self) -> None:
        for live in self.sequences:
            self._leave(live)
        self.sequences.clear()

    def queue_check(self, live: LiveSequence) -> None:
        """Compare stored and expected values on the device. `check` reads the result later."""
        assert live.table is not None
        self.wrong.append(count_wrong(self.cache, live.table, live.tokens))

    def queue_all_checks(self) -> None:
        for live in self.sequences:
            if live.table is not None:
                self.queue_check(live)

    def check(self) -> None:
        """Check that all compared values were right and that each page has one place."""
        assert not self.wrong or int(torch.stack(self.wrong).sum()) == 0
        self.wrong.clear()
        check_pages(self.cache, [s.table for s in self.sequences if s.table is not None])

    def longest_stored(self, live: LiveSequence) -> int:
        """Return the length of the longest prefix, without the last token, ever stored."""
        wanted = live.tokens[:-1]
        own = [tokens for salt, tokens in self.stored if salt == live.salt]
        return max((common_length(tokens, wanted) for tokens in own), default=0)

    def _publish(self, live: LiveSequence) -> None:
        assert live.table is not None
        self.cache.publish(live.table, live.tokens)
        self._store(live, live.table.length // PAGE * PAGE)
        self.queue_check(live)

    def _store(self, live: LiveSequence, length: int) -> None:
        self.stored.add((live.salt, tuple(live.tokens[:length])))

    def _grew(self, live: LiveSequence, tokens: list[int]) -> None:
        assert live.table is not None
        live.tokens = tokens
        self._publish(live)
        if self.random.random() < 0.5:
            self.cache.trim(live.table)
        if len(tokens) > 8 * PAGE:
            self._leave(live)
            self.sequences.remove(live)

    def _leave(self, live: LiveSequence) -> None:
        """Close a sequence, in 9 of 10 cases such that its partial page is indexed."""
        if live.table is not None and self.random.random() < 0.9:
            self._store(live, live.table.length)
            self.cache.close(live.table, live.tokens)
        elif live.table is not None:
            self.cache.close(live.table)
        live.table = None

    def _running(self) -> LiveSequence | None:
        running = [s for s in self.sequences if s.table is not None]
        return self.random.choice(running) if running else None


def check_pages(cache: KVCache, tables: Sequence[PageTable]) -> None:
    """Check that each page is free, idle, owned or stored, and that indexed pages can be found."""
    owners = Counter(page for table in tables for page in table.pages)
    assert [owners[page] for page in range(cache.num_pages)] == cache._references
    assert sorted([*owners, *cache._free, *cache._idle, *cache._withdrawn]) == list(
        range(cache.num_pages)
    )
    last = cache.num_pages + len(cache._host._free) + cache.num_host_pages
    assert sorted([*cache._host._free, *cache._host._stored]) == list(range(cache.num_pages, last))
    for table in tables:
        for page in table.pages[table.length // PAGE :]:
            assert owners[page] == 1, "a page that is not full has one owner"
    check_index(cache, owners)


def check_index(cache: KVCache, owners: Counter[int]) -> None:
    """Check that each indexed page can be found, and that its content is stored once."""
    index = cache._index
    indexed = set(index._keys)
    assert {page: key for key, page in index._pages.items()} == index._keys
    assert set(index._serials) == indexed
    assert indexed == {p for p in indexed if owners[p]} | {*cache._idle, *cache._host._stored}
    page_of = {serial: page for page, serial in index._serials.items()}
    ages = {page: age for age, page in enumerate([*cache._host._stored, *cache._idle])}
    siblings: dict[tuple[int, bool], list[tuple[int, ...]]] = {}
    for page, (parent, tokens) in index._keys.items():
        siblings.setdefault((parent, page >= cache.num_pages), []).append(tokens)
        assert 0 < len(tokens) <= PAGE
        assert len(tokens) == PAGE or not owners[page], "its owner writes to the rest of it"
        if parent > 0:
            assert parent in page_of, "an unreachable page holds memory"
            before = page_of[parent]
            assert len(index.tokens(before)) == PAGE, "tokens are missing in between"
            assert before < cache.num_pages or page >= cache.num_pages, "a parent on the host"
            if before in ages:
                assert ages[page] < ages[before], "a parent would be evicted before its child"
    assert {place: sorted(own) for place, own in siblings.items()} == index._siblings
    for parent in {parent for parent, _ in siblings}:
        below = sorted(siblings.get((parent, False), []) + siblings.get((parent, True), []))
        for one, other in pairwise(below):
            assert other[: len(one)] != one, "the tokens of a page are a prefix of another page"
