"""Best-first growth against slow definitions, with tables of scores in place of a model."""

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st

from engine.drafting.calibration import MAX_PROBABILITY, Calibration
from engine.drafting.growth import Growth, Node
from engine.drafting.tree import DraftTree
from tests.engine.books import check_growth
from tests.engine.sequence_makers import EOS, LIMITS, make_sequence

VOCAB = 12
Path = tuple[int, ...]


class Table:
    """A stand-in for a draft model: the children of every path, drawn from a seed."""

    def __init__(self, seed: int, branch: int) -> None:
        self.seed = seed
        self.branch = branch
        self.steps: list[list[Path]] = []  # paths that were run, one list a step

    def children(self, path: Path) -> list[tuple[int, float]]:
        """Return the best tokens after a path and their log-probabilities, the best first."""
        generator = torch.Generator().manual_seed(hash((self.seed, *path)) % (1 << 62))
        logits = torch.randn(VOCAB, generator=generator, dtype=torch.float64) * 2
        scores, tokens = logits.log_softmax(0).topk(self.branch)
        return list(zip(tokens.tolist(), scores.tolist(), strict=True))

    def step(self, growth: Growth, width: int, depth: int, start: Path = ()) -> bool:
        """Run one draft step. Return True if there were nodes to run.

        Args:
            start: the tokens from the table's first root down to the growth's root.
        """
        nodes = growth.pop(width, depth, growth.floor)
        self.steps.append([tuple(growth.path(node)) for node in nodes])
        for node in nodes:
            growth.mark_run(node, len(growth.ran))
            for token, score in self.children((*start, *growth.path(node))):
                growth.add(node, token, score, score, "model")
        return bool(nodes)

    def grow(self, growth: Growth, width: int, depth: int, steps: int = 1000) -> Growth:
        for _ in range(steps):
            if not self.step(growth, width, depth):
                self.steps.pop()
                break
        return growth


def new_growth(budget: int, **params: Any) -> Growth:
    return Growth(make_sequence([5, 6, 7], **{"ignore_eos": True, **params}), budget)


def finished(growth: Growth, rows: int, depth: int) -> DraftTree:
    return growth.tree(growth.ranked(rows, depth))


def paths(tree: DraftTree) -> dict[Path, float]:
    """Return the scores of a tree's rows by the tokens below the root."""
    return {
        tuple(tree.tokens[r] for r in tree.path(row)[1:]): tree.scores[row]
        for row in range(len(tree))
    }


def every_path(table: Table, depth: int) -> dict[Path, float]:
    """Return the scores of all paths down to a depth."""
    found: dict[Path, float] = {(): 0.0}
    level: dict[Path, float] = {(): 0.0}
    for _ in range(depth):
        level = {
            (*path, token): score + gain
            for path, score in level.items()
            for token, gain in table.children(path)
        }
        found |= level
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
def test_wide_enough_steps_find_the_best_tree(
    seed: int, depth: int, branch: int, budget: int
) -> None:
    table = Table(seed, branch)
    growth = table.grow(new_growth(budget), width=1000, depth=depth)
    wanted = best(every_path(table, depth), budget)
    assert paths(finished(growth, budget, depth)) == approximately(wanted)
    assert growth.expected == pytest.approx(sum(map(math.exp, wanted.values())))


@given(
    seed=st.integers(0, 10_000),
    depth=st.integers(1, 8),
    width=st.integers(1, 5),
    branch=st.integers(1, 4),
    budget=st.integers(2, 40),
)
def test_each_step_runs_the_best_nodes_that_were_not_run(
    seed: int, depth: int, width: int, branch: int, budget: int
) -> None:
    """The expected nodes are found naively by SpecExec's algorithm; a budget may end it early."""
    table = Table(seed, branch)
    growth = table.grow(new_growth(budget), width, depth, steps=depth)
    known: dict[Path, float] = {(): 0.0}
    ran: set[Path] = set()
    for step in table.steps:
        waiting = {p: s for p, s in known.items() if p not in ran and len(p) < depth}
        inside = best(known, budget)
        assert step == [path for path in best(waiting, width) if path in inside]
        ran |= set(step)
        for path in step:
            for token, gain in table.children(path):
                known[(*path, token)] = known[path] + gain
    assert paths(finished(growth, budget, depth)) == approximately(best(known, budget))
    if len(table.steps) < depth:  # it ended early: no other path could enter the tree
        left = {p for p in known if p not in ran and len(p) < depth}
        assert not left & best(known, budget).keys()


@given(
    seed=st.integers(0, 10_000),
    budget=st.integers(1, 30),
    rows=st.integers(0, 40),
    depth=st.integers(0, 5),
)
def test_a_tree_keeps_its_bounds_of_rows_and_levels(
    seed: int, budget: int, rows: int, depth: int
) -> None:
    growth = Table(seed, branch=3).grow(new_growth(budget), width=3, depth=5, steps=5)
    tree = finished(
        growth, rows, depth
    )  # DraftTree itself refuses a child that precedes its parent
    assert tree.tokens[0] == 7 and tree.scores[0] == 0.0
    assert len(tree) <= max(rows, 1) and max(tree.depths) <= depth
    assert list(tree.scores) == sorted(tree.scores, reverse=True)
    assert tree.sources == ("", *("model",) * (len(tree) - 1))


def look_up(rng: random.Random, growth: Growth) -> DraftTree:
    """Return a random tree of another draft with the growth's root."""
    tokens, parents, depths, scores = [growth.root.token], [-1], [0], [0.0]
    for _ in range(rng.randrange(1, 12)):
        parent, token = rng.randrange(len(tokens)), rng.randrange(VOCAB)
        ends = parent > 0 and growth.sequence.is_terminal(tokens[parent])
        ends = ends or growth.root.position + depths[parent] >= growth.last_position
        if not ends and (parent, token) not in zip(parents, tokens, strict=True):
            tokens.append(token)
            parents.append(parent)
            depths.append(depths[parent] + 1)
            scores.append(scores[parent] - rng.choice([0.01, 0.5, 0.5, 3.0]))
    sources = ("", *("lookup",) * (len(tokens) - 1))
    return DraftTree(tuple(tokens), tuple(parents), tuple(depths), tuple(scores), sources)


@pytest.mark.parametrize("seed", range(40))
def test_the_sums_of_a_growth_stay_right_after_any_operations(seed: int) -> None:
    """The operations are steps, look-ups that raise scores, and new roots."""
    rng = random.Random(seed)
    table = Table(seed, branch=rng.choice([1, 3, 5]))
    sequence = make_sequence([5, 6, 7], max_tokens=30)
    growth = Growth(sequence, budget=rng.choice([1, 2, 5, 20]))
    start: Path = ()
    slots = 0
    for _ in range(40):
        match rng.choice(["step", "ahead", "look up", "reroot"]):
            case "step" | "ahead":
                nodes = growth.pop(rng.randrange(1, 5), 6, rng.choice([-9.0, growth.floor]))
                kept = nodes[: rng.randrange(len(nodes) + 1)]
                growth.put_back(nodes[len(kept) :])
                for node in kept:
                    growth.mark_run(node, slots)
                    slots += 1
                    for token, score in table.children((*start, *growth.path(node))):
                        growth.add(node, token, score, score, "model")
            case "look up":
                growth.insert(look_up(rng, growth), Calibration())
            case "reroot":
                nodes = growth.ranked(50, 3)
                root = rng.choice(nodes)
                start = (*start, *growth.path(root))
                sequence.tokens += growth.path(root)
                before = {n.slot for n in growth.ran}
                freed = growth.reroot(root)
                assert {*freed} | {n.slot for n in growth.ran} == before
                assert len(freed) + len(growth.ran) == len(before)
        check_growth(growth)


def test_a_new_root_frees_exactly_the_slots_of_nodes_not_below_it() -> None:
    growth = Table(3, branch=3).grow(new_growth(100), width=4, depth=4, steps=4)
    nodes = {tuple(growth.path(node)): node for node in growth.ran}
    root = nodes[next(path for path in nodes if len(path) == 1)]
    below = {n.slot for path, n in nodes.items() if path[:1] == (root.token,)}
    assert below and set(growth.reroot(root)) == {n.slot for n in nodes.values()} - below
    assert {n.slot for n in growth.ran} == below


def test_the_branch_below_a_new_root_is_the_start_of_the_next_tree() -> None:
    """Nodes and frontier stay, and scores count from the new root."""
    table = Table(5, branch=2)
    growth = table.grow(new_growth(1000), width=100, depth=3, steps=3)
    first = growth.ranked(2, 1)[1]
    growth.reroot(first)
    below = {p[1:]: s for p, s in every_path(table, 3).items() if p[:1] == (first.token,)}
    scores = {path: score - below[()] for path, score in below.items()}
    assert paths(finished(growth, 1000, 9)) == approximately(scores)
    assert growth.expected == pytest.approx(sum(map(math.exp, scores.values())))
    table.step(growth, width=100, depth=9, start=(first.token,))
    assert set(table.steps[-1]) == {path for path in scores if len(path) == 2}


def test_a_node_too_deep_for_one_tree_is_run_for_the_next() -> None:
    growth = Table(1, branch=1).grow(new_growth(10), width=1, depth=2)
    assert growth.pop(5, depth=2) == [] and len(growth.ran) == 2
    growth.reroot(growth.ranked(2, 9)[1])
    (node,) = growth.pop(5, depth=2)
    assert len(growth.path(node)) == 1


def test_popped_nodes_are_off_the_frontier_until_put_back() -> None:
    growth = Table(2, branch=5).grow(new_growth(100), width=1, depth=9, steps=1)
    popped = growth.pop(3, 9)
    rest = growth.pop(9, 9)
    assert len(popped) == 3 and len(rest) == 2 and not growth.pop(1, 9)
    growth.put_back([*rest, *popped[::-1]])
    assert growth.pop(9, 9) == [*popped, *rest], "the best first again"


def test_nothing_below_the_floor_is_run() -> None:
    growth = new_growth(3)
    (root,) = growth.pop(1, 9, growth.floor)
    growth.mark_run(root, 0)
    for token, score in ((3, -1.0), (4, -2.0), (5, -4.0)):
        growth.add(root, token, score, score, "model")
    assert growth.floor == -2.0
    assert [node.token for node in growth.pop(9, 9, growth.floor)] == [3, 4]
    assert [node.token for node in growth.pop(9, 9)] == [5]


def test_with_a_budget_of_one_row_no_node_is_run() -> None:
    growth = new_growth(1)
    assert growth.pop(9, 9, growth.floor) == []
    growth.insert(DraftTree.chain([7, 3], [0.0, -1.0], "lookup"), Calibration())
    assert len(growth) == 1 and growth.expected == 1.0
    assert growth.pop(9, 9, growth.floor) == []


def chain(*steps: tuple[int, float], source: str = "lookup") -> DraftTree:
    """Return a chain below token 7 of pairs (token, its log-probability after the one before)."""
    scores = [0.0]
    for _, gain in steps:
        scores.append(scores[-1] + gain)
    return DraftTree.chain([7, *(token for token, _ in steps)], scores, source)


def test_a_look_up_raises_an_existing_node_and_all_below_it() -> None:
    growth = new_growth(10)
    growth.insert(chain((3, -2.0), (4, -1.0), source="a"), Calibration())
    growth.insert(chain((3, -0.5), source="b"), Calibration())
    growth.insert(chain((3, -1.5), (5, -0.1), source="c"), Calibration())
    tree = finished(growth, 10, 9)
    assert paths(tree) == approximately({(): 0, (3,): -0.5, (3, 5): -0.6, (3, 4): -1.5})
    assert tree.sources == ("", "a", "c", "a"), "the source is the draft that proposed a row first"
    (node,) = growth.root.children.values()
    assert node.logprobs == approximately_by_source({"a": -2.0, "b": -0.5, "c": -1.5})
    check_growth(growth)


def approximately_by_source(logprobs: dict[str, float]) -> dict[str, object]:
    return {source: pytest.approx(logprob) for source, logprob in logprobs.items()}


def test_a_raised_node_is_popped_once_by_its_new_score() -> None:
    growth = new_growth(10)
    growth.insert(chain((3, -2.0)), Calibration())
    growth.insert(chain((4, -1.0)), Calibration())
    growth.insert(chain((3, -0.5)), Calibration())
    assert [node.token for node in growth.pop(9, 9)] == [7, 3, 4]


def test_a_raise_lost_to_rounding_adds_no_node_to_the_frontier_twice() -> None:
    growth = new_growth(10)
    child = growth.add(growth.root, 3, -0.5, -0.5, "a")
    growth.add(child, 4, -0.7, -0.7, "a")
    growth.add(growth.root, 3, -0.5, math.nextafter(-0.5, 0.0), "b")
    assert child.score > -0.5
    popped = growth.pop(9, 9)
    assert [node.token for node in popped] == [7, 3, 4]
    check_growth(growth)


def test_nodes_of_look_ups_are_popped_parents_first() -> None:
    """All nodes of a look-up are on the frontier at once."""
    growth = new_growth(10)
    growth.insert(chain((3, -0.1), (4, -0.1), (5, -0.1)), Calibration())
    assert [node.token for node in growth.pop(9, 9)] == [7, 3, 4, 5]


def test_inserted_scores_are_calibrated_by_source() -> None:
    calibration = Calibration()
    for _ in range(1000):
        calibration.observe("overconfident", math.log(0.7), hit=False)
        calibration.observe("underconfident", math.log(0.3), hit=True)
    growth = new_growth(10)
    growth.insert(chain((3, math.log(0.7)), source="overconfident"), calibration)
    growth.insert(chain((4, math.log(0.3)), source="underconfident"), calibration)
    tree = finished(growth, 10, 9)
    assert tree.tokens == (7, 4, 3)
    assert tree.scores[1] > math.log(0.9) and tree.scores[2] < math.log(0.05)


def test_scores_fall_along_a_path_even_of_certain_tokens() -> None:
    growth = new_growth(10)
    growth.insert(chain((3, 0.0), (4, 0.0), (5, 0.0)), Calibration())
    tree = finished(growth, 10, 9)
    assert tree.tokens == (7, 3, 4, 5)
    assert tree.scores == pytest.approx([n * math.log(MAX_PROBABILITY) for n in range(4)])


def run_all(growth: Growth, children: dict[Path, Sequence[int]]) -> list[Path]:
    """Run all nodes with these children by path, and return the paths in the order they ran."""
    ran: list[Path] = []
    while nodes := growth.pop(1, 100):
        path = tuple(growth.path(nodes[0]))
        growth.mark_run(nodes[0], len(ran))
        ran.append(path)
        for token in children.get(path, ()):
            growth.add(nodes[0], token, -0.1, -0.1, "model")
    return ran


@pytest.mark.parametrize(
    ("params", "expanded"),
    [
        ({"ignore_eos": False}, False),
        ({"ignore_eos": True}, True),
        ({"ignore_eos": True, "stop_token_ids": (EOS,)}, False),
    ],
)
def test_a_token_that_ends_the_sequence_is_proposed_but_not_expanded(
    params: dict[str, Any], expanded: bool
) -> None:
    growth = new_growth(20, **params)
    ran = run_all(growth, {(): [3, EOS], (3,): [4], (EOS,): [5]})
    assert ((EOS,) in ran) is expanded
    found = paths(finished(growth, 20, 9))
    assert (EOS,) in found and ((EOS, 5) in found) is expanded


def test_a_root_that_could_end_the_sequence_is_expanded() -> None:
    """The token is in the prompt, or was emitted and did not end the sequence (`min_tokens`)."""
    growth = Growth(make_sequence([5, EOS]), 10)
    assert growth.pop(1, 9) == [growth.root]
    growth.reroot(growth.add(growth.root, EOS, -0.1, -0.1, "model"))
    assert growth.pop(1, 9) == [growth.root]


@pytest.mark.parametrize("left", [0, 1, 2, 3])
def test_no_level_is_drafted_that_cannot_be_emitted(left: int) -> None:
    """The deepest row emits the last token of an answer, also after a new root."""
    growth = Table(1, branch=2).grow(new_growth(100, max_tokens=left + 1), width=9, depth=9)
    assert max(finished(growth, 100, 9).depths) == left
    if left > 1:
        growth.reroot(growth.ranked(2, 1)[1])
        growth = Table(1, branch=2).grow(growth, width=9, depth=9)
        assert max(finished(growth, 100, 9).depths) == left - 1


@pytest.mark.parametrize("left", [0, 1])
def test_no_row_is_drafted_across_the_rope_border(left: int) -> None:
    limits = LIMITS.__class__(LIMITS.max_tokens, LIMITS.eos_token_ids, original_length=3 + left)
    growth = Table(2, branch=2).grow(new_growth(100, limits=limits), width=9, depth=4)
    assert max(finished(growth, 100, 9).depths) == left
    assert len(growth.ran) == left


def test_emitted_tokens_are_followed_as_far_as_they_were_drafted() -> None:
    growth = new_growth(10)
    growth.insert(chain((3, -0.1), (4, -0.1)), Calibration())

    def tokens(nodes: Sequence[Node]) -> list[int]:
        return [node.token for node in nodes]

    assert tokens(growth.follow([3, 4])) == [7, 3, 4]
    assert tokens(growth.follow([3, 9, 4])) == [7, 3]
    assert tokens(growth.follow([8])) == [7]
