"""Best-first growth against slow, plain definitions, on score tables in place of a model."""

import itertools
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from engine.growth import Bounds, Growth, grow
from engine.tree import DraftTree
from tests.engine.sequences import EOS, LIMITS, make_sequence

VOCAB = 12
Path = tuple[int, ...]


class Table:
    """The children of every path: what a draft would say, drawn from a seed."""

    def __init__(self, seed: int, branch: int, *, ties: bool = False) -> None:
        self.seed = seed
        self.branch = branch
        self.ties = ties
        self.steps: list[list[tuple[Path, ...]]] = []  # paths asked for, one list a step

    def children(self, path: Path) -> tuple[list[int], list[float]]:
        """The best tokens behind a path with their log scores, best first."""
        generator = torch.Generator().manual_seed(hash((self.seed, *path)) % (1 << 62))
        logits = torch.randn(VOCAB, generator=generator, dtype=torch.float64) * 2
        if self.ties:
            logits = logits.round()
        scores, tokens = logits.log_softmax(0).topk(self.branch)
        return tokens.tolist(), scores.tolist()

    def forward(self, step: list[tuple[Growth, list[int]]]) -> Tensor:
        """ "Logits" that only tell how many rows were run."""
        self.steps.append([tuple(tuple(g.path(node)) for node in nodes) for g, nodes in step])
        return torch.zeros(sum(len(nodes) for _, nodes in step), VOCAB)

    def answer(self, growth: Growth, nodes: list[int], logits: Tensor) -> tuple[Tensor, Tensor]:
        assert len(logits) == len(nodes), "each tree gets the logits of its own rows"
        found = [self.children(tuple(growth.path(node))) for node in nodes]
        return torch.tensor([t for t, _ in found]), torch.tensor([s for _, s in found]).double()


def grown(table: Table, bounds: Bounds, room: int = 10_000, **params: Any) -> Growth:
    growth = Growth(make_sequence([5, 6, 7], ignore_eos=True, **params), bounds, room)
    grow([growth], table.forward, table.answer)
    return growth


def paths(tree: DraftTree) -> dict[Path, float]:
    """Tokens below the root -> score."""
    return {
        tuple(tree.tokens[r] for r in tree.path(row)[1:]): tree.scores[row]
        for row in range(len(tree))
    }


def every_path(table: Table, depth: int) -> dict[Path, float]:
    """The whole tree down to a depth: paths -> score."""
    found: dict[Path, float] = {(): 0.0}
    level: dict[Path, float] = {(): 0.0}
    for _ in range(depth):
        below: dict[Path, float] = {}
        for path, score in level.items():
            for token, gain in zip(*table.children(path), strict=True):
                below[(*path, token)] = score + gain
        found |= below
        level = below
    return found


def best(scored: dict[Path, float], count: int) -> dict[Path, float]:
    return dict(sorted(scored.items(), key=lambda item: -item[1])[:count])


def approximately(scored: dict[Path, float]) -> dict[Path, object]:
    return {path: pytest.approx(score) for path, score in scored.items()}


@given(
    seed=st.integers(0, 10_000),
    depth=st.integers(1, 4),
    branch=st.integers(1, 4),
    budget=st.integers(1, 60),
)
def test_wide_enough_steps_find_the_best_tree_there_is(
    seed: int, depth: int, branch: int, budget: int
) -> None:
    table = Table(seed, branch)
    growth = grown(table, Bounds(depth=depth, width=1000, branch=branch, budget=budget))
    tree, _ = growth.finish()
    assert paths(tree) == approximately(best(every_path(table, depth), budget))


@given(
    seed=st.integers(0, 10_000),
    depth=st.integers(1, 8),
    width=st.integers(1, 5),
    branch=st.integers(1, 4),
    budget=st.integers(1, 40),
)
def test_each_step_runs_the_best_that_were_not_run(
    seed: int, depth: int, width: int, branch: int, budget: int
) -> None:
    """SpecExec's algorithm, written down naively; budget only ends it early."""
    table, bounds = Table(seed, branch), Bounds(depth, width, branch, budget)
    growth = grown(table, bounds)
    known: dict[Path, float] = {(): 0.0}
    ran: set[Path] = set()
    for (step,) in table.steps:
        waiting = {p: s for p, s in known.items() if p not in ran and len(p) < depth}
        inside = best(known, budget)
        wanted = [path for path in best(waiting, width) if path in inside]
        assert list(step) == wanted
        ran |= set(step)
        for path in step:
            for token, gain in zip(*table.children(path), strict=True):
                known[(*path, token)] = known[path] + gain
    assert paths(growth.finish()[0]) == approximately(best(known, budget))
    if len(table.steps) < depth:  # it ended early: nobody left could have entered
        left = {p for p in known if p not in ran and len(p) < depth}
        assert not left & best(known, budget).keys()


@given(
    seed=st.integers(0, 10_000),
    depth=st.integers(1, 6),
    width=st.integers(1, 6),
    branch=st.integers(1, 5),
    budget=st.integers(1, 50),
    room=st.integers(1, 60),
    ties=st.booleans(),
)
def test_a_tree_keeps_to_its_bounds(
    seed: int, depth: int, width: int, branch: int, budget: int, room: int, ties: bool
) -> None:
    table, bounds = Table(seed, branch, ties=ties), Bounds(depth, width, branch, budget)
    growth = grown(table, bounds, room)
    tree, scratch = growth.finish()  # DraftTree itself refuses a child before its parent
    assert tree.tokens[0] == 7 and tree.scores[0] == 0.0
    assert len(tree) <= min(budget, room)
    assert max(tree.depths) <= depth
    assert all(len(tree.children(row)) <= branch for row in range(len(tree)))
    assert len(table.steps) <= depth
    assert all(len(nodes) <= width for (nodes,) in table.steps)
    ran = [path for (step,) in table.steps for path in step]
    assert len(ran) <= min(room, bounds.draft_rows) == len(growth.ancestors)
    assert len(set(ran)) == len(ran), "no path is run twice"
    assert list(tree.scores) == sorted(tree.scores, reverse=True)
    assert len(scratch) == len(tree)


@given(
    seed=st.integers(0, 10_000),
    depth=st.integers(1, 6),
    width=st.integers(1, 6),
    budget=st.integers(2, 50),
)
def test_scratch_rows_tell_what_ran_in_order_and_see_their_own_ancestors(
    seed: int, depth: int, width: int, budget: int
) -> None:
    table = Table(seed, branch=3)
    growth = grown(table, Bounds(depth, width, 3, budget))
    ran = [path for (step,) in table.steps for path in step]
    row_of = {tuple(growth.path(node)): row for node, row in growth.scratch.items()}
    assert [row_of[path] for path in ran] == list(range(len(ran)))
    for path, row in row_of.items():
        seen = {other for other, place in row_of.items() if growth.ancestors[row, place]}
        assert seen == {path[:length] for length in range(len(path) + 1)}
    tree, scratch = growth.finish()
    for row, place in enumerate(scratch):
        path = tuple(tree.tokens[r] for r in tree.path(row)[1:])
        assert place == row_of.get(path)


def test_a_leaf_that_was_never_run_has_no_scratch_row() -> None:
    growth = grown(Table(0, branch=2), Bounds(depth=1, width=1, branch=2, budget=9))
    tree, scratch = growth.finish()
    assert len(tree) == 3 and scratch == [0, None, None]


class Fixed(Table):
    """Children as written down; none behind other paths."""

    def __init__(self, choices: dict[Path, Seq[tuple[int, float]]], branch: int = 2) -> None:
        super().__init__(0, branch)
        self.choices = choices

    def children(self, path: Path) -> tuple[list[int], list[float]]:
        found = [*self.choices.get(path, ()), *[(0, -float("inf"))] * self.branch][: self.branch]
        return [token for token, _ in found], [score for _, score in found]


def run(table: Table, bounds: Bounds, **params: Any) -> Growth:
    growth = Growth(make_sequence([7], **params), bounds, 1000)
    grow([growth], table.forward, table.answer)
    return growth


WIDE = Bounds(depth=4, width=2, branch=2, budget=20)
CHAIN: dict[Path, Seq[tuple[int, float]]] = {
    (): [(3, -0.1), (EOS, -0.2)],
    (3,): [(4, -0.1)],
    (EOS,): [(5, -0.1)],
    (3, 4): [(5, -0.1)],
}


def test_what_cannot_be_chosen_is_no_child() -> None:
    tree, _ = run(Fixed({(): [(3, -1.0)]}), WIDE).finish()
    assert tree.tokens == (7, 3)


@pytest.mark.parametrize(
    ("params", "expanded"),
    [
        ({}, False),
        ({"ignore_eos": True}, True),
        ({"ignore_eos": True, "stop_token_ids": (EOS,)}, False),
    ],
)
def test_what_ends_the_sequence_is_proposed_but_not_expanded(
    params: dict[str, Any], expanded: bool
) -> None:
    table = Fixed(CHAIN)
    found = paths(run(table, WIDE, **params).finish()[0])
    assert (EOS,) in found and (3, 4, 5) in found
    assert ((EOS, 5) in found) is expanded
    assert any((EOS,) in step for (step,) in table.steps) is expanded


def test_growth_stops_when_nothing_better_can_come() -> None:
    """Three rows: the root and two children that outscore whatever comes behind them."""
    table = Fixed({(): [(3, -1.0), (4, -1.0)], (3,): [(5, -9.0)], (4,): [(6, -9.0)]})
    bounds = Bounds(depth=4, width=1, branch=2, budget=3)
    found = paths(run(table, bounds).finish()[0])
    assert set(found) == {(), (3,), (4,)}
    long = Fixed({(): [(3, -1.0), (4, -2.0)], (3,): [(5, -9.0)]})
    run(long, replace(bounds, budget=2))
    assert [step for (step,) in long.steps] == [((),), ((3,),)], "4 could not enter a tree of two"


def test_a_child_as_certain_as_its_parent_stands_behind_it() -> None:
    table = Fixed({(): [(3, 0.0)], (3,): [(4, 0.0)], (3, 4): [(5, 0.0)]})
    tree, _ = run(table, replace(WIDE, budget=3)).finish()
    assert tree.tokens == (7, 3, 4) and tree.scores == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("left", [0, 1, 2, 3])
def test_no_level_is_drafted_that_could_not_be_emitted(left: int) -> None:
    """The last token of an answer comes from the deepest row."""
    growth = run(Table(1, branch=2), WIDE, ignore_eos=True, max_tokens=left + 1)
    assert max(growth.finish()[0].depths) == left


@pytest.mark.parametrize("left", [0, 1])
def test_a_neighbour_that_may_go_deeper_does_not_take_others_along(left: int) -> None:
    limits = replace(LIMITS, original_length=2 + left)
    near = make_sequence([8, 7], ignore_eos=True, limits=limits)
    far = make_sequence([5, 7], ignore_eos=True)
    table = Table(2, branch=2)
    growths = [Growth(sequence, WIDE, 1000) for sequence in (near, far)]
    grow(growths, table.forward, table.answer)
    assert max(growths[0].finish()[0].depths) == left, "the rope's border is not crossed"
    assert max(growths[1].finish()[0].depths) == WIDE.depth
    assert growths[0].finish()[1][0] == (0 if left else None)


@given(seeds=st.lists(st.integers(0, 99), min_size=1, max_size=4), width=st.integers(1, 4))
def test_trees_that_grow_together_are_those_that_grow_alone(seeds: list[int], width: int) -> None:
    """A step runs the rows of all trees in one batch; each tree gets its own logits."""
    bounds = Bounds(depth=4, width=width, branch=3, budget=12)
    tables = [Table(seed, 3) for seed in seeds]
    growths = [Growth(make_sequence([7], ignore_eos=True), bounds, 100) for _ in seeds]
    table_of = dict(zip(growths, tables, strict=True))
    rows: list[int] = []

    def forward(step: list[tuple[Growth, list[int]]]) -> Tensor:
        rows.append(sum(len(nodes) for _, nodes in step))
        marks = [growths.index(growth) for growth, nodes in step for _ in nodes]
        return torch.tensor(marks, dtype=torch.float32)[:, None].expand(-1, VOCAB)

    def children(growth: Growth, nodes: list[int], logits: Tensor) -> tuple[Tensor, Tensor]:
        assert logits[:, 0].tolist() == [growths.index(growth)] * len(nodes)
        return table_of[growth].answer(growth, nodes, logits)

    grow(growths, forward, children)
    assert rows[0] == len(seeds)
    for growth, table in zip(growths, tables, strict=True):
        alone = grown(Table(table.seed, 3), bounds, 100)
        assert growth.finish() == alone.finish()


def test_nothing_grows_for_nobody() -> None:
    table = Table(0, 2)
    grow([], table.forward, table.answer)
    assert table.steps == []


def test_the_rows_a_draft_may_run_are_the_root_and_a_width_for_each_further_step() -> None:
    for depth, width in itertools.product(range(1, 5), range(1, 5)):
        bounds = Bounds(depth, width, branch=width, budget=10_000)
        table = Table(0, branch=width)
        grown(table, bounds)
        assert sum(len(step) for (step,) in table.steps) <= bounds.draft_rows
    assert sum(len(step) for (step,) in table.steps) == bounds.draft_rows
