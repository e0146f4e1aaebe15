"""N-gram look-up: what is found, in which order, within which bounds, and what is forgotten."""

from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.drafters.ngram import LONGEST, PLACES, Ngram
from engine.growth import Bounds
from engine.tree import DraftTree
from tests.engine.sequences import EOS, LIMITS, make_sequence

BOUNDS = Bounds(depth=4, width=1, branch=1, budget=32)
Path = tuple[int, ...]


def tree_of(
    tokens: Seq[int], bounds: Bounds = BOUNDS, room: int = 1000, **params: Any
) -> DraftTree:
    (tree,) = Ngram(bounds).propose([make_sequence(tokens, **params)], [room])
    return tree


def paths(tree: DraftTree) -> dict[Path, float]:
    """Tokens below the root -> score."""
    return {
        tuple(tree.tokens[r] for r in tree.path(row)[1:]): tree.scores[row]
        for row in range(len(tree))
    }


def leaves(tree: DraftTree) -> list[Path]:
    """The whole continuations, the best-scored beginning first."""
    found = [
        (tree.scores[tree.path(row)[1]], tuple(tree.tokens[r] for r in tree.path(row)[1:]))
        for row in range(1, len(tree))
        if not tree.children(row)
    ]
    return [path for _, path in sorted(found, reverse=True)]


@pytest.mark.parametrize("tokens", [[5], [5, 6], [5, 6, 7, 8]])
def test_nothing_is_proposed_where_nothing_came_twice(tokens: list[int]) -> None:
    assert tree_of(tokens) == DraftTree.root(tokens[-1])


def test_what_followed_the_same_tokens_is_proposed() -> None:
    assert leaves(tree_of([3, 4, 5, 6, 7, 8, 3, 4])) == [(5, 6, 7, 8)]


def test_a_continuation_ends_with_the_sequence() -> None:
    assert leaves(tree_of([3, 4, 5, 3, 4])) == [(5, 3, 4)]
    assert leaves(tree_of([6, 6, 6])) == [(6, 6)]


def test_later_places_are_trusted_more() -> None:
    tokens = [2, 10, 11, 2, 20, 21, 2, 30, 31, 2]
    tree = tree_of(tokens, replace(BOUNDS, depth=2))
    assert leaves(tree) == [(30, 31), (20, 21), (10, 11)]


def test_longer_matches_are_trusted_more_than_later_ones() -> None:
    tokens = [3, 4, 10, 9, 4, 20, 8, 3, 4]
    assert leaves(tree_of(tokens, replace(BOUNDS, depth=1))) == [(10,), (20,)]


def test_only_the_latest_places_are_looked_at() -> None:
    tokens = [token for first in range(10, 20) for token in (2, first)] + [2]
    found = leaves(tree_of(tokens, replace(BOUNDS, depth=1)))
    assert found == [(19 - place,) for place in range(PLACES)]


def test_continuations_that_begin_alike_share_their_rows() -> None:
    tokens = [2, 5, 6, 7, 2, 5, 6, 8, 2]
    tree = tree_of(tokens, replace(BOUNDS, depth=3))
    assert set(paths(tree)) == {(), (5,), (5, 6), (5, 6, 7), (5, 6, 8)}


def test_scores_fall_along_a_path_so_that_a_small_budget_keeps_the_best() -> None:
    tokens = [2, 10, 11, 12, 2, 20, 21, 22, 2]
    tree = tree_of(tokens)
    for row in range(1, len(tree)):
        assert tree.scores[row] < tree.scores[tree.parents[row]]
    assert set(paths(tree_of(tokens, replace(BOUNDS, budget=2)))) == {(), (20,)}
    assert set(paths(tree_of(tokens, room=4))) == {(), (20,), (10,), (20, 21)}


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_tree_is_no_deeper_than_its_bound(depth: int) -> None:
    found = leaves(tree_of([3, 4, 5, 6, 7, 3], replace(BOUNDS, depth=depth)))
    assert found == [(4, 5, 6)[:depth]]


@pytest.mark.parametrize("left", [1, 2, 3])
def test_no_level_is_proposed_that_could_not_be_emitted(left: int) -> None:
    """A pass emits one token more than its tree is deep."""
    tokens = [3, 4, 5, 6, 7, 3]
    assert max(tree_of(tokens, max_tokens=left).depths) == left - 1
    full = replace(LIMITS, max_tokens=len(tokens) + left)
    assert max(tree_of(tokens, limits=full).depths) == left - 1


@pytest.mark.parametrize("left", [0, 1, 2])
def test_nothing_is_proposed_behind_the_ropes_border(left: int) -> None:
    tokens = [3, 4, 5, 6, 7, 3]
    near = replace(LIMITS, original_length=len(tokens) + left)
    assert max(tree_of(tokens, limits=near).depths) == left
    behind = replace(LIMITS, original_length=len(tokens) - 1)
    assert max(tree_of(tokens, limits=behind).depths) == BOUNDS.depth


def test_nothing_is_proposed_behind_what_ends_the_sequence() -> None:
    tokens = [3, 4, EOS, 6, 3]
    assert leaves(tree_of(tokens)) == [(4, EOS)]
    assert leaves(tree_of(tokens, ignore_eos=True)) == [(4, EOS, 6, 3)]
    assert leaves(tree_of(tokens, ignore_eos=True, stop_token_ids=(4,))) == [(4,)]


def test_each_sequence_has_its_own_past_and_room() -> None:
    drafter = Ngram(BOUNDS)
    one, two = make_sequence([3, 4, 5, 3]), make_sequence([3, 8, 9, 3])
    trees = drafter.propose([one, two], [1000, 2])
    assert [leaves(tree) for tree in trees] == [[(4, 5, 3)], [(8,)]]
    assert drafter.propose([], []) == []


def test_what_was_emitted_is_found_too() -> None:
    drafter, sequence = Ngram(BOUNDS), make_sequence([3, 4])
    assert leaves(drafter.propose([sequence], [9])[0]) == []
    drafter.commit(sequence, [0])
    sequence.tokens += [5, 3]
    assert leaves(drafter.propose([sequence], [9])[0]) == [(4, 5, 3)]
    sequence.tokens += [4, 6, 3]
    assert leaves(drafter.propose([sequence], [9])[0])[0] == (4, 6, 3)


def test_who_is_released_is_forgotten_and_may_come_back() -> None:
    drafter, sequence = Ngram(BOUNDS), make_sequence([3, 4, 3])
    before = drafter.propose([sequence], [9])
    assert len(drafter._memories) == 1
    drafter.release(sequence)
    assert not drafter._memories
    drafter.release(sequence)
    assert drafter.propose([sequence], [9]) == before


def slow_continuations(tokens: list[int], depth: int) -> dict[Path, int]:
    """Continuation -> rank (lower is better) by looking at every place for every length."""
    found: dict[Path, int] = {}
    for length in range(1, min(LONGEST, len(tokens)) + 1):
        wanted = tokens[len(tokens) - length :]
        places = [end for end in range(length, len(tokens)) if tokens[end - length : end] == wanted]
        for rank, place in enumerate(reversed(places[-PLACES:])):
            path = tuple(tokens[place : place + depth])
            value = LONGEST - length + rank
            found[path] = min(found.get(path, value), value)
    return found


@given(
    tokens=st.lists(st.integers(2, 4), min_size=1, max_size=60),
    cuts=st.lists(st.integers(1, 20), max_size=5),
    depth=st.integers(1, 6),
    budget=st.integers(1, 40),
)
def test_looking_up_as_tokens_come_finds_what_a_slow_search_finds(
    tokens: list[int], cuts: list[int], depth: int, budget: int
) -> None:
    drafter = Ngram(replace(BOUNDS, depth=depth, budget=10_000))
    small = Ngram(replace(BOUNDS, depth=depth, budget=budget))
    sequence = make_sequence(tokens[:1])
    ends = sorted({len(tokens), *(cut for cut in cuts if cut < len(tokens))})
    for end in ends:
        sequence.tokens = tokens[:end]
        (tree,) = drafter.propose([sequence], [10_000])
        expected = slow_continuations(tokens[:end], depth)
        every = {path[:n] for path in expected for n in range(len(path) + 1)} | {()}
        assert set(paths(tree)) == every
        _check_order(tree, expected)
        assert [tree] == Ngram(drafter.bounds).propose([sequence], [10_000])
        (limited,) = small.propose([sequence], [10_000])
        assert limited == tree.limit(depth, budget)


def _check_order(tree: DraftTree, expected: dict[Path, int]) -> None:
    """First tokens are scored as their best place is ranked."""
    firsts: dict[Path, int] = {}
    for path, value in expected.items():
        firsts[path[:1]] = min(firsts.get(path[:1], value), value)
    scores: dict[Path, float] = {p: s for p, s in paths(tree).items() if len(p) == 1}
    for one, other in [(a, b) for a in firsts for b in firsts]:
        assert (firsts[one] < firsts[other]) == (scores[one] > scores[other])
