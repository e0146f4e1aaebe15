"""The last page of a sequence that has gone: found, copied, moved, replaced, never shared."""

from collections.abc import Sequence

import pytest

from engine.kv.cache import PAGE, KVCache, PageTable
from engine.streaming.cpu_link import CpuDevice
from tests.engine.models import prompt
from tests.engine.page_traffic import check_pages, run, small_cache, wrong


def stored(pool: KVCache, tokens: list[int], salt: int = 0) -> PageTable:
    """A sequence that has run all its tokens."""
    table = pool.open(tokens, salt)
    assert run(pool, table, tokens)
    pool.publish(table, tokens)
    return table


def gone(pool: KVCache, tokens: list[int], salt: int = 0) -> None:
    pool.close(stored(pool, tokens, salt), tokens)


def opened(
    pool: KVCache, tokens: list[int], salt: int = 0, beside: Sequence[PageTable] = ()
) -> PageTable:
    """What is stored of a sequence; it is what should be. Others run `beside` it."""
    table = pool.open(tokens, salt)
    check_pages(pool, [*beside, table])
    assert int(wrong(pool, table, tokens)) == 0
    return table


def crowd_out(pool: KVCache) -> None:
    """A sequence of nobody's tokens takes every free page, and goes."""
    table = PageTable()
    assert pool.reserve(table, pool.num_free_pages * PAGE)
    pool.close(table)


@pytest.mark.parametrize("length", [1, 40, PAGE, PAGE + 1, 3 * PAGE - 1, 201])
def test_a_second_turn_finds_all_that_was_stored(length: int) -> None:
    pool, tokens = small_cache(12), prompt(length)
    gone(pool, tokens)
    table = opened(pool, [*tokens, 7, 8, 9])
    assert table.length == length and table.num_published == length // PAGE
    assert pool.num_pages_to_open([*tokens, 7, 8, 9]) == -(-(length + 3) // PAGE) - length // PAGE


@pytest.mark.parametrize("shared", [1, 30, PAGE, PAGE + 1, 2 * PAGE - 1])
def test_a_prompt_that_departs_within_a_page_takes_what_is_common(shared: int) -> None:
    pool, tokens = small_cache(8), prompt(2 * PAGE + 9)
    running = stored(pool, tokens)
    other = [*tokens[:shared], 1, 2]
    table = opened(pool, other, beside=[running])
    assert table.length == shared
    assert not set(table.pages[shared // PAGE :]) & set(running.pages), "a copy, of its own"
    assert run(pool, table, other)
    assert int(wrong(pool, table, other)) == int(wrong(pool, running, tokens)) == 0


def test_the_last_token_is_computed_again_when_all_is_stored() -> None:
    pool, tokens = small_cache(8), prompt(100)
    gone(pool, tokens)
    assert opened(pool, tokens).length == 99


def test_only_verified_tokens_are_stored_not_the_rows_behind_them() -> None:
    pool, tokens = small_cache(8), prompt(100)
    table = stored(pool, tokens[:70])
    assert pool.reserve(table, 30)
    pool.close(table, tokens)  # 30 of them have no KV yet
    assert opened(pool, [*tokens, 1]).length == 70


def test_without_its_tokens_or_a_prefix_cache_nothing_partial_is_stored() -> None:
    pool, tokens = small_cache(8), prompt(40)
    pool.close(stored(pool, tokens))
    assert opened(pool, [*tokens, 1]).length == 0
    unkept = KVCache(2, 8, 1, 2, pool.keys.dtype, CpuDevice(), prefix_cache=False)
    gone(unkept, tokens)
    assert unkept.open([*tokens, 1]).length == 0


def test_other_salts_share_no_partial_page() -> None:
    pool, tokens = small_cache(8), prompt(40)
    gone(pool, tokens, salt=1)
    assert opened(pool, [*tokens, 1]).length == 0
    assert opened(pool, [*tokens, 1], salt=1).length == 40


def test_what_goes_on_replaces_its_own_beginning() -> None:
    pool, tokens = small_cache(8), prompt(PAGE)
    for length in (10, 11, 40):
        gone(pool, tokens[:length])
        assert len(pool._idle) == 1
        check_pages(pool, [])
    full = stored(pool, tokens)
    assert not pool._idle, "nobody needs it beside the full page"
    check_pages(pool, [full])


def test_what_is_stored_with_more_behind_it_is_not_stored_again() -> None:
    pool, tokens = small_cache(8, host_pages=4), prompt(40)
    gone(pool, tokens)
    gone(pool, tokens[:30])
    assert len(pool._idle) == 1
    crowd_out(pool)
    gone(pool, tokens[:30])
    assert (len(pool._idle), pool.num_host_pages) == (0, 1)
    assert opened(pool, [*tokens, 1]).length == 40


def test_both_of_two_ways_to_go_on_are_kept() -> None:
    pool, tokens = small_cache(8), prompt(100)
    one, other = [*tokens, 1, 1, 1], [*tokens, 2, 2]
    table = stored(pool, tokens)
    twin = pool.fork(table)
    assert twin is not None
    for branch, own in ((table, one), (twin, other)):
        assert run(pool, branch, own)
        pool.close(branch, own)
    for own in (one, other):
        table = opened(pool, [*own, 5])
        assert table.length == len(own)
        pool.close(table)


def test_a_partial_page_waits_in_host_memory_too() -> None:
    pool, tokens = small_cache(4, host_pages=4), prompt(2 * PAGE + 20)
    gone(pool, tokens)
    crowd_out(pool)
    assert pool.num_host_pages == 3
    pool.keys.fill_(-1), pool.values.fill_(-1)
    table = opened(pool, [*tokens, 1, 2])
    assert table.length == len(tokens)
    assert pool.num_host_pages == 1, "the partial page was copied: others may go on behind it too"
    pool.close(table)
    assert opened(pool, [*tokens, 3]).length == len(tokens)


def test_a_host_page_is_not_pushed_out_by_the_page_that_makes_room_for_it() -> None:
    pool, tokens, other = small_cache(1, host_pages=1), prompt(40), prompt(40, 1)
    gone(pool, tokens)
    gone(pool, other)
    assert pool.num_host_pages == 1
    assert opened(pool, [*tokens, 1]).length == 40
    assert pool.num_host_pages == 1


@pytest.mark.parametrize("host_pages", [0, 1, 4])
@pytest.mark.parametrize("length", [40, PAGE])
def test_the_only_free_page_is_the_one_to_copy(length: int, host_pages: int) -> None:
    pool, tokens = small_cache(1, host_pages), prompt(length)
    gone(pool, tokens)
    own = [*tokens[:30], 1]
    table = opened(pool, own)
    assert table.length == 30
    assert pool.num_host_pages == min(host_pages, 1)
    assert run(pool, table, own)
    pool.close(table)
    assert opened(pool, [*tokens[:30], 2]).length == (30 if host_pages else 0)


def test_a_page_that_runs_is_not_copied_when_none_is_free() -> None:
    pool, tokens = small_cache(1), prompt(PAGE)
    running = stored(pool, tokens)
    table = pool.open([*tokens[:30], 1])
    assert table.length == 0 and table.pages == []
    check_pages(pool, [running, table])


def test_the_page_to_copy_is_the_last_to_make_room() -> None:
    pool = small_cache(4)
    tokens, other = prompt(40), prompt(3 * PAGE, 1)
    gone(pool, tokens)  # the least recently used
    gone(pool, other)
    table = opened(pool, [*tokens, 1])
    assert table.length == 40
    assert opened(pool, [*tokens, 2], beside=[table]).length == 40


def test_a_page_that_covers_what_was_just_used_stays_longer() -> None:
    pool, tokens, running = small_cache(3), prompt(40), PageTable()
    longer, shorter = stored(pool, tokens), stored(pool, tokens[:30])
    pool.close(longer, tokens)
    gone(pool, prompt(40, 1))
    pool.close(shorter, tokens[:30])
    assert pool.reserve(running, 2 * PAGE)
    assert opened(pool, [*tokens, 1], beside=[running]).length == 40
