"""N-gram look-up: what is proposed, in which order, within which bounds, and what is forgotten."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from engine.drafting.methods.ngram import PLACES, Ngram
from engine.sequences.sequence import TokenSequence
from tests.engine.lookups import answering, leaves, passes, paths, writing
from tests.engine.sequence_makers import EOS, LIMITS, make_sequence

MANY = 1000


def found(
    tokens: Sequence[int], depth: int = 4, rows: int = MANY, **arguments: Any
) -> list[Sequence[int]]:
    """Return the proposed continuations, the best first."""
    return list(leaves(Ngram().propose(make_sequence(tokens, **arguments), depth, rows)))


@pytest.mark.parametrize("tokens", [[5], [5, 6], [5, 6, 7, 8]])
def test_nothing_is_proposed_if_no_token_occurred_twice(tokens: list[int]) -> None:
    assert Ngram().propose(make_sequence(tokens), 4, MANY) is None


def test_what_followed_the_same_tokens_is_proposed() -> None:
    assert found([3, 4, 5, 6, 7, 8, 3, 4]) == [(5, 6, 7, 8)]


def test_a_loop_continues_beyond_the_emitted_text() -> None:
    assert found([3, 4, 5, 3, 4], depth=8) == [(5, 3, 4, 5, 3, 4, 5, 3)]
    assert found([6, 6, 6], depth=5) == [(6, 6, 6, 6, 6)]


def test_later_places_get_better_scores() -> None:
    tokens = [2, 10, 11, 2, 20, 21, 2, 30, 31, 2]
    assert found(tokens, depth=2) == [(30, 31), (20, 21), (10, 11)]


def test_a_frequent_continuation_beats_the_latest_one() -> None:
    tokens = [2, 10, 2, 10, 2, 10, 2, 20, 2]
    assert found(tokens, depth=1) == [(10,), (20,)]


def test_longer_matches_beat_later_ones() -> None:
    tokens = [3, 4, 10, 9, 4, 20, 8, 3, 4]
    assert found(tokens, depth=1) == [(10,), (20,)]


def test_the_longer_a_path_agrees_the_better_its_next_score() -> None:
    tree = Ngram().propose(make_sequence([3, 4, 5, 6, 7, 8, 9, 3]), 6, MANY)
    assert tree is not None
    gains = [tree.scores[row] - tree.scores[tree.parents[row]] for row in range(1, len(tree))]
    assert gains == sorted(gains) and gains[0] < gains[-1]


def test_only_the_latest_places_are_examined() -> None:
    tokens = [token for first in range(10, 20) for token in (2, first)] + [2]
    assert found(tokens, depth=1) == [(19 - place,) for place in range(PLACES)]


def test_continuations_that_begin_alike_share_their_rows() -> None:
    tree = Ngram().propose(make_sequence([2, 5, 6, 7, 2, 5, 6, 8, 2]), 3, MANY)
    assert set(paths(tree)) == {(5,), (5, 6), (5, 6, 7), (5, 6, 8)}


def test_few_rows_keep_the_best() -> None:
    sequence = make_sequence([2, 10, 11, 12, 2, 20, 21, 22, 2])
    assert set(paths(Ngram().propose(sequence, 4, 2))) == {(20,)}
    assert set(paths(Ngram().propose(sequence, 4, 4))) == {(20,), (10,), (20, 21)}
    assert Ngram().propose(sequence, 4, 1) is None
    assert Ngram().propose(sequence, 0, MANY) is None


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_tree_is_no_deeper_than_its_bound(depth: int) -> None:
    assert found([3, 4, 5, 6, 7, 3], depth) == [(4, 5, 6)[:depth]]


@pytest.mark.parametrize("left", [1, 2, 3])
def test_no_level_is_proposed_that_cannot_be_emitted(left: int) -> None:
    """A pass emits one token more than the depth of its tree."""
    tokens = [3, 4, 5, 6, 7, 3]
    wanted = [(4, 5, 6)[: left - 1]] if left > 1 else []
    assert found(tokens, max_tokens=left) == wanted
    assert found(tokens, limits=replace(LIMITS, max_tokens=len(tokens) + left)) == wanted


@pytest.mark.parametrize("left", [1, 2])
def test_nothing_is_proposed_across_the_rope_border(left: int) -> None:
    tokens = [3, 4, 5, 6, 7, 3]
    near = replace(LIMITS, original_length=len(tokens) + left)
    assert found(tokens, limits=near) == [(4, 5)[:left]]
    at = replace(LIMITS, original_length=len(tokens))
    assert found(tokens, limits=at) == []
    beyond = replace(LIMITS, original_length=len(tokens) - 1)
    assert found(tokens, limits=beyond) == [(4, 5, 6, 7)]


def test_nothing_is_proposed_after_a_token_that_ends_the_sequence() -> None:
    tokens = [3, 4, EOS, 6, 3]
    assert found(tokens) == [(4, EOS)]
    assert found(tokens, ignore_eos=True) == [(4, EOS, 6, 3)]
    assert found(tokens, ignore_eos=True, stop_token_ids=(4,)) == [(4,)]


def test_a_prompt_that_ends_in_an_end_token_is_continued() -> None:
    """The token did not end the sequence, because it is part of the prompt."""
    assert found([3, EOS, 4, 3, EOS], depth=1) == [(4,)]


def test_each_sequence_has_its_own_past() -> None:
    lookup = Ngram()
    one, two = make_sequence([3, 4, 5, 3]), make_sequence([3, 8, 9, 3])
    assert leaves(lookup.propose(one, 2, MANY)) == [(4, 5)]
    assert leaves(lookup.propose(two, 2, MANY)) == [(8, 9)]


def test_emitted_tokens_are_found_too() -> None:
    lookup, sequence = Ngram(), make_sequence([3, 4])
    assert lookup.propose(sequence, 3, MANY) is None
    sequence.tokens += [5, 3]
    assert leaves(lookup.propose(sequence, 3, MANY)) == [(4, 5, 3)]
    sequence.tokens += [4, 6, 3]
    assert leaves(lookup.propose(sequence, 3, MANY))[0] == (4, 6, 3)


def test_a_released_sequence_is_forgotten_and_may_come_back() -> None:
    lookup, sequence = Ngram(), make_sequence([3, 4, 3])
    before = lookup.propose(sequence, 4, MANY)
    assert len(lookup._pasts) == len(lookup._search._proposed) == 1
    lookup.release(sequence)
    lookup.release(sequence)
    assert not lookup._pasts and not lookup._search._proposed
    assert lookup.propose(sequence, 4, MANY) == before


def test_text_that_repeats_itself_takes_few_passes() -> None:
    verse = list(range(10, 60))
    sequence = answering(verse, [7])
    assert passes(Ngram(), sequence, [*verse, 8, *verse, 9, *verse]) < 15


def first_score(lookup: Ngram, sequence: TokenSequence) -> float:
    tree = lookup.propose(sequence, 4, MANY)
    lookup.release(sequence)
    return max(paths(tree).values())


def test_the_hit_rate_of_single_token_matches_is_learned() -> None:
    sequence = make_sequence([3, 4, 5, 3])
    before = first_score(Ngram(), sequence)
    wrong, right = Ngram(), Ngram()
    fresh = [token for n in range(40) for token in (2, 10 + n)]
    passes(wrong, make_sequence([2]), fresh, depth=1)
    passes(right, make_sequence([3]), [4, 9, 9, 9, 3, 4], depth=1)
    assert first_score(wrong, sequence) < before < first_score(right, sequence)


tokens = st.lists(st.integers(0, 4), min_size=1, max_size=60)


@given(prompt=tokens, text=tokens, depth=st.integers(0, 8), rows=st.integers(1, 40))
def test_any_text_is_emitted_with_trees_within_bounds(
    prompt: list[int], text: list[int], depth: int, rows: int
) -> None:
    lookups = Ngram(), Ngram()
    sequences = make_sequence(prompt), make_sequence(prompt)
    counts = [
        list(writing(lookup, sequence, text, depth=depth, rows=rows))
        for lookup, sequence in zip(lookups, sequences, strict=True)
    ]
    assert counts[0] == counts[1]
    assert sequences[0].tokens == sequences[1].tokens == prompt + text


@given(tokens=tokens, depth=st.integers(1, 6))
def test_every_path_continues_an_earlier_place(tokens: list[int], depth: int) -> None:
    """A place near the end is continued by the path itself, as in a loop."""
    tree = Ngram().propose(make_sequence(tokens, ignore_eos=True), depth, MANY)
    places = [place for place in range(1, len(tokens)) if tokens[place - 1] == tokens[-1]]
    assert (tree is None) == (not places)
    for path in paths(tree):
        whole = (*tokens, *path)
        assert any(whole[p : p + len(path)] == path for p in places)


@pytest.mark.parametrize("kinds", [1, 2, 10_000])
def test_a_prompt_of_50000_tokens_works(kinds: int) -> None:
    tokens = [2 + place * 7919 % kinds for place in range(50_000)]
    lookup, sequence = Ngram(), make_sequence(tokens)
    text = tokens[tokens.index(tokens[-1]) + 1 :][:200]
    assert passes(lookup, sequence, text) < 30
