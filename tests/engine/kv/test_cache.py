"""Tests of the KV cache: sharing, forking, scratch slots, eviction, and what passes store."""

from typing import Any

import pytest
import torch

from engine.kv.page_pool import PAGE
from engine.kv.page_table import PageTable
from engine.runtime.engine import Engine
from engine.spec import DraftSpec, StreamSpec
from tests.engine.kv_tokens import new_cache, store_tokens, stored_tokens
from tests.engine.models import (
    PLAIN,
    SMALL,
    checkpoint,
    draft_ahead,
    draft_model,
    load,
    prompt,
    request,
)
from tests.engine.page_traffic import Traffic, small_cache
from tests.variations import variations


def test_a_prompt_with_the_same_beginning_shares_its_full_pages() -> None:
    cache, tokens = new_cache(), prompt(150)
    first = cache.open(tokens)
    store_tokens(cache, first, tokens)
    second = cache.open([*tokens[:140], 1, 2, 3])
    assert second.length == 128 and second.pages == first.pages[:2]
    assert stored_tokens(cache, second) == tokens[:128]


def test_the_last_token_is_never_taken_from_the_cache() -> None:
    cache, tokens = new_cache(), prompt(2 * PAGE)
    store_tokens(cache, cache.open(tokens), tokens)
    assert cache.open(tokens).length == 2 * PAGE - 1


def test_sequences_with_different_salts_share_no_page() -> None:
    cache, tokens = new_cache(), prompt(100)
    store_tokens(cache, cache.open(tokens), tokens)
    assert cache.open(tokens, salt=1).length == 0


def test_a_page_is_found_by_all_the_tokens_before_it() -> None:
    cache, tokens = new_cache(), prompt(3 * PAGE)
    store_tokens(cache, cache.open(tokens), tokens)
    assert cache.open([1, *tokens[1:]]).length == 0


def test_closed_prefixes_are_evicted_from_their_last_page_on() -> None:
    cache, tokens = new_cache(num_pages=4), prompt(3 * PAGE + 1)
    table = cache.open(tokens)
    store_tokens(cache, table, tokens)
    cache.close(table)
    assert cache.num_free_pages == 4
    other = cache.open(prompt(2 * PAGE, seed=1))
    assert cache.reserve(other, 2 * PAGE)
    assert cache.open(tokens).length == 2 * PAGE


def test_reserve_without_enough_free_pages_changes_nothing() -> None:
    cache = new_cache(num_pages=2)
    table = cache.open([1])
    assert cache.reserve(table, PAGE)
    assert not cache.reserve(table, 3 * PAGE)
    assert len(table.pages) == 1 and cache.num_free_pages == 1


def test_keep_compacts_the_accepted_rows() -> None:
    cache, tokens = new_cache(), prompt(10)
    table = cache.open(tokens)
    store_tokens(cache, table, tokens)
    assert cache.reserve(table, 6)
    slots = cache.slots(table)[10:16]
    rows = torch.arange(100.0, 106.0).view(-1, 1, 1).expand(-1, 1, 4)
    for layer in range(2):
        cache.pool.write(layer, slots, rows, rows)
    cache.append_rows(table, [0, 2, 5])
    assert stored_tokens(cache, table) == [*tokens, 100, 102, 105]


def test_a_fork_shares_full_pages_and_copies_the_partial_one() -> None:
    cache, tokens = new_cache(), prompt(PAGE + 10)
    table = cache.open(tokens)
    store_tokens(cache, table, tokens)
    forked = cache.fork(table)
    assert forked is not None and forked.pages[0] == table.pages[0]
    assert forked.pages[1] != table.pages[1]
    store_tokens(cache, table, [*tokens, 7])
    store_tokens(cache, forked, [*tokens, 9])
    assert stored_tokens(cache, table) == [*tokens, 7]
    assert stored_tokens(cache, forked) == [*tokens, 9]


def test_a_fork_without_a_page_for_the_partial_one_is_refused() -> None:
    cache, tokens = new_cache(num_pages=1), prompt(10)
    table = cache.open(tokens)
    store_tokens(cache, table, tokens)
    assert cache.fork(table) is None


def test_two_sequences_that_fill_equal_pages_share_one_in_the_end() -> None:
    cache, tokens = new_cache(), prompt(PAGE + 1)
    first, second = cache.open(tokens), cache.open(tokens)
    store_tokens(cache, first, tokens)
    store_tokens(cache, second, tokens)
    assert first.pages[0] == second.pages[0]
    cache.close(first)
    cache.close(second)
    assert cache.num_free_pages == cache.num_pages


def test_trim_frees_the_scratch_pages() -> None:
    cache = new_cache()
    table = cache.open([1])
    assert cache.reserve(table, 5 * PAGE)
    cache.append_rows(table, [0])
    cache.trim(table)
    assert len(table.pages) == 1 and cache.num_free_pages == 7


def test_opening_costs_the_pages_that_no_running_sequence_uses() -> None:
    cache, tokens = new_cache(num_pages=8, host_pages=2), prompt(3 * PAGE + 1)
    assert cache.num_pages_to_open(tokens) == 4
    running = cache.open(tokens)
    store_tokens(cache, running, tokens)
    assert cache.num_pages_to_open(tokens) == 1
    assert cache.num_pages_to_open([*tokens[:100], 1]) == 1
    cache.close(running)
    assert cache.num_pages_to_open(tokens) == 4, "idle pages are counted as free"


@pytest.mark.parametrize("length", [10, PAGE - 2, 2 * PAGE])
def test_append_copies_appends_slots_of_another_table_to_the_prefix(length: int) -> None:
    cache, tokens = new_cache(), prompt(length)
    table, scratch = cache.open(tokens), PageTable()
    store_tokens(cache, table, tokens)
    assert cache.reserve(scratch, 2 * PAGE) and cache.reserve(table, 4)
    source = cache.slots(scratch)[[70, 3, 127, 0]]
    rows = torch.tensor([500.0, 501.0, 502.0, 503.0]).view(-1, 1, 1).expand(-1, 1, 4)
    for layer in range(2):
        cache.pool.write(layer, source, rows, rows)
    cache.append_copies(table, source)
    assert stored_tokens(cache, table) == [*tokens, 500, 501, 502, 503]
    cache.append_copies(table, source[:0])
    assert table.length == length + 4


def test_append_copies_without_reserved_pages_is_an_error() -> None:
    cache = new_cache()
    with pytest.raises(AssertionError, match="reserve"):
        cache.append_copies(PageTable(), torch.tensor([1]))


@pytest.mark.parametrize("host_pages", [0, 1, 5, 40])
@pytest.mark.parametrize("num_pages", [9, 24])
@pytest.mark.parametrize("seed", range(3))
def test_random_traffic_never_corrupts_stored_pages(
    seed: int, num_pages: int, host_pages: int
) -> None:
    cache = small_cache(num_pages, host_pages)
    traffic = Traffic(cache, seed)
    for step in range(120):
        traffic.step()
        if step % 5 == 0:
            traffic.queue_all_checks()
        traffic.check()
    traffic.finish_all()
    traffic.check()
    assert cache.num_free_pages == num_pages
    cache.release()


def stored_prefixes(engine: Engine) -> dict[str, tuple[list[int], torch.Tensor, torch.Tensor]]:
    """Return tokens and stored keys and values [L, n, Hkv, D] of each running sequence."""
    found = {}
    for sequence in engine._scheduler.running:
        slots = engine._cache.slots(sequence.pages)[: sequence.pages.length]
        tokens = sequence.tokens[: sequence.pages.length]
        found[sequence.request_id] = (
            tokens,
            engine._cache.pool.keys[:, slots],
            engine._cache.pool.values[:, slots],
        )
    return found


@pytest.mark.parametrize("ahead", [False, True], ids=["", "ahead"])
@pytest.mark.parametrize("method", variations(["subspec", "specexec", "ngram"], quick=["specexec"]))
def test_after_each_pass_the_prefix_is_what_a_plain_forward_stores(
    method: str, ahead: bool
) -> None:
    folder = checkpoint("llama")
    source = (
        str(folder) if method == "specexec" else None
    )  # the target as its own draft: every row is accepted
    bounds: dict[str, Any] = {} if method == "ngram" else SMALL
    engine = load(folder, DraftSpec(method, source=source, **bounds))
    if ahead:
        draft_ahead(engine)
    plain = load(folder, PLAIN)
    for i, ids in enumerate((prompt(6) * 5, prompt(70, 2))):
        engine.add(request(str(i), ids, max_tokens=20, temperature=0.8 * i, seed=i))
    passes = 0
    while engine.has_work():
        engine.step()
        passes += 1
        for tokens, keys, values in stored_prefixes(engine).values():
            want_keys, want_values = plain_prefix(plain, tokens)
            assert torch.equal(keys, want_keys)
            assert torch.equal(values, want_values)
    assert passes > 2


def plain_prefix(plain: Engine, tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the keys and values [L, n, Hkv, D] that one forward over these tokens stores."""
    plain.add(request("twin", [*tokens, 3], max_tokens=2))
    plain.step()
    _, keys, values = stored_prefixes(plain)["twin"]
    plain.abort("twin")
    plain.step()
    return keys[:, : len(tokens)], values[:, : len(tokens)]


@pytest.mark.parametrize("ahead", [False, True], ids=["", "ahead"])
@pytest.mark.parametrize("seed", variations([0, 9], quick=[9]))
def test_the_separate_draft_model_has_no_holes_in_its_cache(seed: int, ahead: bool) -> None:
    """With seed 0 the draft is the target and all rows are accepted, with seed 9 nearly none."""
    folder = checkpoint("llama", seed=seed)
    engine = load(checkpoint("llama"), DraftSpec("specexec", source=str(folder), **SMALL))
    if ahead:
        draft_ahead(engine)
    plain = load(folder, PLAIN)
    engine.add(request("r", prompt(6) * 5, max_tokens=40))
    caches: Any = draft_model(engine).caches
    compared = 0
    while engine.has_work():
        engine.step()
        for sequence, table in caches._tables.items():
            slots = caches.cache.slots(table)[: table.length]
            keys, values = plain_prefix(plain, sequence.tokens[: table.length])
            # With the fast numerics of a draft, values are equal up to rounding. A hole is zeros.
            torch.testing.assert_close(caches.cache.pool.keys[:, slots], keys)
            torch.testing.assert_close(caches.cache.pool.values[:, slots], values)
            compared += table.length > 30
    assert compared > 2


@pytest.mark.parametrize("method", ["subspec", "specexec"])
def test_drafted_rows_hold_the_kv_of_their_own_path(method: str) -> None:
    """Check rows drafted before a pass or during it, also after the root has changed."""
    folder = checkpoint("llama")
    resident = StreamSpec(tier="resident")  # so that both drafts equal the target
    source = str(folder) if method == "specexec" else None
    engine = load(folder, DraftSpec(method, source=source, **SMALL), stream=resident)
    draft_ahead(engine, steps=2)
    plain = load(folder, PLAIN)
    engine.add(request("r", prompt(6) * 5, max_tokens=40, temperature=1.0, seed=3))
    pool = draft_model(engine).caches.cache.pool
    compared = 0
    while engine.has_work():
        engine.step()
        for sequence, growth in engine._drafting._growths.items():
            for node in growth.ran[:4]:
                keys, values = plain_prefix(plain, [*sequence.tokens, *growth.path(node)])
                assert node.slot is not None
                torch.testing.assert_close(pool.keys[:, node.slot], keys[:, -1])
                torch.testing.assert_close(pool.values[:, node.slot], values[:, -1])
                compared += 1
    assert compared > 10
