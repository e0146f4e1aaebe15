"""Tests of assembling a pass from turns and trees: tokens, positions, slots, masks, kept rows."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from engine.drafting.tree import DraftTree
from engine.kv.cache import KVCache
from engine.kv.page_pool import PAGE, PagePool
from engine.model.decoder import Decoder
from engine.model.segment import Reach, Segment
from engine.runtime.passes import Pass, assemble
from engine.sequences.scheduler import Turn
from engine.sequences.sequence import Limits, TokenSequence
from engine.streaming.cpu_link import CpuDevice
from tests.engine.models import PLAIN, checkpoint, load
from tests.engine.sequence_makers import LIMITS, make_sequence

#      7
#    /   \
#   8     9
#   |    / \
#   5   8   6
TREE = DraftTree(
    tokens=(7, 8, 9, 8, 5, 6),
    parents=(-1, 0, 0, 2, 1, 2),
    depths=(0, 1, 1, 2, 2, 2),
    scores=(0.0, -1.0, -2.0, -3.0, -4.0, -5.0),
    sources=("",) * 6,
)


@pytest.fixture
def decoder() -> Decoder:
    return load(checkpoint("llama"), PLAIN)._decoder


@pytest.fixture
def cache() -> KVCache:
    pool = PagePool(
        num_layers=1,
        num_pages=32,
        num_kv_heads=1,
        head_dim=4,
        dtype=torch.float32,
        device=CpuDevice(),
    )
    return KVCache(pool)


def stored(
    cache: KVCache, tokens: Sequence[int], stored: int, rows: int = 16, limits: Limits = LIMITS
) -> TokenSequence:
    """Return a running sequence with `stored` tokens in the cache and room for `rows` more."""
    sequence = make_sequence(tokens, limits=limits)
    sequence.run(cache.open([]))
    assert cache.reserve(sequence.pages, stored + rows)
    cache.append_rows(sequence.pages, range(stored))
    return sequence


def one(turn: Turn, tree: DraftTree | None, cache: KVCache, decoder: Decoder) -> Pass:
    return assemble([turn], [tree], cache, decoder)


def seen(segment: Segment) -> list[list[int]]:
    """Return, for each row of the pass, the indices of the sequence's slots that it sees."""
    visible = segment.visible_keys(range(segment.count), Reach())
    if visible is None:
        return [list(range(segment.start + segment.count))] * segment.count
    return [
        [*range(segment.start), *(segment.start + n for n in row.nonzero()[:, 0].tolist())]
        for row in visible[:, -segment.count :]
    ]


def test_a_tree_follows_the_stored_prefix(cache: KVCache, decoder: Decoder) -> None:
    sequence = stored(cache, [3, 4, 5, 6, 7], 4)
    walk = one(Turn(sequence, num_pending=1, max_tree_rows=16), TREE, cache, decoder)
    assert walk.tokens == list(TREE.tokens)
    assert walk.positions == [4, 5, 5, 6, 6, 6], "depth in the sequence, not row"
    (segment,) = walk.batch.segments
    assert (segment.first, segment.count, segment.start, segment.num_scratch) == (0, 6, 4, 0)
    assert segment.positions.tolist() == walk.positions
    assert segment.slots.tolist() == cache.slots(sequence.pages)[:10].tolist()
    assert segment.cancelled is sequence.cancelled


def test_a_row_of_a_tree_sees_the_prefix_and_its_ancestors(
    cache: KVCache, decoder: Decoder
) -> None:
    sequence = stored(cache, [3, 4, 7], 2)
    (segment,) = one(
        Turn(sequence, num_pending=1, max_tree_rows=16), TREE, cache, decoder
    ).batch.segments
    assert segment.mask is not None and segment.mask.equal(TREE.mask())
    assert seen(segment) == [[0, 1, *(2 + row for row in TREE.path(n))] for n in range(len(TREE))]


def test_plain_decoding_is_one_row_without_a_mask(cache: KVCache, decoder: Decoder) -> None:
    sequence = stored(cache, [3, 4, 7], 2)
    walk = one(Turn(sequence, num_pending=1, max_tree_rows=1), DraftTree.root(7), cache, decoder)
    assert (walk.tokens, walk.positions) == ([7], [2])
    assert walk.batch.segments[0].mask is None
    assert seen(walk.batch.segments[0]) == [[0, 1, 2]]
    entry = walk.entries[0]
    assert (entry.root, entry.kept_rows([0])) == (0, [0])


def test_a_prompt_is_a_chain_that_ends_with_the_root(cache: KVCache, decoder: Decoder) -> None:
    prompt = [3, 4, 5, 6, 7]
    walk = one(
        Turn(stored(cache, prompt, 0), num_pending=5, max_tree_rows=1),
        DraftTree.root(7),
        cache,
        decoder,
    )
    assert (walk.tokens, walk.positions) == (prompt, [0, 1, 2, 3, 4])
    assert walk.batch.segments[0].mask is None
    assert seen(walk.batch.segments[0]) == [list(range(n + 1)) for n in range(5)]
    (entry,) = walk.entries
    assert (entry.num_before_tree, entry.root) == (4, 4)
    assert entry.kept_rows([0]) == [0, 1, 2, 3, 4]


def test_a_chunk_of_a_prompt_begins_where_the_last_one_ended(
    cache: KVCache, decoder: Decoder
) -> None:
    sequence = stored(cache, [3, 4, 5, 6, 7, 8], 2)
    walk = one(Turn(sequence, num_pending=3, max_tree_rows=0), None, cache, decoder)
    assert (walk.tokens, walk.positions) == ([5, 6, 7], [2, 3, 4])
    (entry,) = walk.entries
    assert entry.tree is None and entry.kept_rows([]) == [0, 1, 2]
    assert seen(walk.batch.segments[0]) == [[0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]


def test_kept_rows_of_a_tree_are_the_accepted_ones(cache: KVCache, decoder: Decoder) -> None:
    walk = one(
        Turn(stored(cache, [3, 7], 1), num_pending=1, max_tree_rows=16), TREE, cache, decoder
    )
    assert walk.entries[0].kept_rows([0, 2, 5]) == [0, 2, 5]


def test_each_sequence_of_a_pass_has_its_own_rows_and_slots(
    cache: KVCache, decoder: Decoder
) -> None:
    drafting = stored(cache, [3, 4, 5, 7], 3)
    prompting = stored(cache, [10, 11, 12], 0)
    reading = stored(cache, list(range(20, 100)), PAGE)
    turns = [
        Turn(drafting, num_pending=1, max_tree_rows=16),
        Turn(prompting, num_pending=3, max_tree_rows=1),
        Turn(reading, num_pending=8, max_tree_rows=0),
    ]
    walk = assemble(turns, [TREE, DraftTree.root(12), None], cache, decoder)
    assert walk.tokens == [*TREE.tokens, 10, 11, 12, *range(84, 92)]
    assert walk.positions == [3, 4, 4, 5, 5, 5, 0, 1, 2, *range(64, 72)]
    assert [(s.first, s.count, s.start) for s in walk.batch.segments] == [
        (0, 6, 3),
        (6, 3, 0),
        (9, 8, PAGE),
    ]
    assert [entry.root for entry in walk.entries[:2]] == [0, 8]
    assert [entry.sequence for entry in walk.entries] == [drafting, prompting, reading]
    assert walk.batch.rows == range(17)
    assert walk.batch.strict is decoder.strict
    written = [s.slots[s.start :].tolist() for s in walk.batch.segments]
    assert len({slot for slots in written for slot in slots}) == 17, "no slot is written twice"


def test_segments_have_the_rope_frequencies_of_their_sequence(
    cache: KVCache, decoder: Decoder
) -> None:
    limits = replace(LIMITS, original_length=2)
    short, long = (
        stored(cache, own, kept, limits=limits) for own, kept in (([3, 7], 1), ([3, 4, 5], 0))
    )
    turns = [
        Turn(short, num_pending=1, max_tree_rows=16),
        Turn(long, num_pending=3, max_tree_rows=1),
    ]
    walk = assemble(turns, [TREE, DraftTree.root(5)], cache, decoder)
    assert [(s.is_long, s.count) for s in walk.batch.segments] == [(False, 6), (True, 3)]


def test_a_tree_after_several_pending_tokens_is_refused(cache: KVCache, decoder: Decoder) -> None:
    sequence = stored(cache, [3, 4, 5, 7], 2)
    with pytest.raises(AssertionError):
        one(Turn(sequence, num_pending=2, max_tree_rows=16), TREE, cache, decoder)


def test_each_turn_needs_a_tree_or_none(cache: KVCache, decoder: Decoder) -> None:
    with pytest.raises(ValueError):
        assemble(
            [Turn(stored(cache, [3, 7], 1), num_pending=1, max_tree_rows=1)], [], cache, decoder
        )


def test_each_row_of_a_tree_equals_the_last_row_of_its_path_run_alone(
    decoder: Decoder,
) -> None:
    """The results are equal bit for bit, also with another sequence in the pass."""
    config = decoder.model.config
    pool = PagePool(
        num_layers=config.num_hidden_layers,
        num_pages=32,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        dtype=torch.float32,
        device=CpuDevice(),
    )
    cache = KVCache(pool)
    prefix = [3, 40, 50, 60]

    def hidden(turns: Sequence[Turn], trees: Sequence[DraftTree | None]) -> torch.Tensor:
        walk = assemble(turns, trees, cache, decoder)
        found = decoder.forward(walk.tokens, walk.positions, walk.batch)
        with decoder.head():  # as in every pass, so that the next unit is the first one
            return found.clone()

    def read(tokens: Sequence[int]) -> tuple[TokenSequence, torch.Tensor]:
        sequence = stored(cache, tokens, 0)
        return sequence, hidden([Turn(sequence, num_pending=len(tokens), max_tree_rows=0)], [None])

    with torch.inference_mode():
        sequence, _ = read([*prefix, 7])
        cache.append_rows(sequence.pages, range(len(prefix)))
        other = stored(cache, [9, 8, 7, 6], 0)
        together = hidden(
            [
                Turn(other, num_pending=4, max_tree_rows=1),
                Turn(sequence, num_pending=1, max_tree_rows=16),
            ],
            [DraftTree.root(6), TREE],
        )
        for row in range(len(TREE)):
            path = [TREE.tokens[n] for n in TREE.path(row)]
            alone = read([*prefix, *path])[1]
            assert torch.equal(together[4 + row], alone[len(prefix) + len(path) - 1]), path
