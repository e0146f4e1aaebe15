"""Drafts over many passes: drafting ahead, several drafts at once, choice by name, counts."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from engine.drafting.calibration import Calibration
from engine.drafting.drafter import Drafting
from engine.drafting.growth import Growth, Node
from engine.drafting.policy import TreePolicy
from engine.drafting.tree import Bounds, DraftTree
from engine.messages import Generate, PassStats, Speculation, Tokens
from engine.runtime.engine import Engine
from engine.sampling.large_vocabularies.blocks import Matrix
from engine.sequences.sequence import TokenSequence
from engine.spec import DraftSpec
from engine.timing import PassTimes, StepTimes
from tests.engine.books import check_books, check_idle
from tests.engine.models import (
    PLAIN,
    SMALL,
    SUBSPEC,
    alone,
    checkpoint,
    draft_ahead,
    draft_model,
    exact,
    hooks,
    load,
    prompt,
    request,
    run,
)
from tests.engine.sequence_makers import make_sequence


class Fixed:
    """A look-up that always proposes the same chain."""

    def __init__(self, name: str, *tokens: int) -> None:
        self.name = name
        self.tokens = tokens
        self.released: list[TokenSequence] = []

    def propose(self, sequence: TokenSequence, depth: int, rows: int) -> DraftTree | None:
        tokens = [sequence.tokens[-1], *self.tokens][: min(depth + 1, rows)]
        scores = [-0.5 * i for i in range(len(tokens))]
        return DraftTree.chain(tokens, scores, self.name) if len(tokens) > 1 else None

    def observe(self, tokens: Sequence[int], logits: Matrix) -> None:
        """Do nothing: this look-up learns nothing."""

    def release(self, sequence: TokenSequence) -> None:
        self.released.append(sequence)


def looking_up(*lookups: Fixed, tuned: bool = False, **bounds: int) -> Drafting:
    """Return the drafting of an engine that has only these look-ups."""
    own = {"depth": 8, "width": 1, "branch": 1, "budget": 16, **bounds}
    policy = TreePolicy(Calibration(), PassTimes(64), is_tuned=tuned)
    return Drafting(None, lookups, Bounds(**own), policy, can_draft_ahead=True)


def asking(method: str | None = None, max_rows: int | None = None, **params: Any) -> TokenSequence:
    """Return a sequence whose request asks for a drafting method and a bound of rows."""
    speculation = Speculation(method, max_rows)
    return make_sequence([5, 6, 7], ignore_eos=True, speculation=speculation, **params)


def proposed(drafting: Drafting, sequence: TokenSequence, room: int = 99) -> DraftTree:
    (tree,) = drafting.propose([sequence], [room], 0, 999)
    return tree


def emit(drafting: Drafting, sequence: TokenSequence, tree: DraftTree, *tokens: int) -> None:
    """Commit a pass that emitted these tokens: accepted rows of the tree and a bonus token."""
    rows = [0]
    for token in tokens[:-1]:
        rows.append(tree.children(rows[-1])[token])
    sequence.tokens += tokens
    drafting.commit(sequence, tree, rows)


@pytest.mark.parametrize(
    ("method", "sources"),
    [
        (None, {"a", "b"}),
        ("a", {"a"}),
        ("b", {"b"}),
        ("none", set()),
        ("no such method", set()),
    ],
)
def test_a_request_gets_the_drafts_that_it_names(method: str | None, sources: set[str]) -> None:
    drafting = looking_up(Fixed("a", 10, 11), Fixed("b", 20))
    tree = proposed(drafting, asking(method))
    assert set(tree.sources[1:]) == sources
    assert drafting.methods == ("a", "b")


@pytest.mark.parametrize("most", [None, 1, 2, 4])
def test_a_request_bounds_the_rows_of_its_trees(most: int | None) -> None:
    drafting = looking_up(Fixed("a", 10, 11, 12, 13, 14))
    sequence = asking(max_rows=most)
    assert len(proposed(drafting, sequence)) == (most or 6)
    assert len(proposed(drafting, asking(), room=3)) == 3, "the pass has no more room"


def test_a_request_cannot_raise_the_bounds_of_the_model_file() -> None:
    drafting = looking_up(Fixed("a", 10, 11, 12, 13), budget=3)
    assert len(proposed(drafting, asking(max_rows=500))) == 3


def test_the_rest_of_an_accepted_tree_is_the_start_of_the_next() -> None:
    drafting, sequence = looking_up(Fixed("a", 10, 11, 12, 13)), asking()
    emit(drafting, sequence, proposed(drafting, sequence, room=2), 10, 11)
    drafting._lookups = []
    tree = proposed(drafting, sequence)
    assert tree.tokens == (11, 12, 13) and tree.scores[0] == 0.0
    assert tree.sources == ("", "a", "a")


def test_a_tree_that_the_answer_left_is_dropped() -> None:
    drafting, sequence = looking_up(Fixed("a", 10, 11, 12, 13)), asking()
    emit(drafting, sequence, proposed(drafting, sequence), 10, 99)
    assert not drafting._growths
    drafting._lookups = []
    assert proposed(drafting, sequence).tokens == (99,)


def test_a_released_sequence_is_forgotten_by_all_drafts() -> None:
    own = Fixed("a", 10)
    drafting, sequence = looking_up(own), asking()
    proposed(drafting, sequence)
    drafting.release(sequence)
    assert not drafting._growths and own.released == [sequence]
    drafting.reclaim()
    assert drafting.draft_ahead(1e9) is False, (
        "no sequence is left, and look-ups do not draft ahead"
    )


def test_rows_are_counted_by_the_draft_that_proposed_them() -> None:
    drafting, sequence = looking_up(Fixed("a", 10, 11), Fixed("b", 10, 20, 21)), asking()
    tree = proposed(drafting, sequence)
    emit(drafting, sequence, tree, 10, 20, 99)
    assert drafting.stats.drafted == {"a": 2, "b": 2}, "a shared row counts for the first"
    assert drafting.stats.accepted == {"a": 1, "b": 1}


def test_each_draft_is_calibrated_by_its_own_rows() -> None:
    drafting = looking_up(Fixed("a", 10, 11), Fixed("b", 10, 20))
    for _ in range(200):
        sequence = asking()
        emit(drafting, sequence, proposed(drafting, sequence), 10, 20, 99)
    rates = drafting.policy.calibration.hit_rates()
    assert rates == pytest.approx({"a": 0.5, "b": 1.0})
    tree = proposed(drafting, asking())
    assert tree.tokens == (7, 10, 20, 11), "a draft with a higher hit rate gets better scores"


def test_rows_that_were_not_reached_are_not_counted() -> None:
    drafting, sequence = looking_up(Fixed("a", 10, 11, 12)), asking()
    emit(drafting, sequence, proposed(drafting, sequence), 99)
    assert sum(b.trials for b in drafting.policy.calibration._bins["a"]) == 1


@pytest.mark.parametrize("room", [1, 99])
def test_a_root_alone_is_counted_if_a_draft_was_possible(room: int) -> None:
    """Two tiles take far longer than one, and prompt rows and the root fill one tile."""
    drafting = looking_up(Fixed("a", 10), tuned=True)
    for rows, seconds in ((64, 0.001), (128, 9.0)):
        drafting.policy.passes.observe(rows, seconds, 0.0)
    (tree,) = drafting.propose([asking()], [room], 63, 999)
    assert len(tree) == 1 and drafting.stats.undrafted == int(room > 1)
    drafting.propose([asking(max_tokens=1)], [room], 63, 999)
    assert drafting.stats.undrafted == int(room > 1), "no draft is possible for a last token"


class Watched:
    """An engine with a request whose draft steps and trees are recorded.

    It runs up to `ahead` draft steps ahead whenever it waits for a unit.
    """

    def __init__(self, draft: DraftSpec, ahead: int, asked: Generate) -> None:
        self.engine = load(checkpoint("llama"), draft)
        self.steps: list[list[Node]] = []  # the nodes of each step before a pass
        self.trees: list[tuple[DraftTree, int]] = []  # each with the steps run to propose it
        self.roots: list[bool] = []  # for each tree whether its root was run before
        self._watch()
        if ahead:
            draft_ahead(self.engine, ahead)
        self.engine.add(asked)

    def _watch(self) -> None:
        drafting: Any = self.engine._drafting
        model: Any = draft_model(self.engine)
        step, propose = model.step, drafting.propose

        def stepping(chosen: Sequence[tuple[Growth, list[Node]]], calibration: Calibration) -> int:
            self.steps.append([node for _, nodes in chosen for node in nodes])
            return int(step(chosen, calibration))

        def proposing(
            sequences: Sequence[TokenSequence], *rest: Any, **others: Any
        ) -> list[DraftTree]:
            before = len(self.steps)
            growths = [drafting._growths.get(sequence) for sequence in sequences]
            self.roots += [g is not None and g.root.slot is not None for g in growths]
            trees: list[DraftTree] = propose(sequences, *rest, **others)
            self.trees += [(tree, len(self.steps) - before) for tree in trees]
            return trees

        model.step, drafting.propose = stepping, proposing

    def finish(self) -> tuple[list[int], list[PassStats]]:
        """Serve the request, and return its tokens and the statistics of each pass."""
        tokens: list[int] = []
        stats: list[PassStats] = []
        while self.engine.has_work():
            for event in self.engine.step():
                assert isinstance(event, Tokens)
                tokens += event.ids
            check_books(self.engine)
            assert self.engine.last_pass is not None
            stats.append(self.engine.last_pass)
        check_idle(self.engine)
        return tokens, stats


def specexec(seed: int = 0, **changes: Any) -> DraftSpec:
    source = checkpoint("llama", seed=seed)
    return DraftSpec("specexec", source=str(source), **{**SMALL, **changes})


def never_pays(watched: Watched) -> None:
    """Set and freeze times by which no draft step is worth its time."""
    policy: Any = watched.engine._drafting.policy
    policy.draft = StepTimes()
    policy.draft.observe(1, 9e9)
    policy.passes.observe(64, 1e-9, 0.0)
    policy.draft.observe = policy.passes.observe = lambda *_: None
    policy.choose_step_ahead = lambda candidates, seconds: candidates


CHAIN: dict[str, Any] = {"depth": 3, "width": 1, "branch": 1, "budget": 4}


def test_a_subtree_drafted_ahead_is_the_next_tree_without_a_draft_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The draft is the target itself, so all rows are accepted and bonus tokens are drafted."""
    monkeypatch.setattr("engine.drafting.drafter.MIN_AHEAD_SCORE", -math.inf)
    asked = request("r", prompt(9), max_tokens=30)
    watched = Watched(specexec(**CHAIN, tuned=True), ahead=3, asked=asked)
    watched.engine._drafting._lookups = []
    never_pays(watched)
    tokens, stats = watched.finish()
    assert tokens == alone(load(checkpoint("llama"), PLAIN), [asked])[("r", 0)].ids
    (first, cost), *others = watched.trees
    assert len(first) == 1 and cost == 0
    inside = [
        (len(tree), cost, known)
        for (tree, cost), known in zip(others, watched.roots[1:], strict=True)
    ]
    assert all(own == (4, 0, True) for own in inside[:-1]), "whole trees without a step"
    assert stats[-2].accepted == 4
    ran = [id(node) for nodes in watched.steps for node in nodes]
    assert len(ran) == len(set(ran)), "no node is run twice"


def test_drafting_ahead_saves_steps_before_the_pass() -> None:
    asked = request("r", prompt(9), max_tokens=40)
    costs = {}
    for ahead in (0, 3):
        watched = Watched(specexec(**CHAIN), ahead, asked)
        watched.finish()
        costs[ahead] = [cost for _, cost in watched.trees[1:-1]]
    assert set(costs[0]) == {3}
    assert max(costs[3]) < 3


def test_with_ahead_false_nothing_is_drafted_in_a_pass() -> None:
    asked = request("r", prompt(9), max_tokens=20)
    watched = Watched(specexec(ahead=False), ahead=3, asked=asked)
    _, stats = watched.finish()
    assert sum(cost for _, cost in watched.trees) == len(watched.steps) > 0
    assert all(own.ahead_ms == 0 for own in stats)


def test_a_miss_drops_what_was_drafted_ahead() -> None:
    """The draft is another model, so hardly any bonus token was drafted."""
    asked = request("r", prompt(9), max_tokens=20)
    watched = Watched(specexec(seed=9, **CHAIN), ahead=3, asked=asked)
    watched.engine._drafting._lookups = []
    watched.finish()
    assert watched.roots.count(True) < 3 < len(watched.roots)
    missed = [
        cost for (_, cost), known in zip(watched.trees, watched.roots, strict=True) if not known
    ]
    assert set(missed[:-3]) == {3}, "the next tree is drafted from its root"


@pytest.mark.parametrize(
    ("speculation", "sources", "drafts"),
    [
        (Speculation(), {"specexec"}, True),
        (Speculation("specexec"), {"specexec"}, True),
        (Speculation("ngram"), {"ngram"}, False),
        (Speculation("none"), set(), False),
        (Speculation(max_rows=1), set(), False),
        (Speculation(max_rows=3), {"specexec"}, True),
    ],
    ids=str,
)
def test_a_request_chooses_its_draft_and_its_rows(
    speculation: Speculation, sources: set[str], drafts: bool
) -> None:
    asked = request("r", [3, 4, 5, 6] * 6, max_tokens=20)
    want = alone(load(checkpoint("llama"), PLAIN), [asked])
    watched = Watched(specexec(), 2, replace(asked, speculation=speculation))
    tokens, stats = watched.finish()
    assert tokens == want[("r", 0)].ids
    assert bool(watched.steps) is drafts
    assert all(len(tree) <= (speculation.max_rows or 99) for tree, _ in watched.trees)
    found = {source for own in stats for source, _ in own.drafted_by}
    assert found >= sources and (drafts or found <= sources)


def test_a_pass_reports_drafted_and_accepted_rows_by_source() -> None:
    asked = request("r", [3, 4, 5, 6] * 6, max_tokens=20)
    watched = Watched(SUBSPEC, 2, asked)
    tokens, stats = watched.finish()
    rows = [sum(count for _, count in own.drafted_by) for own in stats]
    assert rows == [0, *(len(tree) - 1 for tree, _ in watched.trees)]
    accepted = [sum(count for _, count in own.accepted_by) for own in stats]
    assert [own.accepted for own in stats[:-1]] == [count + 1 for count in accepted[:-1]]
    assert len(tokens) == sum(own.accepted for own in stats)
    assert any(own.ahead_ms > 0 for own in stats)
    for own in stats:
        given, taken = dict(own.drafted_by), dict(own.accepted_by)
        assert all(taken[source] <= given[source] for source in taken)


def test_a_prediction_joins_a_models_tree() -> None:
    asked = request("r", prompt(9), max_tokens=30, temperature=1.0, seed=5)
    want = alone(load(checkpoint("llama"), PLAIN), [asked])[("r", 0)].ids
    watched = Watched(specexec(seed=9), 2, replace(asked, prediction=tuple(want)))
    tokens, stats = watched.finish()
    assert tokens == want
    taken = sum(dict(own.accepted_by).get("prediction", 0) for own in stats)
    assert taken > 20 and len(stats) < 12


@pytest.mark.parametrize("draft", [SUBSPEC, specexec()], ids=["subspec", "specexec"])
def test_reclaim_frees_the_pages_that_were_drafted_ahead(draft: DraftSpec) -> None:
    engine = load(checkpoint("llama"), draft)
    draft_ahead(engine)
    engine.add(request("r", prompt(9), max_tokens=30))
    while not draft_model(engine)._scratch:
        engine.step()
    engine._drafting.reclaim()
    assert not draft_model(engine)._scratch and not engine._drafting._growths
    check_books(engine)
    engine.step()
    check_books(engine)
    engine.abort("r")
    engine.step()
    check_idle(engine)


def draft_ahead_after_aborts(engine: Engine) -> list[bool]:
    """Return what `draft_ahead` returned after all requests were aborted within a pass."""
    returned: list[bool] = []

    def leave(_: int) -> None:
        if not returned:
            engine.abort("a")
            engine.abort("b")
            returned.append(engine._drafting.draft_ahead(1e9))

    hooks(engine).on_unit = leave
    engine.step()
    hooks(engine).on_unit = None
    return returned


def test_cancelled_requests_are_not_drafted_for() -> None:
    engine = load(checkpoint("llama"), SUBSPEC)
    engine._drafting.policy.draft.observe(1, 1e-6)
    asked = [request(name, prompt(9, i), max_tokens=30) for i, name in enumerate("ab")]
    for message in asked:
        engine.add(message)
    engine.step()
    engine.step()
    assert draft_ahead_after_aborts(engine) == [False]
    assert engine.step() == [] and not engine.has_work()
    check_idle(engine)
    assert exact(run(engine, asked)) == exact(alone(load(checkpoint("llama"), PLAIN), asked))


def test_tau_follows_the_models_best_child_also_if_a_look_up_proposed_it() -> None:
    """Otherwise its second-best child would count as the best, and tau would rise wrongly."""
    asked = request("r", prompt(9), max_tokens=30, seed=1, temperature=1.0)
    want = alone(load(checkpoint("llama"), PLAIN), [asked])[("r", 0)].ids
    watched = Watched(specexec(), 0, replace(asked, prediction=tuple(want)))
    calibration = watched.engine._drafting.policy.calibration
    before = calibration.tau(asked.params)
    watched.finish()
    assert calibration.tau(asked.params) < before
