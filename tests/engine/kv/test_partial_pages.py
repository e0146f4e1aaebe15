"""Tests of the partial last page of a closed sequence: found, copied, evicted, replaced."""

from collections.abc import Sequence

import pytest
import torch

from engine.kv.cache import KVCache
from engine.kv.page_pool import PAGE, PagePool
from engine.kv.page_table import PageTable
from tests.engine.models import prompt
from tests.engine.page_traffic import CPU, check_pages, count_wrong, run_prompt, small_cache


def run_sequence(cache: KVCache, tokens: list[int], salt: int = 0) -> PageTable:
    """Open a sequence, run all its tokens, and publish its full pages."""
    table = cache.open(tokens, salt)
    assert run_prompt(cache, table, tokens)
    cache.publish(table, tokens)
    return table


def run_and_close(cache: KVCache, tokens: list[int], salt: int = 0) -> None:
    """Run a sequence and close it, so that its partial page is indexed too."""
    cache.close(run_sequence(cache, tokens, salt), tokens)


def open_checked(
    cache: KVCache, tokens: list[int], salt: int = 0, beside: Sequence[PageTable] = ()
) -> PageTable:
    """Open a sequence and check its content. `beside` are the tables of running sequences."""
    table = cache.open(tokens, salt)
    check_pages(cache, [*beside, table])
    assert int(count_wrong(cache, table, tokens)) == 0
    return table


def evict_all(cache: KVCache) -> None:
    """Evict every idle page: reserve all free pages for another table, and close it."""
    table = PageTable()
    assert cache.reserve(table, cache.num_free_pages * PAGE)
    cache.close(table)


@pytest.mark.parametrize("length", [1, 40, PAGE, PAGE + 1, 3 * PAGE - 1, 201])
def test_a_second_turn_reuses_every_stored_token(length: int) -> None:
    cache, tokens = small_cache(12), prompt(length)
    run_and_close(cache, tokens)
    table = open_checked(cache, [*tokens, 7, 8, 9])
    assert table.length == length and table.num_published == length // PAGE
    assert cache.num_pages_to_open([*tokens, 7, 8, 9]) == -(-(length + 3) // PAGE) - length // PAGE


@pytest.mark.parametrize("shared", [1, 30, PAGE, PAGE + 1, 2 * PAGE - 1])
def test_a_prompt_that_differs_within_a_page_copies_the_common_rows(shared: int) -> None:
    cache, tokens = small_cache(8), prompt(2 * PAGE + 9)
    running = run_sequence(cache, tokens)
    other = [*tokens[:shared], 1, 2]
    table = open_checked(cache, other, beside=[running])
    assert table.length == shared
    assert not set(table.pages[shared // PAGE :]) & set(running.pages), (
        "the new sequence has its own copy"
    )
    assert run_prompt(cache, table, other)
    assert int(count_wrong(cache, table, other)) == int(count_wrong(cache, running, tokens)) == 0


def test_the_last_token_is_computed_again_when_all_is_stored() -> None:
    cache, tokens = small_cache(8), prompt(100)
    run_and_close(cache, tokens)
    assert open_checked(cache, tokens).length == 99


def test_only_verified_tokens_are_stored_not_the_scratch_rows() -> None:
    cache, tokens = small_cache(8), prompt(100)
    table = run_sequence(cache, tokens[:70])
    assert cache.reserve(table, 30)
    cache.close(table, tokens)  # the last 30 tokens have no KV yet
    assert open_checked(cache, [*tokens, 1]).length == 70


def test_closing_without_tokens_or_prefix_cache_stores_no_partial_page() -> None:
    cache, tokens = small_cache(8), prompt(40)
    cache.close(run_sequence(cache, tokens))
    assert open_checked(cache, [*tokens, 1]).length == 0
    pool = PagePool(
        num_layers=2, num_pages=8, num_kv_heads=1, head_dim=2, dtype=torch.float32, device=CPU
    )
    uncached = KVCache(pool, prefix_cache=False)
    run_and_close(uncached, tokens)
    assert uncached.open([*tokens, 1]).length == 0


def test_sequences_with_different_salts_share_no_partial_page() -> None:
    cache, tokens = small_cache(8), prompt(40)
    run_and_close(cache, tokens, salt=1)
    assert open_checked(cache, [*tokens, 1]).length == 0
    assert open_checked(cache, [*tokens, 1], salt=1).length == 40


def test_a_longer_page_replaces_a_stored_prefix_of_it() -> None:
    cache, tokens = small_cache(8), prompt(PAGE)
    for length in (10, 11, 40):
        run_and_close(cache, tokens[:length])
        assert len(cache._idle) == 1
        check_pages(cache, [])
    full = run_sequence(cache, tokens)
    assert not cache._idle, "the full page replaces the partial one"
    check_pages(cache, [full])


def test_a_prefix_of_a_stored_page_is_not_stored_again() -> None:
    cache, tokens = small_cache(8, host_pages=4), prompt(40)
    run_and_close(cache, tokens)
    run_and_close(cache, tokens[:30])
    assert len(cache._idle) == 1
    evict_all(cache)
    run_and_close(cache, tokens[:30])
    assert (len(cache._idle), cache.num_host_pages) == (0, 1)
    assert open_checked(cache, [*tokens, 1]).length == 40


def test_two_different_continuations_are_both_stored() -> None:
    cache, tokens = small_cache(8), prompt(100)
    one, other = [*tokens, 1, 1, 1], [*tokens, 2, 2]
    table = run_sequence(cache, tokens)
    forked = cache.fork(table)
    assert forked is not None
    for branch, own in ((table, one), (forked, other)):
        assert run_prompt(cache, branch, own)
        cache.close(branch, own)
    for own in (one, other):
        table = open_checked(cache, [*own, 5])
        assert table.length == len(own)
        cache.close(table)


def test_a_partial_page_is_evicted_to_the_host_and_loaded_again() -> None:
    cache, tokens = small_cache(4, host_pages=4), prompt(2 * PAGE + 20)
    run_and_close(cache, tokens)
    evict_all(cache)
    assert cache.num_host_pages == 3
    cache.pool.memory.fill_(-1)
    table = open_checked(cache, [*tokens, 1, 2])
    assert table.length == len(tokens)
    assert cache.num_host_pages == 1, "the partial page was copied, so that others can use it too"
    cache.close(table)
    assert open_checked(cache, [*tokens, 3]).length == len(tokens)


def test_a_host_page_survives_the_eviction_that_its_own_loading_causes() -> None:
    cache, tokens, other = small_cache(1, host_pages=1), prompt(40), prompt(40, 1)
    run_and_close(cache, tokens)
    run_and_close(cache, other)
    assert cache.num_host_pages == 1
    assert open_checked(cache, [*tokens, 1]).length == 40
    assert cache.num_host_pages == 1


@pytest.mark.parametrize("host_pages", [0, 1, 4])
@pytest.mark.parametrize("length", [40, PAGE])
def test_the_only_free_page_can_be_the_page_to_copy_from(length: int, host_pages: int) -> None:
    cache, tokens = small_cache(1, host_pages), prompt(length)
    run_and_close(cache, tokens)
    own = [*tokens[:30], 1]
    table = open_checked(cache, own)
    assert table.length == 30
    assert cache.num_host_pages == min(host_pages, 1)
    assert run_prompt(cache, table, own)
    cache.close(table)
    assert open_checked(cache, [*tokens[:30], 2]).length == (30 if host_pages else 0)


def test_a_page_in_use_is_not_copied_when_no_page_is_free() -> None:
    cache, tokens = small_cache(1), prompt(PAGE)
    running = run_sequence(cache, tokens)
    table = cache.open([*tokens[:30], 1])
    assert table.length == 0 and table.pages == []
    check_pages(cache, [running, table])


def test_the_page_to_copy_from_is_evicted_last() -> None:
    cache = small_cache(4)
    tokens, other = prompt(40), prompt(3 * PAGE, 1)
    run_and_close(cache, tokens)  # the least recently used
    run_and_close(cache, other)
    table = open_checked(cache, [*tokens, 1])
    assert table.length == 40
    assert open_checked(cache, [*tokens, 2], beside=[table]).length == 40


def test_storing_a_covered_prefix_marks_the_longer_page_as_used() -> None:
    cache, tokens, running = small_cache(3), prompt(40), PageTable()
    longer, shorter = run_sequence(cache, tokens), run_sequence(cache, tokens[:30])
    cache.close(longer, tokens)
    run_and_close(cache, prompt(40, 1))
    cache.close(shorter, tokens[:30])
    assert cache.reserve(running, 2 * PAGE)
    assert open_checked(cache, [*tokens, 1], beside=[running]).length == 40
