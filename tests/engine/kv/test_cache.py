"""Pages: sharing, forking, scratch, eviction; and what the passes leave in them."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from engine.errors import ModelError
from engine.kv.cache import PAGE, KVCache, PageTable
from engine.runtime.engine import Engine
from engine.spec import DraftSpec, StreamSpec
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
from tests.engine.page_traffic import Traffic, check_pages, small_cache

CPU = torch.device("cpu")


def cache(num_pages: int = 8, host_pages: int = 0) -> KVCache:
    return KVCache(2, num_pages, 1, 4, torch.float32, CPU, host_pages=host_pages)


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
    assert pool.open(tokens).length == 2 * PAGE - 1


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


def fill(pool: KVCache, seed: int, pages: int) -> None:
    """Another sequence comes, needs so many pages, and goes; none of them is indexed."""
    table = pool.open(prompt(9, seed))
    assert pool.reserve(table, pages * PAGE)
    pool.close(table)


def finished(pool: KVCache, tokens: list[int], salt: int = 0) -> None:
    """A sequence that ran and ended: its full pages are idle."""
    table = pool.open(tokens, salt)
    store(pool, table, tokens)
    pool.close(table)


def test_idle_pages_give_way_to_the_host_and_come_back() -> None:
    pool, tokens = cache(num_pages=4, host_pages=4), prompt(3 * PAGE + 1)
    finished(pool, tokens)
    fill(pool, seed=1, pages=4)
    assert (pool.num_host_pages, pool.num_free_pages) == (3, 4)
    pool.keys.fill_(-1), pool.values.fill_(-1)
    table = pool.open(tokens)
    assert table.length == 3 * PAGE and pool.ready(table)
    assert stored(pool, table) == tokens[:-1]
    assert (pool.num_host_pages, pool.num_free_pages) == (0, 1)
    check_pages(pool, [table])


def test_a_paused_sequence_goes_on_where_it_was() -> None:
    pool, tokens = cache(num_pages=4, host_pages=8), prompt(3 * PAGE + 20)
    finished(pool, tokens)
    finished(pool, prompt(4 * PAGE, seed=1))
    table = pool.open(tokens)
    assert table.length == 3 * PAGE
    store(pool, table, [*tokens, 5])
    assert stored(pool, table) == [*tokens, 5]


def test_a_full_host_forgets_the_least_recently_used_the_end_first() -> None:
    pool = cache(num_pages=4, host_pages=5)
    old, new = prompt(3 * PAGE + 1), prompt(3 * PAGE + 1, seed=1)
    finished(pool, old)
    finished(pool, new)
    fill(pool, seed=2, pages=4)
    assert pool.num_host_pages == 5
    assert pool.num_pages_to_open(old) == 4
    table = pool.open(old)
    assert table.length == 2 * PAGE and stored(pool, table) == old[: 2 * PAGE]
    pool.close(table)
    table = pool.open(new)
    assert table.length == 3 * PAGE and stored(pool, table) == new[:-1]


def test_what_was_looked_for_stays_longer() -> None:
    pool = cache(num_pages=3, host_pages=4)
    first, second = prompt(2 * PAGE + 1), prompt(2 * PAGE + 1, seed=1)
    finished(pool, first)
    finished(pool, second)
    fill(pool, seed=2, pages=3)
    busy = pool.open([1])
    assert pool.reserve(busy, 3 * PAGE)
    assert pool.open(first).length == 0, "no page is free"
    pool.close(busy)
    finished(pool, prompt(2 * PAGE + 1, seed=3))
    fill(pool, seed=4, pages=3)  # now the host drops two of its four
    assert pool.open(first).length == 2 * PAGE


def test_as_much_comes_back_as_there_are_free_pages() -> None:
    pool, tokens = cache(num_pages=4, host_pages=4), prompt(4 * PAGE)
    finished(pool, tokens)
    busy = pool.open(prompt(9, 1))
    assert pool.reserve(busy, 2 * PAGE + 1)
    assert pool.num_host_pages == 3
    table = pool.open([*tokens, 1])
    assert table.length == PAGE, "the first page had stayed, and none is free"
    pool.trim(busy)
    again = pool.open([*tokens, 1])
    assert again.length == 4 * PAGE and stored(pool, again) == tokens
    check_pages(pool, [table, again])


def test_pages_that_come_back_push_others_out_but_not_themselves() -> None:
    pool, first, second = cache(num_pages=4, host_pages=3), prompt(200), prompt(200, seed=1)
    finished(pool, first)
    finished(pool, second)
    assert pool.num_host_pages == 3, "full"
    for tokens in (first, second, first, second):
        table = pool.open(tokens)
        assert table.length == 3 * PAGE and stored(pool, table) == tokens[: 3 * PAGE]
        pool.close(table)
        check_pages(pool, [])


def test_a_page_computed_again_takes_the_place_of_the_hosts() -> None:
    pool, tokens = cache(num_pages=3, host_pages=3), prompt(2 * PAGE + 1)
    finished(pool, tokens)
    fill(pool, seed=1, pages=3)
    alone = pool.open(tokens[:PAGE])  # its last token must give logits: nothing is shared
    store(pool, alone, tokens[:PAGE])
    assert pool.num_host_pages == 1
    table = pool.open(tokens)
    assert table.length == 2 * PAGE and stored(pool, table) == tokens[:-1]
    check_pages(pool, [alone, table])


def test_salts_are_kept_apart_in_host_memory_too() -> None:
    pool, tokens = cache(num_pages=3, host_pages=6), prompt(2 * PAGE + 1)
    finished(pool, tokens, salt=1)
    fill(pool, seed=1, pages=3)
    assert pool.open(tokens).length == 0
    assert pool.open(tokens, salt=1).length == 2 * PAGE


def test_opening_costs_the_pages_that_nobody_runs() -> None:
    pool, tokens = cache(num_pages=8, host_pages=2), prompt(3 * PAGE + 1)
    assert pool.num_pages_to_open(tokens) == 4
    running = pool.open(tokens)
    store(pool, running, tokens)
    assert pool.num_pages_to_open(tokens) == 1
    assert pool.num_pages_to_open([*tokens[:100], 1]) == 1
    pool.close(running)
    assert pool.num_pages_to_open(tokens) == 4, "idle pages are counted as free"


@pytest.mark.parametrize("length", [10, PAGE - 2, 2 * PAGE])
def test_rows_from_anywhere_in_the_pool_join_the_prefix(length: int) -> None:
    pool, tokens = cache(), prompt(length)
    table, scratch = pool.open(tokens), PageTable()
    store(pool, table, tokens)
    assert pool.reserve(scratch, 2 * PAGE) and pool.reserve(table, 4)
    source = pool.slots(scratch)[[70, 3, 127, 0]]
    rows = torch.tensor([500.0, 501.0, 502.0, 503.0]).view(-1, 1, 1).expand(-1, 1, 4)
    for layer in range(2):
        pool.write(layer, source, rows, rows)
    pool.keep_from(table, source)
    assert stored(pool, table) == [*tokens, 500, 501, 502, 503]
    pool.keep_from(table, source[:0])
    assert table.length == length + 4


def test_rows_without_room_are_a_mistake() -> None:
    pool = cache()
    with pytest.raises(AssertionError, match="reserve"):
        pool.keep_from(PageTable(), torch.tensor([1]))


def test_memory_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"no room for .* tokens of KV.*memory\.device"):
        KVCache(100, 2**32, 8, 128, torch.float32, CPU)


class SlowStore:
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
    pool, tokens = cache(num_pages=4, host_pages=4), prompt(3 * PAGE + 1)
    finished(pool, tokens)
    slow = pool._store = SlowStore()
    scratch = pool.open([1])
    assert pool.reserve(scratch, 2 * PAGE)
    assert slow.waited == [1], "one page was free, the other is still read"
    pool.close(scratch)
    first = pool.open(tokens)
    sharing = pool.open([*tokens[:-1], 1])
    twin = pool.fork(first)
    assert twin is not None and slow.issued == 2 and slow.waited == [1]
    for table in (first, sharing, twin):
        assert not pool.ready(table)
        pool.slots(table)
        pool.slots(table)  # another stream may ask
    assert slow.waited == [1] + [2] * 6
    slow.ended = 2
    assert pool.ready(first)
    pool.slots(twin)
    assert len(slow.waited) == 7


def test_whoever_copies_from_a_page_waits_for_its_arrival() -> None:
    pool, tokens = cache(num_pages=6, host_pages=4), prompt(PAGE + 40)
    table = pool.open(tokens)
    store(pool, table, tokens)
    pool.close(table, tokens)
    fill(pool, seed=1, pages=6)
    slow = pool._store = SlowStore()
    other = pool.open([*tokens[:PAGE], 1])  # the full page comes back
    assert slow.issued == 1 and not pool.ready(other)
    departing = pool.open([*tokens[:30], 1])
    assert slow.waited == [1] and pool.ready(departing), "a copy on the device, made in turn"
    slow.ended = 1
    table = pool.open([*tokens, 1])
    assert table.length == len(tokens) and not pool.ready(table), "its partial page is loaded"
    assert pool.fork(table) is not None
    assert slow.waited == [1, 2]


@pytest.mark.parametrize("host_pages", [0, 1, 5, 40])
@pytest.mark.parametrize("num_pages", [9, 24])
@pytest.mark.parametrize("seed", range(3))
def test_no_history_changes_what_is_stored(seed: int, num_pages: int, host_pages: int) -> None:
    pool = small_cache(num_pages, host_pages)
    traffic = Traffic(pool, seed)
    for step in range(120):
        traffic.step()
        if step % 5 == 0:
            traffic.look_at_all()
        traffic.check()
    traffic.finish_all()
    traffic.check()
    assert pool.num_free_pages == num_pages
    pool.release()


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_forgotten_while_the_host_has_room(seed: int) -> None:
    pool = small_cache(num_pages=12, host_pages=2000)
    traffic = Traffic(pool, seed, all_kept=True)
    for _ in range(150):
        traffic.step()
    traffic.check()
    assert pool.num_host_pages > 12


def stored_prefixes(engine: Engine) -> dict[str, tuple[list[int], torch.Tensor, torch.Tensor]]:
    """Tokens and stored keys and values [L, n, Hkv, D] of every running sequence."""
    found = {}
    for sequence in engine._scheduler.running:
        slots = engine._cache.slots(sequence.pages)[: sequence.pages.length]
        tokens = sequence.tokens[: sequence.pages.length]
        name = sequence.request_id
        found[name] = (tokens, engine._cache.keys[:, slots], engine._cache.values[:, slots])
    return found


@pytest.mark.parametrize("ahead", [False, True], ids=["", "ahead"])
@pytest.mark.parametrize("method", ["subspec", "specexec", "ngram"])
def test_after_each_pass_the_prefix_is_what_a_plain_forward_stores(
    method: str, ahead: bool
) -> None:
    folder = checkpoint("llama")
    source = str(folder) if method == "specexec" else None  # the target itself: all is accepted
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
    """Keys and values [L, n, Hkv, D] that one forward over these tokens stores."""
    plain.add(request("twin", [*tokens, 3], max_tokens=2))
    plain.step()
    _, keys, values = stored_prefixes(plain)["twin"]
    plain.abort("twin")
    plain.step()
    return keys[:, : len(tokens)], values[:, : len(tokens)]


@pytest.mark.parametrize("ahead", [False, True], ids=["", "ahead"])
@pytest.mark.parametrize("seed", [0, 9])
def test_the_separate_draft_model_has_no_holes_in_its_cache(seed: int, ahead: bool) -> None:
    """Seed 0: the target itself, all is accepted. Seed 9: another model, nearly nothing is."""
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
            # The draft's numerics are fast: equal up to rounding, where a hole would be zeros.
            torch.testing.assert_close(caches.cache.keys[:, slots], keys)
            torch.testing.assert_close(caches.cache.values[:, slots], values)
            compared += table.length > 30
    assert compared > 2


@pytest.mark.parametrize("method", ["subspec", "specexec"])
def test_drafted_rows_hold_the_kv_of_their_own_path(method: str) -> None:
    """Whether drafted before a pass or in it, and by whatever root a later pass began."""
    folder = checkpoint("llama")
    resident = StreamSpec(tier="resident")  # so that both drafts are the target itself
    source = str(folder) if method == "specexec" else None
    engine = load(folder, DraftSpec(method, source=source, **SMALL), stream=resident)
    draft_ahead(engine, steps=2)
    plain = load(folder, PLAIN)
    engine.add(request("r", prompt(6) * 5, max_tokens=40, temperature=1.0, seed=3))
    pool = draft_model(engine).caches.cache
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
