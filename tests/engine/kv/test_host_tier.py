"""Tests of idle pages in host memory: eviction, loading, and waiting for the copies."""

from collections.abc import Sequence

import pytest

from engine.kv.page_pool import PAGE
from engine.streaming.page_store import PageStore
from tests.engine.kv_tokens import fill_pages, new_cache, run_and_close, store_tokens, stored_tokens
from tests.engine.models import prompt
from tests.engine.page_traffic import Traffic, check_pages, small_cache


def test_idle_pages_are_evicted_to_the_host_and_loaded_again() -> None:
    cache, tokens = new_cache(num_pages=4, host_pages=4), prompt(3 * PAGE + 1)
    run_and_close(cache, tokens)
    fill_pages(cache, seed=1, pages=4)
    assert (cache.num_host_pages, cache.num_free_pages) == (3, 4)
    cache.pool.memory.fill_(-1)
    table = cache.open(tokens)
    assert table.length == 3 * PAGE and cache.is_ready(table)
    assert stored_tokens(cache, table) == tokens[:-1]
    assert (cache.num_host_pages, cache.num_free_pages) == (0, 1)
    check_pages(cache, [table])


def test_a_paused_sequence_resumes_from_its_host_pages() -> None:
    cache, tokens = new_cache(num_pages=4, host_pages=8), prompt(3 * PAGE + 20)
    run_and_close(cache, tokens)
    run_and_close(cache, prompt(4 * PAGE, seed=1))
    table = cache.open(tokens)
    assert table.length == 3 * PAGE
    store_tokens(cache, table, [*tokens, 5])
    assert stored_tokens(cache, table) == [*tokens, 5]


def test_a_full_host_drops_the_least_recently_used_pages_first() -> None:
    cache = new_cache(num_pages=4, host_pages=5)
    old, new = prompt(3 * PAGE + 1), prompt(3 * PAGE + 1, seed=1)
    run_and_close(cache, old)
    run_and_close(cache, new)
    fill_pages(cache, seed=2, pages=4)
    assert cache.num_host_pages == 5
    assert cache.num_pages_to_open(old) == 4
    table = cache.open(old)
    assert table.length == 2 * PAGE and stored_tokens(cache, table) == old[: 2 * PAGE]
    cache.close(table)
    table = cache.open(new)
    assert table.length == 3 * PAGE and stored_tokens(cache, table) == new[:-1]


def test_a_page_that_was_looked_up_is_dropped_later() -> None:
    cache = new_cache(num_pages=3, host_pages=4)
    first, second = prompt(2 * PAGE + 1), prompt(2 * PAGE + 1, seed=1)
    run_and_close(cache, first)
    run_and_close(cache, second)
    fill_pages(cache, seed=2, pages=3)
    busy = cache.open([1])
    assert cache.reserve(busy, 3 * PAGE)
    assert cache.open(first).length == 0, "no page is free"
    cache.close(busy)
    run_and_close(cache, prompt(2 * PAGE + 1, seed=3))
    fill_pages(cache, seed=4, pages=3)  # the host drops two of its four pages
    assert cache.open(first).length == 2 * PAGE


def test_as_many_host_pages_are_loaded_as_device_pages_are_free() -> None:
    cache, tokens = new_cache(num_pages=4, host_pages=4), prompt(4 * PAGE)
    run_and_close(cache, tokens)
    busy = cache.open(prompt(9, 1))
    assert cache.reserve(busy, 2 * PAGE + 1)
    assert cache.num_host_pages == 3
    table = cache.open([*tokens, 1])
    assert table.length == PAGE, "only the first page is still on the device, and no page is free"
    cache.trim(busy)
    again = cache.open([*tokens, 1])
    assert again.length == 4 * PAGE and stored_tokens(cache, again) == tokens
    check_pages(cache, [table, again])


def test_loading_host_pages_evicts_others_but_not_themselves() -> None:
    cache, first, second = new_cache(num_pages=4, host_pages=3), prompt(200), prompt(200, seed=1)
    run_and_close(cache, first)
    run_and_close(cache, second)
    assert cache.num_host_pages == 3, "the host is full"
    for tokens in (first, second, first, second):
        table = cache.open(tokens)
        assert table.length == 3 * PAGE and stored_tokens(cache, table) == tokens[: 3 * PAGE]
        cache.close(table)
        check_pages(cache, [])


def test_a_page_computed_again_replaces_its_copy_on_the_host() -> None:
    cache, tokens = new_cache(num_pages=3, host_pages=3), prompt(2 * PAGE + 1)
    run_and_close(cache, tokens)
    fill_pages(cache, seed=1, pages=3)
    alone = cache.open(tokens[:PAGE])  # the last token must run, so no page is shared
    store_tokens(cache, alone, tokens[:PAGE])
    assert cache.num_host_pages == 1
    table = cache.open(tokens)
    assert table.length == 2 * PAGE and stored_tokens(cache, table) == tokens[:-1]
    check_pages(cache, [alone, table])


def test_pages_on_the_host_are_not_shared_across_salts() -> None:
    cache, tokens = new_cache(num_pages=3, host_pages=6), prompt(2 * PAGE + 1)
    run_and_close(cache, tokens, salt=1)
    fill_pages(cache, seed=1, pages=3)
    assert cache.open(tokens).length == 0
    assert cache.open(tokens, salt=1).length == 2 * PAGE


class SlowStore(PageStore):
    """A fake page store: copies up to ticket `ended` are done, and no data is copied."""

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


def test_using_a_page_waits_for_its_copy() -> None:
    cache, tokens = new_cache(num_pages=4, host_pages=4), prompt(3 * PAGE + 1)
    run_and_close(cache, tokens)
    slow = cache._host._store = SlowStore()
    scratch = cache.open([1])
    assert cache.reserve(scratch, 2 * PAGE)
    assert slow.waited == [1], "one page was free, the other one is still being copied"
    cache.close(scratch)
    first = cache.open(tokens)
    sharing = cache.open([*tokens[:-1], 1])
    forked = cache.fork(first)
    assert forked is not None and slow.issued == 2 and slow.waited == [1]
    for table in (first, sharing, forked):
        assert not cache.is_ready(table)
        cache.slots(table)
        cache.slots(table)  # each call waits: it may come from another stream
    assert slow.waited == [1] + [2] * 6
    slow.ended = 2
    assert cache.is_ready(first)
    cache.slots(forked)
    assert len(slow.waited) == 7


def test_copying_from_a_page_waits_until_it_is_loaded() -> None:
    cache, tokens = new_cache(num_pages=6, host_pages=4), prompt(PAGE + 40)
    table = cache.open(tokens)
    store_tokens(cache, table, tokens)
    cache.close(table, tokens)
    fill_pages(cache, seed=1, pages=6)
    slow = cache._host._store = SlowStore()
    other = cache.open([*tokens[:PAGE], 1])  # the full page is loaded
    assert slow.issued == 1 and not cache.is_ready(other)
    partial = cache.open([*tokens[:30], 1])
    assert slow.waited == [1] and cache.is_ready(partial), "copied on the device, in stream order"
    slow.ended = 1
    table = cache.open([*tokens, 1])
    assert table.length == len(tokens) and not cache.is_ready(table), (
        "its partial page is being loaded"
    )
    assert cache.fork(table) is not None
    assert slow.waited == [1, 2]


@pytest.mark.parametrize("seed", range(4))
def test_no_page_is_dropped_while_the_host_has_free_pages(seed: int) -> None:
    cache = small_cache(num_pages=12, host_pages=2000)
    traffic = Traffic(cache, seed, all_kept=True)
    for _ in range(150):
        traffic.step()
    traffic.check()
    assert cache.num_host_pages > 12
