"""The last page of a sequence that has gone: found, copied, moved, replaced, never shared."""

from collections.abc import Sequence

import pytest
import torch

from engine.kv.cache import KVCache
from engine.kv.page_pool import PAGE, PagePool
from engine.kv.page_table import PageTable
from tests.engine.models import prompt
from tests.engine.page_traffic import CPU, check_pages, run, small_cache, wrong


def stored(cache: KVCache, tokens: list[int], salt: int = 0) -> PageTable:
    """A sequence that has run all its tokens."""
    table = cache.open(tokens, salt)
    assert run(cache, table, tokens)
    cache.publish(table, tokens)
    return table


def gone(cache: KVCache, tokens: list[int], salt: int = 0) -> None:
    cache.close(stored(cache, tokens, salt), tokens)


def opened(
    cache: KVCache, tokens: list[int], salt: int = 0, beside: Sequence[PageTable] = ()
) -> PageTable:
    """What is stored of a sequence; it is what should be. Others run `beside` it."""
    table = cache.open(tokens, salt)
    check_pages(cache, [*beside, table])
    assert int(wrong(cache, table, tokens)) == 0
    return table


def crowd_out(cache: KVCache) -> None:
    """Open a sequence of other tokens that takes every free page, and close it."""
    table = PageTable()
    assert cache.reserve(table, cache.num_free_pages * PAGE)
    cache.close(table)


@pytest.mark.parametrize("length", [1, 40, PAGE, PAGE + 1, 3 * PAGE - 1, 201])
def test_a_second_turn_finds_all_that_was_stored(length: int) -> None:
    cache, tokens = small_cache(12), prompt(length)
    gone(cache, tokens)
    table = opened(cache, [*tokens, 7, 8, 9])
    assert table.length == length and table.num_published == length // PAGE
    assert cache.num_pages_to_open([*tokens, 7, 8, 9]) == -(-(length + 3) // PAGE) - length // PAGE


@pytest.mark.parametrize("shared", [1, 30, PAGE, PAGE + 1, 2 * PAGE - 1])
def test_a_prompt_that_departs_within_a_page_takes_what_is_common(shared: int) -> None:
    cache, tokens = small_cache(8), prompt(2 * PAGE + 9)
    running = stored(cache, tokens)
    other = [*tokens[:shared], 1, 2]
    table = opened(cache, other, beside=[running])
    assert table.length == shared
    assert not set(table.pages[shared // PAGE :]) & set(running.pages), "a copy, of its own"
    assert run(cache, table, other)
    assert int(wrong(cache, table, other)) == int(wrong(cache, running, tokens)) == 0


def test_the_last_token_is_computed_again_when_all_is_stored() -> None:
    cache, tokens = small_cache(8), prompt(100)
    gone(cache, tokens)
    assert opened(cache, tokens).length == 99


def test_only_verified_tokens_are_stored_not_the_rows_behind_them() -> None:
    cache, tokens = small_cache(8), prompt(100)
    table = stored(cache, tokens[:70])
    assert cache.reserve(table, 30)
    cache.close(table, tokens)  # 30 of them have no KV yet
    assert opened(cache, [*tokens, 1]).length == 70


def test_without_its_tokens_or_a_prefix_cache_nothing_partial_is_stored() -> None:
    cache, tokens = small_cache(8), prompt(40)
    cache.close(stored(cache, tokens))
    assert opened(cache, [*tokens, 1]).length == 0
    unkept = KVCache(PagePool(2, 8, 1, 2, torch.float32, CPU), prefix_cache=False)
    gone(unkept, tokens)
    assert unkept.open([*tokens, 1]).length == 0


def test_other_salts_share_no_partial_page() -> None:
    cache, tokens = small_cache(8), prompt(40)
    gone(cache, tokens, salt=1)
    assert opened(cache, [*tokens, 1]).length == 0
    assert opened(cache, [*tokens, 1], salt=1).length == 40


def test_what_goes_on_replaces_its_own_beginning() -> None:
    cache, tokens = small_cache(8), prompt(PAGE)
    for length in (10, 11, 40):
        gone(cache, tokens[:length])
        assert len(cache._idle) == 1
        check_pages(cache, [])
    full = stored(cache, tokens)
    assert not cache._idle, "nobody needs it beside the full page"
    check_pages(cache, [full])


def test_what_is_stored_with_more_behind_it_is_not_stored_again() -> None:
    cache, tokens = small_cache(8, host_pages=4), prompt(40)
    gone(cache, tokens)
    gone(cache, tokens[:30])
    assert len(cache._idle) == 1
    crowd_out(cache)
    gone(cache, tokens[:30])
    assert (len(cache._idle), cache.num_host_pages) == (0, 1)
    assert opened(cache, [*tokens, 1]).length == 40


def test_both_of_two_ways_to_go_on_are_kept() -> None:
    cache, tokens = small_cache(8), prompt(100)
    one, other = [*tokens, 1, 1, 1], [*tokens, 2, 2]
    table = stored(cache, tokens)
    twin = cache.fork(table)
    assert twin is not None
    for branch, own in ((table, one), (twin, other)):
        assert run(cache, branch, own)
        cache.close(branch, own)
    for own in (one, other):
        table = opened(cache, [*own, 5])
        assert table.length == len(own)
        cache.close(table)


def test_a_partial_page_waits_in_host_memory_too() -> None:
    cache, tokens = small_cache(4, host_pages=4), prompt(2 * PAGE + 20)
    gone(cache, tokens)
    crowd_out(cache)
    assert cache.num_host_pages == 3
    cache.pool.memory.fill_(-1)
    table = opened(cache, [*tokens, 1, 2])
    assert table.length == len(tokens)
    assert cache.num_host_pages == 1, "the partial page was copied: others may go on behind it too"
    cache.close(table)
    assert opened(cache, [*tokens, 3]).length == len(tokens)


def test_a_host_page_is_not_pushed_out_by_the_page_that_makes_room_for_it() -> None:
    cache, tokens, other = small_cache(1, host_pages=1), prompt(40), prompt(40, 1)
    gone(cache, tokens)
    gone(cache, other)
    assert cache.num_host_pages == 1
    assert opened(cache, [*tokens, 1]).length == 40
    assert cache.num_host_pages == 1


@pytest.mark.parametrize("host_pages", [0, 1, 4])
@pytest.mark.parametrize("length", [40, PAGE])
def test_the_only_free_page_is_the_one_to_copy(length: int, host_pages: int) -> None:
    cache, tokens = small_cache(1, host_pages), prompt(length)
    gone(cache, tokens)
    own = [*tokens[:30], 1]
    table = opened(cache, own)
    assert table.length == 30
    assert cache.num_host_pages == min(host_pages, 1)
    assert run(cache, table, own)
    cache.close(table)
    assert opened(cache, [*tokens[:30], 2]).length == (30 if host_pages else 0)


def test_a_page_that_runs_is_not_copied_when_none_is_free() -> None:
    cache, tokens = small_cache(1), prompt(PAGE)
    running = stored(cache, tokens)
    table = cache.open([*tokens[:30], 1])
    assert table.length == 0 and table.pages == []
    check_pages(cache, [running, table])


def test_the_page_to_copy_is_the_last_to_make_room() -> None:
    cache = small_cache(4)
    tokens, other = prompt(40), prompt(3 * PAGE, 1)
    gone(cache, tokens)  # the least recently used
    gone(cache, other)
    table = opened(cache, [*tokens, 1])
    assert table.length == 40
    assert opened(cache, [*tokens, 2], beside=[table]).length == 40


def test_a_page_that_covers_what_was_just_used_stays_longer() -> None:
    cache, tokens, running = small_cache(3), prompt(40), PageTable()
    longer, shorter = stored(cache, tokens), stored(cache, tokens[:30])
    cache.close(longer, tokens)
    gone(cache, prompt(40, 1))
    cache.close(shorter, tokens[:30])
    assert cache.reserve(running, 2 * PAGE)
    assert opened(cache, [*tokens, 1], beside=[running]).length == 40
