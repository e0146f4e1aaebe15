"""The KV caches of draft models: scratch slots, and a cache of their own or the target's."""

from collections.abc import Sequence

import pytest
import torch

from engine.drafting.model.draft_cache import OwnCache, Scratch, SharedCache
from engine.kv.cache import KVCache
from engine.kv.page_pool import PAGE, PagePool
from engine.kv.page_table import PageTable
from engine.sequences.sequence import TokenSequence
from engine.streaming.cpu_link import CpuDevice
from tests.engine.models import prompt
from tests.engine.page_traffic import check_pages
from tests.engine.sequence_makers import make_sequence


def pool(num_pages: int = 8) -> KVCache:
    return KVCache(
        PagePool(
            num_layers=1,
            num_pages=num_pages,
            num_kv_heads=1,
            head_dim=4,
            dtype=torch.float32,
            device=CpuDevice(),
        )
    )


def caches(num_pages: int = 8, border: int = 10_000) -> OwnCache:
    """Return the cache of a draft whose rope frequencies change after `border` tokens."""
    return OwnCache(pool(num_pages), lambda num_tokens: num_tokens > border)


def write(cache: KVCache, slots: Sequence[int], tokens: Sequence[int]) -> None:
    """Write KV whose values are the tokens to these slots."""
    rows = torch.tensor(tokens, dtype=torch.float32).view(-1, 1, 1).expand(-1, 1, 4)
    cache.pool.write(0, torch.tensor(slots), rows, rows)


def stored(cache: KVCache, table: PageTable) -> list[int]:
    """Return the tokens whose KV the prefix holds."""
    keys, _ = cache.pool.read(0, cache.slots(table)[: table.length])
    return keys[:, 0, 0].int().tolist()


def prefix(own: OwnCache, sequence: TokenSequence) -> PageTable:
    table = own.prefix(sequence)
    assert table is not None
    return table


def take(scratch: Scratch, count: int) -> list[int]:
    """Take `count` slots, or fewer if there is no room for more."""
    return [slot for _ in range(count) if (slot := scratch.take()) is not None]


def run_pending(own: OwnCache, sequence: TokenSequence) -> PageTable:
    """Run all tokens after the prefix but the last, as a step with a root does."""
    table = prefix(own, sequence)
    pending = range(table.length, len(sequence.tokens) - 1)
    slots = own.cache.slots(table)[pending.start : pending.stop].tolist()
    write(own.cache, slots, [sequence.tokens[i] for i in pending])
    own.keep_pending(sequence)
    return table


def test_scratch_slots_are_taken_once_and_can_be_given_back() -> None:
    cache = pool()
    scratch = Scratch(cache, most=4 * PAGE)
    first, second = take(scratch, 3), take(scratch, PAGE)
    assert len({*first, *second}) == 3 + PAGE
    assert cache.num_free_pages == 6
    scratch.give_back(first)
    assert set(take(scratch, PAGE)) >= set(first), "they are taken before another page"
    assert cache.num_free_pages == 6
    scratch.close()
    assert cache.num_free_pages == 8


@pytest.mark.parametrize(
    ("pages", "most", "can"), [(8, 2 * PAGE, 2), (1, 4 * PAGE, 1), (8, PAGE // 2, 0)]
)
def test_scratch_gives_fewer_slots_where_there_is_no_room(pages: int, most: int, can: int) -> None:
    cache = pool(pages)
    scratch = Scratch(cache, most)
    assert len(set(take(scratch, 10 * PAGE))) == can * PAGE
    assert scratch.take() is None
    assert cache.num_free_pages == pages - can
    scratch.close()
    assert cache.num_free_pages == pages


def test_scratch_slots_are_in_no_sequences_pages() -> None:
    cache = pool()
    table = cache.open(prompt(100))
    assert cache.reserve(table, 100)
    scratch = Scratch(cache, most=2 * PAGE)
    assert not {slot // PAGE for slot in take(scratch, 2 * PAGE)} & set(table.pages)
    check_pages(cache, [table, scratch._table])


def test_an_own_cache_has_room_for_all_tokens_but_the_last() -> None:
    own, sequence = caches(), make_sequence(prompt(130))
    table = prefix(own, sequence)
    assert table.length == 0 and table.capacity >= 129
    assert run_pending(own, sequence) is table
    assert stored(own.cache, table) == sequence.tokens[:-1]


def test_accepted_rows_are_copied_from_scratch_to_the_prefix() -> None:
    own, sequence = caches(), make_sequence(prompt(63))
    table = run_pending(own, sequence)
    scratch = Scratch(own.cache, most=PAGE)
    slots = take(scratch, 5)
    write(own.cache, slots, [sequence.tokens[-1], 100, 101, 102, 103])
    sequence.tokens += [101, 103, 7]  # two drafted tokens were accepted, and 7 is the bonus token
    own.accept(sequence, [slots[0], slots[2], slots[4]])
    assert stored(own.cache, table) == sequence.tokens[:-1]
    assert table.num_published == 1, "the first page is full, so others can find it"
    other = prefix(own, make_sequence([*sequence.tokens[:64], 5]))
    assert other.pages[0] == table.pages[0]


def test_without_room_accepted_tokens_are_run_again() -> None:
    own, sequence = caches(num_pages=2), make_sequence(prompt(65))
    table = run_pending(own, sequence)
    scratch = Scratch(own.cache, most=PAGE)
    slots = take(scratch, 2)
    assert own.cache.num_free_pages == 0
    sequence.tokens += [5, 6]
    own.accept(sequence, slots)
    assert table.length == 64, "nothing was kept"
    assert own.prefix(sequence) is None, "there is no room for the pending tokens"
    scratch.close()
    run_pending(own, sequence)
    assert stored(own.cache, table) == sequence.tokens[:-1]


def test_nothing_is_accepted_for_a_sequence_without_a_table() -> None:
    own, sequence = caches(), make_sequence(prompt(9))
    own.accept(sequence, [3, 4])
    assert own.cache.num_free_pages == 8
    own.release(sequence)


def test_the_rope_border_opens_another_prefix() -> None:
    """KV from before the border has other frequencies, so it is not used after the border."""
    own, sequence = caches(border=70), make_sequence(prompt(70))
    short = run_pending(own, sequence)
    assert short.salt == 0 and short.length == 69
    sequence.tokens += [5]
    long = prefix(own, sequence)
    assert long.salt == 1 and long.length == 0
    run_pending(own, sequence)
    check_pages(own.cache, [long])
    other = make_sequence([*sequence.tokens[:66], 9])
    found = prefix(own, other)
    assert found.salt == 0 and stored(own.cache, found) == other.tokens[:66], (
        "KV from before the border is still found"
    )
    own.release(other)
    own.release(sequence)
    assert own.cache.num_free_pages == 8


def test_a_released_sequences_pages_are_free_and_found_again() -> None:
    own, sequence = caches(), make_sequence(prompt(100))
    run_pending(own, sequence)
    own.release(sequence)
    own.release(sequence)
    assert own.cache.num_free_pages == 8
    assert stored(own.cache, prefix(own, make_sequence(prompt(100)))) == prompt(100)[:99]


def test_a_shared_cache_uses_the_sequences_own_pages() -> None:
    cache, sequence = pool(), make_sequence(prompt(9))
    shared = SharedCache(cache)
    sequence.run(cache.open(sequence.tokens))
    assert shared.prefix(sequence) is sequence.table
    shared.keep_pending(sequence)
    shared.accept(sequence, [1, 2])
    shared.release(sequence)
    assert sequence.pages.length == 0, "the target's own rows are kept by the engine"
