"""The policy's decisions, against the rate of tokens over time computed naively."""

import math
import random
from collections.abc import Sequence
from itertools import product

import pytest

from engine.drafting.calibration import Calibration
from engine.drafting.growth import Growth, Node
from engine.drafting.policy import EXPLORE_EVERY, MIN_CYCLES, Step, TreePolicy
from engine.timing import PassTimes
from tests.engine.sequence_makers import make_sequence

TILE = 64


def passes(seconds: float | None = None, *, more: float | None = None) -> PassTimes:
    """Return pass times: `seconds` for a pass of one tile, `more` for one of two tiles."""
    times = PassTimes(TILE)
    if seconds is not None:
        times.observe(TILE, seconds, 0.0)
    if more is not None:
        times.observe(2 * TILE, more, 0.0)
    return times


def policy(times: PassTimes, step: float | None, *, tuned: bool = True) -> TreePolicy:
    """Return a policy with the time of a draft step: `step` seconds for one row, twice for two."""
    made = TreePolicy(Calibration(), times, is_tuned=tuned)
    made.calibration.mass = 1.0
    if step is not None:
        made.draft.observe(1, step)
        made.draft.observe(2, 2 * step)
    return made


def growth(probabilities: Sequence[float], budget: int = 20) -> Growth:
    """Return a growth whose root was run and has children of these probabilities."""
    made = Growth(make_sequence([5, 7], ignore_eos=True), budget)
    (root,) = made.pop(1, 9)
    made.mark_run(root, 0)
    for token, probability in enumerate(probabilities, 3):
        made.add(root, token, math.log(probability), math.log(probability), "model")
    return made


def choose(
    own: TreePolicy,
    trees: Sequence[Growth],
    *,
    width: int = 9,
    depth: int = 9,
    elapsed: float = 0.0,
    undrafted: int = 0,
) -> Step:
    """Choose a draft step of a pass without prompt rows."""
    return own.choose_step(
        trees, width=width, depth=depth, elapsed=elapsed, fixed_rows=0, undrafted=undrafted
    )


def allot(
    own: TreePolicy,
    ranked: Sequence[Sequence[float]],
    *,
    elapsed: float = 0.0,
    fixed_rows: int = 0,
    max_rows: int = 999,
) -> list[int]:
    """Allot the rows of a pass to trees with these probabilities of rows."""
    return own.allot_rows(ranked, elapsed=elapsed, fixed_rows=fixed_rows, max_rows=max_rows)


def tokens(step: Step) -> list[list[int]]:
    """Return the tokens of the chosen nodes, a list for each growth."""
    return [[node.token for node in nodes] for _, nodes in step]


@pytest.mark.parametrize("elapsed", [0.0, 0.5])
@pytest.mark.parametrize("seconds", [0.1, 0.3, 0.5, 0.7, 0.9, 1.5])
def test_a_step_is_run_if_and_only_if_the_rate_rises(seconds: float, elapsed: float) -> None:
    """The tree is expected to emit 1.5 tokens; a step below the child adds 0.5 in `seconds`."""
    own = policy(passes(2.0), seconds)
    step = choose(own, [growth([0.5])], elapsed=elapsed)
    pays = 2.0 / (elapsed + 2.0 + seconds) > 1.5 / (elapsed + 2.0)
    assert tokens(step) == ([[3]] if pays else [])


def test_a_step_that_does_not_change_the_rate_is_not_run() -> None:
    own = policy(passes(3.0), 1.0)  # 1.5 tokens in 3 s, or 2 in 4 s
    assert choose(own, [growth([0.5])]) == []


@pytest.mark.parametrize("elapsed", [0.0, 0.5, 9.0])
@pytest.mark.parametrize("seconds", [0.1, 0.9, 1.1, 5.0])
def test_a_step_is_run_if_it_beats_the_rate_of_recent_cycles(
    seconds: float, elapsed: float
) -> None:
    """At half a token a second, half a token may take a second, in any cycle."""
    own = policy(passes(2.0), seconds)
    for _ in range(MIN_CYCLES):
        own.observe_cycle(1, 2, 4.0)
    step = choose(own, [growth([0.5])], elapsed=elapsed)
    assert tokens(step) == ([[3]] if seconds < 1 else [])


def test_the_rate_is_learned_by_the_number_of_sequences() -> None:
    own = policy(passes(2.0), 0.6)  # pays by the cycle's own rate: 2 / 2.6 is more than 1.5 / 2
    for _ in range(MIN_CYCLES):
        own.observe_cycle(2, 1000, 1.0)
    for _ in range(MIN_CYCLES - 1):
        assert tokens(choose(own, [growth([0.5])])) == [[3]]
        own.observe_cycle(1, 1000, 1.0)
    assert tokens(choose(own, [growth([0.5])])) == [[3]]
    own.observe_cycle(1, 1000, 1.0)
    assert choose(own, [growth([0.5])]) == []


def test_undrafted_sequences_count_as_sequences_of_the_cycle() -> None:
    own = policy(passes(2.0), 0.6)
    for _ in range(MIN_CYCLES):
        own.observe_cycle(2, 1000, 1.0)
    assert tokens(choose(own, [growth([0.5])])) == [[3]]
    assert choose(own, [growth([0.5])], undrafted=1) == []


def test_the_rate_follows_recent_cycles() -> None:
    own = policy(passes(2.0), 0.6)
    for _ in range(MIN_CYCLES):
        own.observe_cycle(1, 1000, 1.0)
    assert choose(own, [growth([0.5])]) == []
    for _ in range(100):
        own.observe_cycle(1, 1, 4.0)
    assert tokens(choose(own, [growth([0.5])])) == [[3]]


def test_rows_are_verified_if_they_beat_the_rate_of_recent_cycles() -> None:
    times = PassTimes(2)
    for rows, seconds in ((2, 1.0), (4, 2.0), (6, 3.0), (8, 4.0)):
        times.observe(rows, seconds, 0.0)
    own = policy(times, 0.1)
    ranked = [[1.0, 0.9, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05]]
    for rate, rows in ((0.1, 8), (0.4, 6), (0.8, 4), (1.2, 2)):
        own.observe_cycle(1, 0, 1e9)  # older cycles no longer count
        for _ in range(300):
            own.observe_cycle(1, round(rate * 1000), 1000.0)
        assert allot(own, ranked, max_rows=64) == [rows]


def test_a_step_runs_the_nodes_that_pay_and_puts_the_others_back() -> None:
    own = policy(passes(2.0), 0.5)  # each row takes half a second
    tree = growth([0.6, 0.2, 0.1])
    assert tokens(choose(own, [tree])) == [[3]]
    assert [node.token for node in tree.pop(9, 9)] == [4, 5]


@pytest.mark.parametrize("seed", range(30))
def test_a_step_runs_the_best_number_of_nodes(seed: int) -> None:
    rng = random.Random(seed)
    own = policy(passes(rng.choice([0.3, 1.0, 5.0])), rng.choice([0.01, 0.1, 0.4]))
    own.draft.observe(8, rng.choice([0.8, 1.5]))
    trees = [
        growth([rng.uniform(0.01, 0.3) for _ in range(rng.randrange(1, 5))])
        for _ in range(rng.randrange(1, 4))
    ]
    elapsed = rng.choice([0.0, 0.7])
    expected = sum(tree.expected for tree in trees)
    nodes = [(tree, node) for tree in trees for node in tree.root.children.values()]
    nodes.sort(key=lambda pair: -pair[0].probability(pair[1]))
    rates = [expected / (elapsed + (own.passes.expect(TILE) or 0.0))]
    for count in range(1, len(nodes) + 1):
        mass = sum(tree.probability(node) for tree, node in nodes[:count])
        seconds = elapsed + (own.passes.expect(TILE) or 0.0) + (own.draft.expect(count) or 0.0)
        rates.append((expected + mass) / seconds)
    want = {id(node) for _, node in nodes[: rates.index(max(rates))]}
    step = choose(own, trees, width=99, elapsed=elapsed)
    assert {id(node) for _, chosen in step for node in chosen} == want
    left = {id(node) for tree in trees for node in tree.pop(99, 9)}
    assert left == {id(node) for _, node in nodes} - want


def test_a_step_must_pay_for_all_sequences_of_the_pass() -> None:
    """A step that pays for one sequence does not pay beside others that gain nothing by it."""
    own = policy(passes(2.0), 0.6)
    assert tokens(choose(own, [growth([0.5])])) == [[3]]
    others = [growth([], budget=20) for _ in range(3)]
    assert choose(own, [growth([0.5]), *others]) == []


def test_nodes_of_equal_probability_are_run_together() -> None:
    own = policy(passes(1.0), 0.001)
    assert tokens(choose(own, [growth([0.2] * 3), growth([0.2] * 2)])) == [[3, 4, 5], [3, 4]]


@pytest.mark.parametrize(
    "own",
    [
        policy(passes(), 1.0),
        policy(passes(0.001), None),
        policy(passes(0.001), 9.0, tuned=False),
    ],
    ids=["pass unknown", "step unknown", "not tuned"],
)
def test_without_times_or_tuning_all_candidates_are_run(own: TreePolicy) -> None:
    trees = [growth([0.1, 0.01]), growth([0.2])]
    assert tokens(choose(own, trees)) == [[3, 4], [3]]


def test_a_step_keeps_the_width_and_depth_of_each_tree() -> None:
    own = policy(passes(1.0), 1.0, tuned=False)
    assert tokens(choose(own, [growth([0.3, 0.2, 0.1])], width=2)) == [[3, 4]]
    assert choose(own, [growth([0.3])], width=2, depth=1) == [], "it is as deep as it may be"
    assert choose(own, [], width=2) == []


def test_a_draft_that_does_not_pay_is_tried_again_at_intervals() -> None:
    own = policy(passes(0.001), 9.0)
    tried = [bool(choose(own, [growth([0.5])])) for _ in range(3 * EXPLORE_EVERY)]
    assert [i + 1 for i, step in enumerate(tried) if step] == [n * EXPLORE_EVERY for n in (1, 2, 3)]


def test_a_cycle_with_a_draft_step_restarts_the_interval() -> None:
    own = policy(passes(0.001), 9.0)
    for _ in range(EXPLORE_EVERY - 1):
        assert choose(own, [growth([0.5])]) == []
    own.draft.observe(1, 9.0)
    paying = TreePolicy(own.calibration, passes(1e9), is_tuned=True)
    own.passes, slow = paying.passes, own.passes
    assert choose(own, [growth([0.5])])
    own.passes = slow
    for _ in range(EXPLORE_EVERY - 1):
        assert choose(own, [growth([0.5])]) == []
    assert choose(own, [growth([0.5])])


@pytest.mark.parametrize(
    ("seconds", "wanted"), [(0.05, []), (0.1, []), (0.15, [[3]]), (0.25, [[3, 4]]), (9.0, [[3, 4]])]
)
def test_a_step_ahead_runs_the_nodes_that_fit_the_time(
    seconds: float, wanted: list[list[int]]
) -> None:
    own = policy(passes(0.001), 0.1)
    tree = growth([0.5, 0.3])
    assert tokens(own.choose_step_ahead([(tree, tree.pop(9, 9))], seconds)) == wanted
    left = [node.token for node in tree.pop(9, 9)]
    assert left == [3, 4][sum(map(len, wanted)) :]


def test_no_step_is_run_ahead_before_one_was_timed() -> None:
    own = policy(passes(1.0), None)
    tree = growth([0.5])
    assert own.choose_step_ahead([(tree, tree.pop(9, 9))], 1e9) == []
    assert own.choose_step_ahead([], 1e9) == []


def probabilities_of(tree: Growth) -> list[float]:
    ranked: list[Node] = tree.ranked(999, 9)
    return [tree.probability(node) for node in ranked]


@pytest.mark.parametrize("seed", range(40))
def test_rows_are_allotted_in_the_best_way(seed: int) -> None:
    """No other way to allot the rows has a higher rate; ways of equal rate may differ."""
    rng = random.Random(seed)
    times = PassTimes(4)
    for rows in (4, 8, 16):
        times.observe(rows, rows * rng.choice([0.05, 0.1, 0.3]), rng.choice([0.0, 1.0]))
    own = policy(times, 0.1, tuned=rng.random() < 0.8)
    ranked = [
        probabilities_of(growth([rng.uniform(0.01, 0.4) for _ in range(rng.randrange(6))]))
        for _ in range(rng.randrange(1, 4))
    ]
    elapsed, fixed = rng.choice([0.0, 2.0]), rng.choice([0, 3])
    most = fixed + len(ranked) + rng.randrange(12)
    counts = allot(own, ranked, elapsed=elapsed, fixed_rows=fixed, max_rows=most)
    assert all(1 <= n <= len(r) for n, r in zip(counts, ranked, strict=True))
    assert sum(counts) + fixed <= most

    def expected(counts: Sequence[int]) -> float:
        return sum(sum(r[:n]) for n, r in zip(counts, ranked, strict=True))

    def rate(counts: Sequence[int]) -> float:
        return expected(counts) / (elapsed + (times.expect(fixed + sum(counts)) or 0.0))

    ways = product(*(range(1, len(r) + 1) for r in ranked))
    allowed = [way for way in ways if sum(way) + fixed <= most]
    if own.is_tuned:
        assert rate(counts) == pytest.approx(max(map(rate, allowed)))
    else:
        assert expected(counts) == pytest.approx(max(map(expected, allowed)))


def test_rows_that_fill_a_tile_are_always_verified() -> None:
    own = policy(passes(1.0, more=9.0), 0.1)
    assert allot(own, [[1.0, *[1e-6] * 200]], fixed_rows=3) == [TILE - 3]


def test_rows_that_fit_the_time_of_the_link_are_verified() -> None:
    times = passes(1.0, more=2.0)
    for _ in range(60):
        times.observe(TILE, 1.0, 3.0)
    own = policy(times, 0.1)
    assert allot(own, [[1.0, *[1e-6] * 200]]) == [3 * TILE]


def test_without_times_or_tuning_whole_trees_are_verified() -> None:
    ranked = [[1.0, *[1e-6] * 200], [1.0, 0.5]]
    assert allot(policy(passes(1.0, more=9.0), 0.1, tuned=False), ranked) == [201, 2]
    assert allot(policy(passes(), 0.1), ranked) == [201, 2]
    assert allot(policy(passes(), 0.1), ranked, max_rows=100) == [98, 2], (
        "the pass has no more rows"
    )
    assert allot(policy(passes(), 0.1), [], max_rows=100) == []


def test_a_pass_takes_the_longer_of_link_and_compute() -> None:
    times = PassTimes(TILE)
    assert times.expect(1) is None
    times.observe(10, 1.0, 3.0)
    assert times.expect(1) == times.expect(TILE) == 3.0
    assert times.expect(10 * TILE) == pytest.approx(10.0)
    assert [times.padded(rows) for rows in (0, 1, TILE, TILE + 1)] == [0, TILE, TILE, 2 * TILE]


def test_a_step_while_the_ring_fills_is_run_even_for_a_small_gain() -> None:
    times = PassTimes(TILE, ahead=0.25)
    times.observe(TILE, 1.0, 4.0)
    own = policy(times, 0.5)
    assert tokens(choose(own, [growth([0.01])])) == [[3]]
    assert choose(own, [growth([0.01])], elapsed=1.0) == []
