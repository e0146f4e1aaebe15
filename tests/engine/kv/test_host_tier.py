"""Idle pages in host memory: what moves there, what comes back, and who waits for the copies."""

from collections.abc import Sequence

import pytest

from engine.kv.page_pool import PAGE
from engine.streaming.page_store import PageStore
from tests.engine.kv_tokens import fill, finished, new_cache, store, stored
from tests.engine.models import prompt
from tests.engine.page_traffic import Traffic, check_pages, small_cache


def test_idle_pages_give_way_to_the_host_and_come_back() -> None:
    cache, tokens = new_cache(num_pages=4, host_pages=4), prompt(3 * PAGE + 1)
    finished(cache, tokens)
    fill(cache, seed=1, pages=4)
    assert (cache.num_host_pages, cache.num_free_pages) == (3, 4)
    cache.pool.memory.fill_(-1)
    table = cache.open(tokens)
    assert table.length == 3 * PAGE and cache.is_ready(table)
    assert stored(cache, table) == tokens[:-1]
    assert (cache.num_host_pages, cache.num_free_pages) == (0, 1)
    check_pages(cache, [table])


def test_a_paused_sequence_goes_on_where_it_was() -> None:
    cache, tokens = new_cache(num_pages=4, host_pages=8), prompt(3 * PAGE + 20)
    finished(cache, tokens)
    finished(cache, prompt(4 * PAGE, seed=1))
    table = cache.open(tokens)
    assert table.length == 3 * PAGE
    store(cache, table, [*tokens, 5])
    assert stored(cache, table) == [*tokens, 5]


def test_a_full_host_forgets_the_least_recently_used_the_end_first() -> None:
    cache = new_cache(num_pages=4, host_pages=5)
    old, new = prompt(3 * PAGE + 1), prompt(3 * PAGE + 1, seed=1)
    finished(cache, old)
    finished(cache, new)
    fill(cache, seed=2, pages=4)
    assert cache.num_host_pages == 5
    assert cache.num_pages_to_open(old) == 4
    table = cache.open(old)
    assert table.length == 2 * PAGE and stored(cache, table) == old[: 2 * PAGE]
    cache.close(table)
    table = cache.open(new)
    assert table.length == 3 * PAGE and stored(cache, table) == new[:-1]


def test_what_was_looked_for_stays_longer() -> None:
    cache = new_cache(num_pages=3, host_pages=4)
    first, second = prompt(2 * PAGE + 1), prompt(2 * PAGE + 1, seed=1)
    finished(cache, first)
    finished(cache, second)
    fill(cache, seed=2, pages=3)
    busy = cache.open([1])
    assert cache.reserve(busy, 3 * PAGE)
    assert cache.open(first).length == 0, "no page is free"
    cache.close(busy)
    finished(cache, prompt(2 * PAGE + 1, seed=3))
    fill(cache, seed=4, pages=3)  # now the host drops two of its four
    assert cache.open(first).length == 2 * PAGE


def test_as_much_comes_back_as_there_are_free_pages() -> None:
    cache, tokens = new_cache(num_pages=4, host_pages=4), prompt(4 * PAGE)
    finished(cache, tokens)
    busy = cache.open(prompt(9, 1))
    assert cache.reserve(busy, 2 * PAGE + 1)
    assert cache.num_host_pages == 3
    table = cache.open([*tokens, 1])
    assert table.length == PAGE, "the first page had stayed, and none is free"
    cache.trim(busy)
    again = cache.open([*tokens, 1])
    assert again.length == 4 * PAGE and stored(cache, again) == tokens
    check_pages(cache, [table, again])


def test_pages_that_come_back_push_others_out_but_not_themselves() -> None:
    cache, first, second = new_cache(num_pages=4, host_pages=3), prompt(200), prompt(200, seed=1)
    finished(cache, first)
    finished(cache, second)
    assert cache.num_host_pages == 3, "full"
    for tokens in (first, second, first, second):
        table = cache.open(tokens)
        assert table.length == 3 * PAGE and stored(cache, table) == tokens[: 3 * PAGE]
        cache.close(table)
        check_pages(cache, [])


def test_a_page_computed_again_takes_the_place_of_the_hosts() -> None:
    cache, tokens = new_cache(num_pages=3, host_pages=3), prompt(2 * PAGE + 1)
    finished(cache, tokens)
    fill(cache, seed=1, pages=3)
    alone = cache.open(tokens[:PAGE])  # its last token must give logits: nothing is shared
    store(cache, alone, tokens[:PAGE])
    assert cache.num_host_pages == 1
    table = cache.open(tokens)
    assert table.length == 2 * PAGE and stored(cache, table) == tokens[:-1]
    check_pages(cache, [alone, table])


def test_salts_are_kept_apart_in_host_memory_too() -> None:
    cache, tokens = new_cache(num_pages=3, host_pages=6), prompt(2 * PAGE + 1)
    finished(cache, tokens, salt=1)
    fill(cache, seed=1, pages=3)
    assert cache.open(tokens).length == 0
    assert cache.open(tokens, salt=1).length == 2 * PAGE


class SlowStore(PageStore):
    """A store whose copies take until `arrive`; it moves nothing."""

    def __init__(self) -> None:
        self.issued = 0
        self.ended = 0
        self.waited: list[int] = []

    def save(self, pages: Sequence[int], places: Sequence[int]) -> int:
        self.issued += 1
        return self.issued

    def load(self, places: Sequence[int], pages: Sequence[int]) -> int:
        self.issued += 1
        return self.issued

    def done(self, ticket: int) -> bool:
        return ticket <= self.ended

    def wait(self, ticket: int) -> None:
        if not self.done(ticket):
            self.waited.append(ticket)

    def close(self) -> None:
        pass


def test_whoever_uses_a_page_waits_for_its_copy() -> None:
    cache, tokens = new_cache(num_pages=4, host_pages=4), prompt(3 * PAGE + 1)
    finished(cache, tokens)
    slow = cache._host._store = SlowStore()
    scratch = cache.open([1])
    assert cache.reserve(scratch, 2 * PAGE)
    assert slow.waited == [1], "one page was free, the other is still read"
    cache.close(scratch)
    first = cache.open(tokens)
    sharing = cache.open([*tokens[:-1], 1])
    twin = cache.fork(first)
    assert twin is not None and slow.issued == 2 and slow.waited == [1]
    for table in (first, sharing, twin):
        assert not cache.is_ready(table)
        cache.slots(table)
        cache.slots(table)  # another stream may ask
    assert slow.waited == [1] + [2] * 6
    slow.ended = 2
    assert cache.is_ready(first)
    cache.slots(twin)
    assert len(slow.waited) == 7


def test_whoever_copies_from_a_page_waits_for_its_arrival() -> None:
    cache, tokens = new_cache(num_pages=6, host_pages=4), prompt(PAGE + 40)
    table = cache.open(tokens)
    store(cache, table, tokens)
    cache.close(table, tokens)
    fill(cache, seed=1, pages=6)
    slow = cache._host._store = SlowStore()
    other = cache.open([*tokens[:PAGE], 1])  # the full page comes back
    assert slow.issued == 1 and not cache.is_ready(other)
    departing = cache.open([*tokens[:30], 1])
    assert slow.waited == [1] and cache.is_ready(departing), "a copy on the device, made in turn"
    slow.ended = 1
    table = cache.open([*tokens, 1])
    assert table.length == len(tokens) and not cache.is_ready(table), "its partial page is loaded"
    assert cache.fork(table) is not None
    assert slow.waited == [1, 2]


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_forgotten_while_the_host_has_room(seed: int) -> None:
    cache = small_cache(num_pages=12, host_pages=2000)
    traffic = Traffic(cache, seed, all_kept=True)
    for _ in range(150):
        traffic.step()
    traffic.check()
    assert cache.num_host_pages > 12
