"""Pages: sharing, forking, scratch, eviction; and what the passes leave in them."""

from typing import Any

import pytest
import torch

from engine.engine import Engine
from engine.kv_cache import PAGE, KVCache, PageTable
from engine.spec import DraftSpec
from tests.engine.models import PLAIN, SMALL, checkpoint, load, prompt, request

CPU = torch.device("cpu")


def cache(num_pages: int = 8) -> KVCache:
    return KVCache(2, num_pages, 1, 4, torch.float32, CPU)


def store(pool: KVCache, table: PageTable, tokens: list[int]) -> None:
    """Write KV that tells the token, keep it and publish it, as a pass over a chain does."""
    rows = len(tokens) - table.length
    assert pool.reserve(table, rows)
    slots = pool.slots(table)[table.length : len(tokens)]
    values = torch.tensor(tokens[table.length :], dtype=torch.float32)
    for layer in range(2):
        pool.write(
            layer,
            slots,
            values.view(-1, 1, 1).expand(-1, 1, 4),
            values.view(-1, 1, 1).expand(-1, 1, 4),
        )
    pool.keep(table, range(rows))
    pool.publish(table, tokens)


def stored(pool: KVCache, table: PageTable) -> list[int]:
    keys, values = pool.read(1, pool.slots(table)[: table.length])
    assert torch.equal(keys, values)
    return keys[:, 0, 0].int().tolist()


def test_a_prompt_with_the_same_beginning_shares_its_full_pages() -> None:
    pool, tokens = cache(), prompt(150)
    first = pool.open(tokens)
    store(pool, first, tokens)
    second = pool.open([*tokens[:140], 1, 2, 3])
    assert second.length == 128 and second.pages == first.pages[:2]
    assert stored(pool, second) == tokens[:128]


def test_the_last_token_is_never_taken_from_the_cache() -> None:
    pool, tokens = cache(), prompt(2 * PAGE)
    store(pool, pool.open(tokens), tokens)
    assert pool.open(tokens).length == PAGE


def test_other_salts_share_nothing() -> None:
    pool, tokens = cache(), prompt(100)
    store(pool, pool.open(tokens), tokens)
    assert pool.open(tokens, salt=1).length == 0


def test_a_page_is_found_by_all_the_tokens_before_it() -> None:
    pool, tokens = cache(), prompt(3 * PAGE)
    store(pool, pool.open(tokens), tokens)
    assert pool.open([1, *tokens[1:]]).length == 0


def test_closed_prefixes_stay_until_their_room_is_needed_the_end_going_first() -> None:
    pool, tokens = cache(num_pages=4), prompt(3 * PAGE + 1)
    table = pool.open(tokens)
    store(pool, table, tokens)
    pool.close(table)
    assert pool.num_free_pages == 4
    other = pool.open(prompt(2 * PAGE, seed=1))
    assert pool.reserve(other, 2 * PAGE)
    assert pool.open(tokens).length == 2 * PAGE


def test_reserve_refuses_what_is_not_there_and_changes_nothing() -> None:
    pool = cache(num_pages=2)
    table = pool.open([1])
    assert pool.reserve(table, PAGE)
    assert not pool.reserve(table, 3 * PAGE)
    assert len(table.pages) == 1 and pool.num_free_pages == 1


def test_keep_compacts_the_accepted_rows() -> None:
    pool, tokens = cache(), prompt(10)
    table = pool.open(tokens)
    store(pool, table, tokens)
    assert pool.reserve(table, 6)
    slots = pool.slots(table)[10:16]
    rows = torch.arange(100.0, 106.0).view(-1, 1, 1).expand(-1, 1, 4)
    for layer in range(2):
        pool.write(layer, slots, rows, rows)
    pool.keep(table, [0, 2, 5])
    assert stored(pool, table) == [*tokens, 100, 102, 105]


def test_a_fork_shares_full_pages_and_copies_the_partial_one() -> None:
    pool, tokens = cache(), prompt(PAGE + 10)
    table = pool.open(tokens)
    store(pool, table, tokens)
    twin = pool.fork(table)
    assert twin is not None and twin.pages[0] == table.pages[0]
    assert twin.pages[1] != table.pages[1]
    store(pool, table, [*tokens, 7])
    store(pool, twin, [*tokens, 9])
    assert stored(pool, table) == [*tokens, 7]
    assert stored(pool, twin) == [*tokens, 9]


def test_a_fork_without_a_page_for_the_partial_one_is_refused() -> None:
    pool, tokens = cache(num_pages=1), prompt(10)
    table = pool.open(tokens)
    store(pool, table, tokens)
    assert pool.fork(table) is None


def test_twins_that_fill_the_same_page_end_up_with_one() -> None:
    pool, tokens = cache(), prompt(PAGE + 1)
    first, second = pool.open(tokens), pool.open(tokens)
    store(pool, first, tokens)
    store(pool, second, tokens)
    assert first.pages[0] == second.pages[0]
    pool.close(first)
    pool.close(second)
    assert pool.num_free_pages == pool.num_pages


def test_trim_gives_scratch_back() -> None:
    pool = cache()
    table = pool.open([1])
    assert pool.reserve(table, 5 * PAGE)
    pool.keep(table, [0])
    pool.trim(table)
    assert len(table.pages) == 1 and pool.num_free_pages == 7


def stored_prefixes(engine: Engine) -> dict[str, tuple[list[int], torch.Tensor, torch.Tensor]]:
    """Tokens and stored keys and values [L, n, Hkv, D] of every running sequence."""
    found = {}
    for sequence in engine._scheduler.running:
        slots = engine._cache.slots(sequence.pages)[: sequence.pages.length]
        tokens = sequence.tokens[: sequence.pages.length]
        name = sequence.request.message.request_id
        found[name] = (tokens, engine._cache.keys[:, slots], engine._cache.values[:, slots])
    return found


@pytest.mark.parametrize("method", ["subspec", "specexec", "ngram"])
def test_after_each_pass_the_prefix_is_what_a_plain_forward_stores(method: str) -> None:
    folder = checkpoint("llama")
    source = str(folder) if method == "specexec" else None  # the target itself: all is accepted
    bounds: dict[str, Any] = {} if method == "ngram" else SMALL
    engine = load(folder, DraftSpec(method, source=source, **bounds))
    plain = load(folder, PLAIN)
    for i, ids in enumerate((prompt(6) * 5, prompt(70, 2))):
        engine.add(request(str(i), ids, max_tokens=12, temperature=0.8 * i, seed=i))
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
    """Keys and values [L, n, Hkv, D] that one forward over these tokens stores."""
    plain.add(request("twin", [*tokens, 3], max_tokens=2))
    plain.step()
    _, keys, values = stored_prefixes(plain)["twin"]
    plain.abort("twin")
    plain.step()
    return keys[:, : len(tokens)], values[:, : len(tokens)]


@pytest.mark.parametrize("seed", [0, 9])
def test_the_separate_draft_model_has_no_holes_in_its_cache(seed: int) -> None:
    """Seed 0: the target itself, all is accepted. Seed 9: another model, nearly nothing is."""
    folder = checkpoint("llama", seed=seed)
    engine = load(checkpoint("llama"), DraftSpec("specexec", source=str(folder), **SMALL))
    plain = load(folder, PLAIN)
    engine.add(request("r", prompt(6) * 5, max_tokens=16))
    drafter: Any = engine._drafter
    compared = 0
    while engine.has_work():
        engine.step()
        for sequence, table in drafter._tables.items():
            slots = drafter.model.cache.slots(table)[: table.length]
            keys, values = plain_prefix(plain, sequence.tokens[: table.length])
            # The draft's numerics are fast: equal up to rounding, where a hole would be zeros.
            torch.testing.assert_close(drafter.model.cache.keys[:, slots], keys)
            torch.testing.assert_close(drafter.model.cache.values[:, slots], values)
            compared += table.length > 30
    assert compared > 2
