"""What pays: decisions against the rate of tokens over time, written down naively."""

import math
import random
from collections.abc import Sequence as Seq
from itertools import product

import pytest

from engine.drafting.calibration import Calibration
from engine.drafting.growth import Growth, Node
from engine.drafting.policy import EXPLORE, LEARNED, Step, TreePolicy
from engine.timing import PassTimes
from tests.engine.sequence_makers import make_sequence

TILE = 64


def passes(seconds: float | None = None, *, more: float | None = None) -> PassTimes:
    """A pass of one tile takes so long, one of two tiles `more`."""
    times = PassTimes(TILE)
    if seconds is not None:
        times.observe(TILE, seconds, 0.0)
    if more is not None:
        times.observe(2 * TILE, more, 0.0)
    return times


def policy(times: PassTimes, step: float | None, *, tuned: bool = True) -> TreePolicy:
    """`step`: seconds of a draft step of one row; two take the double."""
    made = TreePolicy(Calibration(), times, tuned=tuned)
    made.calibration.mass = 1.0
    if step is not None:
        made.draft.observe(1, step)
        made.draft.observe(2, 2 * step)
    return made


def growth(chances: Seq[float], budget: int = 20) -> Growth:
    """A root that was run, and children of these probabilities."""
    made = Growth(make_sequence([5, 7], ignore_eos=True), budget)
    (root,) = made.pop(1, 9)
    made.run(root, 0)
    for token, chance in enumerate(chances, 3):
        made.add(root, token, math.log(chance), math.log(chance), "model")
    return made


def tokens(step: Step) -> list[list[int]]:
    return [[node.token for node in nodes] for _, nodes in step]


@pytest.mark.parametrize("elapsed", [0.0, 0.5])
@pytest.mark.parametrize("seconds", [0.1, 0.3, 0.5, 0.7, 0.9, 1.5])
def test_a_step_is_run_if_and_only_if_the_rate_rises(seconds: float, elapsed: float) -> None:
    """The tree expects 1.5 tokens; a step below the child adds .5 in so many seconds."""
    own = policy(passes(2.0), seconds)
    step = own.choose_step([growth([0.5])], 9, 9, elapsed, 0)
    pays = 2.0 / (elapsed + 2.0 + seconds) > 1.5 / (elapsed + 2.0)
    assert tokens(step) == ([[3]] if pays else [])


def test_a_step_that_leaves_the_rate_as_it_is_is_not_run() -> None:
    own = policy(passes(3.0), 1.0)  # 1.5 tokens in 3 s, or 2 in 4 s
    assert own.choose_step([growth([0.5])], 9, 9, 0.0, 0) == []


@pytest.mark.parametrize("elapsed", [0.0, 0.5, 9.0])
@pytest.mark.parametrize("seconds", [0.1, 0.9, 1.1, 5.0])
def test_a_step_is_run_if_it_gains_more_than_cycles_of_late_emit_in_its_time(
    seconds: float, elapsed: float
) -> None:
    """Half a token a second: one more half token may take a second, in a good cycle or a bad."""
    own = policy(passes(2.0), seconds)
    for _ in range(LEARNED):
        own.observe(1, 2, 4.0)
    step = own.choose_step([growth([0.5])], 9, 9, elapsed, 0)
    assert tokens(step) == ([[3]] if seconds < 1 else [])


def test_the_rate_is_that_of_as_many_sequences_and_known_after_some_cycles() -> None:
    own = policy(passes(2.0), 0.6)  # pays by the cycle's own rate: 2 / 2.6 is more than 1.5 / 2
    for _ in range(LEARNED):
        own.observe(2, 1000, 1.0)
    for _ in range(LEARNED - 1):
        assert tokens(own.choose_step([growth([0.5])], 9, 9, 0.0, 0)) == [[3]]
        own.observe(1, 1000, 1.0)
    assert tokens(own.choose_step([growth([0.5])], 9, 9, 0.0, 0)) == [[3]]
    own.observe(1, 1000, 1.0)
    assert own.choose_step([growth([0.5])], 9, 9, 0.0, 0) == []


def test_sequences_that_are_not_drafted_count_among_those_of_the_cycle() -> None:
    own = policy(passes(2.0), 0.6)
    for _ in range(LEARNED):
        own.observe(2, 1000, 1.0)
    assert tokens(own.choose_step([growth([0.5])], 9, 9, 0.0, 0)) == [[3]]
    assert own.choose_step([growth([0.5])], 9, 9, 0.0, 0, undrafted=1) == []


def test_the_rate_follows_the_cycles() -> None:
    own = policy(passes(2.0), 0.6)
    for _ in range(LEARNED):
        own.observe(1, 1000, 1.0)
    assert own.choose_step([growth([0.5])], 9, 9, 0.0, 0) == []
    for _ in range(100):
        own.observe(1, 1, 4.0)
    assert tokens(own.choose_step([growth([0.5])], 9, 9, 0.0, 0)) == [[3]]


def test_rows_ride_where_they_gain_more_than_cycles_of_late_emit_in_their_time() -> None:
    times = PassTimes(2)
    for rows, seconds in ((2, 1.0), (4, 2.0), (6, 3.0), (8, 4.0)):
        times.observe(rows, seconds, 0.0)
    own = policy(times, 0.1)
    ranked = [[1.0, 0.9, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05]]
    for rate, rows in ((0.1, 8), (0.4, 6), (0.8, 4), (1.2, 2)):
        own.observe(1, 0, 1e9)  # what was is forgotten
        for _ in range(300):
            own.observe(1, round(rate * 1000), 1000.0)
        assert own.allot(ranked, 0.0, 0, 64) == [rows]


def test_a_step_runs_the_rows_that_pay_and_gives_the_others_back() -> None:
    own = policy(passes(2.0), 0.5)  # each row takes half a second
    tree = growth([0.6, 0.2, 0.1])
    assert tokens(own.choose_step([tree], 9, 9, 0.0, 0)) == [[3]]
    assert [node.token for node in tree.pop(9, 9)] == [4, 5]


@pytest.mark.parametrize("seed", range(30))
def test_how_many_rows_a_step_runs_is_the_best_of_all_numbers(seed: int) -> None:
    chance = random.Random(seed)
    own = policy(passes(chance.choice([0.3, 1.0, 5.0])), chance.choice([0.01, 0.1, 0.4]))
    own.draft.observe(8, chance.choice([0.8, 1.5]))
    trees = [
        growth([chance.uniform(0.01, 0.3) for _ in range(chance.randrange(1, 5))])
        for _ in range(chance.randrange(1, 4))
    ]
    elapsed = chance.choice([0.0, 0.7])
    expected = sum(tree.expected for tree in trees)
    nodes = [(tree, node) for tree in trees for node in tree.root.children.values()]
    nodes.sort(key=lambda pair: -pair[0].probability(pair[1]))
    rates = [expected / (elapsed + (own.passes.expect(TILE) or 0.0))]
    for count in range(1, len(nodes) + 1):
        mass = sum(tree.probability(node) for tree, node in nodes[:count])
        seconds = elapsed + (own.passes.expect(TILE) or 0.0) + (own.draft.expect(count) or 0.0)
        rates.append((expected + mass) / seconds)
    want = {id(node) for _, node in nodes[: rates.index(max(rates))]}
    step = own.choose_step(trees, 99, 9, elapsed, 0)
    assert {id(node) for _, chosen in step for node in chosen} == want
    left = {id(node) for tree in trees for node in tree.pop(99, 9)}
    assert left == {id(node) for _, node in nodes} - want


def test_what_one_tree_drafts_pays_for_all_that_share_the_pass() -> None:
    """A step takes as long, but beside others that gain nothing by it the rate falls."""
    own = policy(passes(2.0), 0.6)
    assert tokens(own.choose_step([growth([0.5])], 9, 9, 0.0, 0)) == [[3]]
    others = [growth([], budget=20) for _ in range(3)]
    assert own.choose_step([growth([0.5]), *others], 9, 9, 0.0, 0) == []


def test_equal_chances_are_run_alike() -> None:
    own = policy(passes(1.0), 0.001)
    assert tokens(own.choose_step([growth([0.2] * 3), growth([0.2] * 2)], 9, 9, 0.0, 0)) == [
        [3, 4, 5],
        [3, 4],
    ]


@pytest.mark.parametrize(
    "own",
    [
        policy(passes(), 1.0),
        policy(passes(0.001), None),
        policy(passes(0.001), 9.0, tuned=False),
    ],
    ids=["pass unknown", "step unknown", "not tuned"],
)
def test_without_times_or_tuning_all_that_is_offered_is_run(own: TreePolicy) -> None:
    trees = [growth([0.1, 0.01]), growth([0.2])]
    assert tokens(own.choose_step(trees, 9, 9, 0.0, 0)) == [[3, 4], [3]]


def test_no_step_is_wider_than_width_in_a_tree_nor_run_for_nobody() -> None:
    own = policy(passes(1.0), 1.0, tuned=False)
    assert tokens(own.choose_step([growth([0.3, 0.2, 0.1])], 2, 9, 0.0, 0)) == [[3, 4]]
    assert own.choose_step([growth([0.3])], 2, 1, 0.0, 0) == [], "it is as deep as it may be"
    assert own.choose_step([], 2, 9, 0.0, 0) == []


def test_a_draft_that_does_not_pay_is_tried_again_now_and_then() -> None:
    own = policy(passes(0.001), 9.0)
    tried = [bool(own.choose_step([growth([0.5])], 9, 9, 0.0, 0)) for _ in range(3 * EXPLORE)]
    assert [i + 1 for i, step in enumerate(tried) if step] == [EXPLORE, 2 * EXPLORE, 3 * EXPLORE]


def test_a_cycle_that_drafts_starts_the_count_anew() -> None:
    own = policy(passes(0.001), 9.0)
    for _ in range(EXPLORE - 1):
        assert own.choose_step([growth([0.5])], 9, 9, 0.0, 0) == []
    own.draft.observe(1, 9.0)
    paying = TreePolicy(own.calibration, passes(1e9), tuned=True)
    own.passes, slow = paying.passes, own.passes
    assert own.choose_step([growth([0.5])], 9, 9, 0.0, 0)
    own.passes = slow
    for _ in range(EXPLORE - 1):
        assert own.choose_step([growth([0.5])], 9, 9, 0.0, 0) == []
    assert own.choose_step([growth([0.5])], 9, 9, 0.0, 0)


@pytest.mark.parametrize(
    ("seconds", "wanted"), [(0.05, []), (0.1, []), (0.15, [[3]]), (0.25, [[3, 4]]), (9.0, [[3, 4]])]
)
def test_ahead_runs_what_fits_into_the_time(seconds: float, wanted: list[list[int]]) -> None:
    own = policy(passes(0.001), 0.1)
    tree = growth([0.5, 0.3])
    assert tokens(own.choose_ahead([(tree, tree.pop(9, 9))], seconds)) == wanted
    left = [node.token for node in tree.pop(9, 9)]
    assert left == [3, 4][sum(map(len, wanted)) :]


def test_ahead_runs_nothing_before_a_step_was_timed() -> None:
    own = policy(passes(1.0), None)
    tree = growth([0.5])
    assert own.choose_ahead([(tree, tree.pop(9, 9))], 1e9) == []
    assert own.choose_ahead([], 1e9) == []


def chances_of(tree: Growth) -> list[float]:
    ranked: list[Node] = tree.ranked(999, 9)
    return [tree.probability(node) for node in ranked]


@pytest.mark.parametrize("seed", range(40))
def test_rows_are_allotted_as_the_best_of_all_ways_to_do_it(seed: int) -> None:
    """Among all numbers of rows whose tiles are full; ties aside, rates are what counts."""
    chance = random.Random(seed)
    times = PassTimes(4)
    for rows in (4, 8, 16):
        times.observe(rows, rows * chance.choice([0.05, 0.1, 0.3]), chance.choice([0.0, 1.0]))
    own = policy(times, 0.1, tuned=chance.random() < 0.8)
    ranked = [
        chances_of(growth([chance.uniform(0.01, 0.4) for _ in range(chance.randrange(6))]))
        for _ in range(chance.randrange(1, 4))
    ]
    elapsed, fixed = chance.choice([0.0, 2.0]), chance.choice([0, 3])
    most = fixed + len(ranked) + chance.randrange(12)
    counts = own.allot(ranked, elapsed, fixed, most)
    assert all(1 <= n <= len(r) for n, r in zip(counts, ranked, strict=True))
    assert sum(counts) + fixed <= most

    def expected(counts: Seq[int]) -> float:
        return sum(sum(r[:n]) for n, r in zip(counts, ranked, strict=True))

    def rate(counts: Seq[int]) -> float:
        return expected(counts) / (elapsed + (times.expect(fixed + sum(counts)) or 0.0))

    ways = product(*(range(1, len(r) + 1) for r in ranked))
    allowed = [way for way in ways if sum(way) + fixed <= most]
    if own.tuned:
        assert rate(counts) == pytest.approx(max(map(rate, allowed)))
    else:
        assert expected(counts) == pytest.approx(max(map(expected, allowed)))


def test_rows_that_fill_a_tile_are_free() -> None:
    own = policy(passes(1.0, more=9.0), 0.1)
    assert own.allot([[1.0, *[1e-6] * 200]], 0.0, 3, 999) == [TILE - 3]


def test_rows_are_checked_while_weights_travel_anyway() -> None:
    times = passes(1.0, more=2.0)
    for _ in range(60):
        times.observe(TILE, 1.0, 3.0)
    own = policy(times, 0.1)
    assert own.allot([[1.0, *[1e-6] * 200]], 0.0, 0, 999) == [3 * TILE]


def test_untuned_or_untimed_trees_are_checked_whole() -> None:
    ranked = [[1.0, *[1e-6] * 200], [1.0, 0.5]]
    assert policy(passes(1.0, more=9.0), 0.1, tuned=False).allot(ranked, 0.0, 0, 999) == [201, 2]
    assert policy(passes(), 0.1).allot(ranked, 0.0, 0, 999) == [201, 2]
    assert policy(passes(), 0.1).allot(ranked, 0.0, 0, 100) == [98, 2], "the pass has no more rows"
    assert policy(passes(), 0.1).allot([], 0.0, 0, 100) == []


def test_a_pass_takes_its_travel_or_its_compute_whichever_is_longer() -> None:
    times = PassTimes(TILE)
    assert times.expect(1) is None
    times.observe(10, 1.0, 3.0)
    assert times.expect(1) == times.expect(TILE) == 3.0
    assert times.expect(10 * TILE) == pytest.approx(10.0)
    assert [times.padded(rows) for rows in (0, 1, TILE, TILE + 1)] == [0, TILE, TILE, 2 * TILE]


def test_a_step_that_hides_behind_the_ring_is_run_however_little_it_brings() -> None:
    times = PassTimes(TILE, ahead=0.25)
    times.observe(TILE, 1.0, 4.0)
    own = policy(times, 0.5)
    assert tokens(own.choose_step([growth([0.01])], 9, 9, 0.0, 0)) == [[3]]
    assert own.choose_step([growth([0.01])], 9, 9, 1.0, 0) == []
