"""Tests of verification: by tables, and against plain decoding on random trees."""

import random
from collections.abc import Callable

import pytest

from engine.drafting.tree import DraftTree
from engine.runtime.verify import verify

#   0(10) -- 1(11) -- 3(13) -- 5(15)
#        \         \- 4(14)
#         \ 2(12)
TREE = DraftTree(
    tokens=(10, 11, 12, 13, 14, 15),
    parents=(-1, 0, 0, 1, 1, 3),
    depths=(0, 1, 1, 2, 2, 3),
    scores=(0.0,) * 6,
    sources=("",) * 6,
)


def walk(
    tree: DraftTree,
    choose: Callable[[int], int],
    stop: Callable[[int, int], bool] = lambda row, token: False,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the visited rows and the tokens emitted at them."""
    tokens: list[int] = []

    def emit(row: int, token: int) -> bool:
        tokens.append(token)
        return stop(row, token)

    return tuple(verify(tree, choose, emit)), tuple(tokens)


@pytest.mark.parametrize(
    ("choices", "rows", "tokens"),
    [
        ({0: 99}, (0,), (99,)),  # no draft is right: one token, as in plain decoding
        ({0: 12, 2: 11}, (0, 2), (12, 11)),  # the tree has 11 at another row only
        ({0: 11, 1: 14, 4: 7}, (0, 1, 4), (11, 14, 7)),
        (
            {0: 11, 1: 13, 3: 15, 5: 15},
            (0, 1, 3, 5),
            (11, 13, 15, 15),
        ),  # all drafts are right, and there is a bonus token
    ],
)
def test_visited_rows_follow_the_choices(
    choices: dict[int, int], rows: tuple[int, ...], tokens: tuple[int, ...]
) -> None:
    assert walk(TREE, choices.__getitem__) == (rows, tokens)


def test_choices_are_made_once_per_visited_row_and_in_order() -> None:
    asked: list[int] = []

    def choose(row: int) -> int:
        asked.append(row)
        return {0: 11, 1: 13, 3: 0}[row]

    walk(TREE, choose)
    assert asked == [0, 1, 3]


@pytest.mark.parametrize(("last", "tokens"), [(11, (11,)), (13, (11, 13)), (15, (11, 13, 15))])
def test_no_row_is_visited_after_the_last_token(last: int, tokens: tuple[int, ...]) -> None:
    choices = {0: 11, 1: 13, 3: 15, 5: 16}
    asked: list[int] = []
    offered: list[int] = []

    def choose(row: int) -> int:
        asked.append(row)
        return choices[row]

    def stop(_row: int, token: int) -> bool:
        offered.append(token)
        return token == last

    rows, walked = walk(TREE, choose, stop)
    assert walked == tokens
    assert asked == list(rows)
    assert offered == list(tokens)  # once for each emitted token


def test_a_root_without_children_emits_one_token() -> None:
    assert walk(DraftTree.root(4), lambda row: 5) == ((0,), (5,))


def test_random_trees_emit_the_tokens_of_plain_decoding() -> None:
    rng = random.Random(1)

    def decode(prefix: tuple[int, ...]) -> int:
        """Return the next token of a model, here any function of the prefix."""
        return hash((prefix, 17)) % 3

    for _ in range(300):
        tree = random_tree(rng, rows=rng.randrange(1, 30))
        prefix = (rng.randrange(3), rng.randrange(3))

        def choose(row: int, tree: DraftTree = tree, prefix: tuple[int, int] = prefix) -> int:
            return decode(prefix + tuple(tree.tokens[r] for r in tree.path(row)))

        rows, tokens = walk(tree, choose)
        expected: tuple[int, ...] = (*prefix, tree.tokens[0])
        for token in tokens:
            assert token == decode(expected)
            expected = (*expected, token)
        assert tree.path(rows[-1]) == list(rows)
        assert [tree.tokens[row] for row in rows[1:]] == list(tokens[:-1])
        assert tokens[-1] not in tree.children(rows[-1])


def random_tree(rng: random.Random, rows: int) -> DraftTree:
    edges = {(-1, rng.randrange(3)): 0}
    depths = [0]
    for _ in range(rows):
        parent = rng.randrange(len(edges))
        edge = (parent, rng.randrange(3))
        if edge not in edges:
            edges[edge] = len(edges)
            depths.append(depths[parent] + 1)
    parents, tokens = zip(*edges, strict=True)
    return DraftTree(tokens, parents, tuple(depths), (0.0,) * len(edges), ("",) * len(edges))
