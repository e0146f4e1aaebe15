"""The draft tree, against slow and simple definitions of its parts."""

import random

import pytest
import torch
from hypothesis import given, strategies as st

from engine.drafting.tree import DraftTree


@st.composite
def trees(draw: st.DrawFn) -> DraftTree:
    """Draw random trees whose scores never rise along a path."""
    tokens, parents, depths, scores = [0], [-1], [0], [0.0]
    for _ in range(draw(st.integers(0, 24))):
        parent = draw(st.integers(0, len(tokens) - 1))
        token = draw(st.integers(0, 5))
        if (parent, token) not in zip(parents, tokens, strict=True):
            tokens.append(token)
            parents.append(parent)
            depths.append(depths[parent] + 1)
            scores.append(scores[parent] - draw(st.integers(0, 3)))
    return DraftTree(
        tuple(tokens), tuple(parents), tuple(depths), tuple(scores), ("",) * len(tokens)
    )


def test_a_root_is_a_tree_of_one_row() -> None:
    tree = DraftTree.root(7)
    assert (tree.tokens, tree.parents, tree.depths, tree.scores) == ((7,), (-1,), (0,), (0.0,))
    assert tree.mask().tolist() == [[True]]


def test_a_chain_starts_with_the_last_emitted_token() -> None:
    tree = DraftTree.chain([7, 8, 8], [0.0, -0.5, -1.0])
    assert tree.parents == (-1, 0, 1)
    assert tree.depths == (0, 1, 2)
    assert tree.path(2) == [0, 1, 2]
    assert tree.children(1) == {8: 2}
    assert DraftTree.chain([7, 8]).scores == (0.0, 0.0)


@given(trees())
def test_a_row_attends_to_its_ancestors_and_itself(tree: DraftTree) -> None:
    mask = tree.mask()
    assert mask.dtype == torch.bool
    for row in range(len(tree)):
        assert mask[row].nonzero()[:, 0].tolist() == sorted(tree.path(row))


@given(trees())
def test_children_are_found_by_their_token(tree: DraftTree) -> None:
    found = {
        (row, token, child)
        for row in range(len(tree))
        for token, child in tree.children(row).items()
    }
    assert found == {(tree.parents[r], tree.tokens[r], r) for r in range(1, len(tree))}


@pytest.mark.parametrize(
    ("tokens", "parents", "depths", "message"),
    [
        ((), (), (), "has a root"),
        ((1, 2, 3), (-1, 2, 0), (0, 2, 1), "precede"),
        ((1, 2), (-1, 0), (0, 2), "depth"),
        ((1, 2, 2), (-1, 0, 0), (0, 1, 1), "share a token"),
        ((1, 2), (0, 0), (0, 1), "row 0"),
    ],
)
def test_an_invalid_tree_is_refused(
    tokens: tuple[int, ...], parents: tuple[int, ...], depths: tuple[int, ...], message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        DraftTree(tokens, parents, depths, (0.0,) * len(tokens), ("",) * len(tokens))


def test_the_mask_of_a_tree_of_a_thousand_rows_is_right() -> None:
    rng = random.Random(0)
    parents = (-1, *(rng.randrange(row) for row in range(1, 1024)))
    depths = [0]
    for parent in parents[1:]:
        depths.append(depths[parent] + 1)
    tree = DraftTree(tuple(range(1024)), parents, tuple(depths), (0.0,) * 1024, ("",) * 1024)
    assert tree.mask().sum(1).tolist() == [depth + 1 for depth in depths]
