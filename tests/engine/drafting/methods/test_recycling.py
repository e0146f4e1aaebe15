"""Token Recycling: the successors kept of the target's logits, and the trees grown from them."""

import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from engine.drafting.methods.recycling import SUCCESSORS, Recycling, _best
from engine.drafting.tree import DraftTree
from engine.sampling.large_vocabularies.blocks import Matrix
from tests.engine.lookups import check, leaves, passes, paths, writing
from tests.engine.sequence_makers import EOS, make_sequence

VOCAB = 40


def logits(*rows: dict[int, float]) -> Tensor:
    """Return logits [R, VOCAB] with these values by token, and all others far below."""
    values = torch.full((len(rows), VOCAB), -30.0)
    for row, own in enumerate(rows):
        for token, value in own.items():
            values[row, token] = value
    return values


def observing(tokens: Sequence[int], *rows: dict[int, float]) -> Recycling:
    """Return a look-up that has observed these logits at rows that fed these tokens."""
    lookup = Recycling()
    lookup.observe(tokens, Matrix(logits(*rows)))
    return lookup


def test_nothing_is_proposed_before_the_first_logits() -> None:
    assert Recycling().propose(make_sequence([3]), 4, 64) is None
    assert observing([4], {5: 0.0}).propose(make_sequence([3]), 4, 64) is None


def test_the_most_probable_successors_make_a_tree() -> None:
    lookup = observing([3, 4, 5], {4: 2.0, 5: 1.0}, {5: 3.0}, {6: 3.0, 7: 2.9})
    tree = lookup.propose(make_sequence([3]), 2, 64)
    assert set(paths(tree)) == {(4,), (5,), (4, 5), (5, 6), (5, 7)}
    assert leaves(tree)[0] == (4, 5)
    assert paths(tree)[(5, 6)] > paths(tree)[(5, 7)]


def test_few_rows_keep_the_best() -> None:
    lookup = observing([3, 4, 5], {4: 2.0, 5: 1.0}, {5: 3.0}, {6: 3.0, 7: 2.9})
    assert set(paths(lookup.propose(make_sequence([3]), 4, 3))) == {(4,), (4, 5)}


def test_no_more_successors_are_kept_than_stated() -> None:
    lookup = observing([3], {token: -0.01 * token for token in range(5, 30)})
    found = leaves(lookup.propose(make_sequence([3]), 4, 64))
    assert found == [(5 + rank,) for rank in range(SUCCESSORS)]


def test_the_latest_logits_of_a_token_are_kept() -> None:
    lookup = observing([3], {4: 0.0})
    lookup.observe([3], Matrix(logits({5: 0.0})))
    assert leaves(lookup.propose(make_sequence([3]), 1, 64)) == [(5,)]


def test_the_first_of_several_rows_of_a_token_counts() -> None:
    lookup = observing([3, 4, 3], {4: 0.0}, {5: 0.0}, {6: 0.0})
    assert leaves(lookup.propose(make_sequence([3]), 1, 64)) == [(4,)]


def test_a_pass_without_rows_changes_nothing() -> None:
    lookup = observing([])
    assert lookup.propose(make_sequence([3]), 1, 64) is None


def test_a_loop_is_followed_to_the_bounds() -> None:
    lookup = observing([3, 4], {4: 0.0}, {3: 0.0})
    for _ in range(100):
        sequence = make_sequence([3])
        passes(lookup, sequence, [4, 3] * 10, depth=4)
    assert leaves(lookup.propose(make_sequence([3]), 6, 64)) == [(4, 3, 4, 3, 4, 3)]
    assert leaves(lookup.propose(make_sequence([3], max_tokens=3), 6, 64)) == [(4, 3)]


def test_nothing_is_proposed_after_a_token_that_ends_the_sequence() -> None:
    lookup = observing([3, EOS], {EOS: 0.0}, {4: 0.0})
    assert leaves(lookup.propose(make_sequence([3]), 4, 64)) == [(EOS,)]


def test_all_sequences_share_the_matrix_and_leave_it_when_released() -> None:
    lookup = observing([3], {4: 0.0})
    one, two = make_sequence([3]), make_sequence([9, 3])
    assert lookup.propose(one, 1, 64) == lookup.propose(two, 1, 64)
    lookup.release(one)
    lookup.release(two)
    assert not lookup._search._proposed
    assert leaves(lookup.propose(make_sequence([3]), 1, 64)) == [(4,)]


def test_the_hit_rate_of_successors_is_learned() -> None:
    before = paths(observing([3], {4: 0.0}).propose(make_sequence([3]), 1, 64))[(4,)]
    for text, better in (([4] * 40, True), ([9] * 40, False)):
        lookup = observing([3, 4, 9], {4: 0.0}, {4: 0.0}, {4: 0.0})
        passes(lookup, make_sequence([3]), text, depth=1)
        after = paths(lookup.propose(make_sequence([3]), 1, 64))[(4,)]
        assert (after > before) is better


def follower(token: int) -> int:
    return 2 + (token * 7 + 3) % (VOCAB - 2)


def test_a_text_with_fixed_successors_takes_few_passes() -> None:
    text = [2]
    for _ in range(400):
        text.append(follower(text[-1]))
    lookup = Recycling()

    def look(tree: DraftTree, wanted: Sequence[int]) -> None:
        after = logits(*({follower(token): 0.0} for token in tree.tokens))
        lookup.observe(tree.tokens, Matrix(after))

    sequence = make_sequence([2])
    counts = list(writing(lookup, sequence, text[1:], depth=8, rows=64, after=look))
    assert sequence.tokens == text
    assert sum(counts[-10:-1]) == 9 * 9


@given(
    seed=st.integers(0, 2**20),
    rows=st.integers(1, 5),
    size=st.sampled_from([1, 5, 8, 63, 64, 512, 577, 640, 5003]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_the_best_tokens_are_found_without_ranking_all(
    seed: int, rows: int, size: int, dtype: torch.dtype
) -> None:
    draw = torch.Generator().manual_seed(seed)
    given = torch.randn(rows + 3, size, generator=draw).to(dtype) * 4
    where = torch.randperm(len(given), generator=draw)[:rows]
    count = min(SUCCESSORS, size)
    tokens, logprobs = _best(Matrix(given).rows(where.tolist()), count)
    values = given[where].to(torch.promote_types(dtype, torch.float32))
    assert tokens.shape == logprobs.shape == (rows, count)
    assert values.gather(1, tokens).equal(values.topk(count).values)
    assert all(len(set(row)) == count for row in tokens.tolist())
    exact = values.log_softmax(-1).gather(1, tokens)
    assert (logprobs >= exact - 1e-4).all()  # never below: the rest of the vocabulary is left out
    assert (logprobs.exp().sum(-1) <= 1 + 1e-4).all()


def test_logits_that_are_not_numbers_make_no_guesses() -> None:
    for value in (float("nan"), float("-inf")):
        lookup = Recycling()
        lookup.observe([3], Matrix(torch.full((1, VOCAB), value)))
        assert lookup.propose(make_sequence([3]), 4, 64) is None


@pytest.mark.parametrize("vocabulary", [1, 2, 100, 5000])
def test_any_size_of_vocabulary_and_pass(vocabulary: int) -> None:
    draw = random.Random(0)
    lookup = Recycling()
    tokens = [draw.randrange(vocabulary) for _ in range(300)]
    lookup.observe(tokens, Matrix(torch.randn(300, vocabulary)))
    assert lookup.propose(make_sequence(tokens[:1]), 8, 64) is not None
    for token in tokens[:50]:
        sequence = make_sequence([token], ignore_eos=True)
        for _ in range(2):
            check(lookup.propose(sequence, 8, 64), sequence, 8, 64, "recycling")
            sequence.tokens += tokens[:3]


@given(
    prompt=st.lists(st.integers(0, 9), min_size=1, max_size=9),
    text=st.lists(st.integers(0, 9), min_size=1, max_size=40),
    depth=st.integers(0, 6),
    rows=st.integers(1, 30),
    seed=st.integers(0, 99),
)
def test_any_text_is_emitted_with_trees_within_bounds(
    prompt: list[int], text: list[int], depth: int, rows: int, seed: int
) -> None:
    counts = []
    for _ in range(2):
        lookup, sequence = Recycling(), make_sequence(prompt)
        noise = torch.Generator().manual_seed(seed)

        def look(
            tree: DraftTree,
            wanted: Sequence[int],
            lookup: Recycling = lookup,
            noise: torch.Generator = noise,
        ) -> None:
            lookup.observe(tree.tokens, Matrix(torch.randn(len(tree), 10, generator=noise)))

        counts.append(list(writing(lookup, sequence, text, depth=depth, rows=rows, after=look)))
        assert sequence.tokens == prompt + text
    assert counts[0] == counts[1]
