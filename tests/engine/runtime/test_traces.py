"""Tests of the traces of passes, which requests with `traced_nodes` get with their tokens."""

from dataclasses import replace

import pytest

from engine.drafting.tree import DraftTree
from engine.messages import Failed, Generate, Tail, Tokens
from engine.pass_trace import DraftedNodes, PassTrace
from engine.runtime import traces
from engine.runtime.engine import Engine
from engine.runtime.traces import MAX_NODES, drafted_nodes
from engine.spec import DraftSpec
from tests.engine.models import PLAIN, SUBSPEC, checkpoint, exact, load, prompt, request, run

PROMPT = prompt(150)


def small_passes(draft: DraftSpec) -> Engine:
    """Return an engine whose prompts take several passes."""
    engine = load(checkpoint("llama"), draft)
    engine._scheduler.max_rows = 64
    return engine


def traced(name: str, nodes: int = 1 << 30, n: int = 1, max_tokens: int = 20) -> Generate:
    asked = request(name, PROMPT, n=n, max_tokens=max_tokens, temperature=0.8, seed=3)
    return replace(asked, traced_nodes=nodes)


def record(engine: Engine, message: Generate) -> dict[int, list[Tokens]]:
    """Serve a request and return the messages of each of its choices."""
    sent: dict[int, list[Tokens]] = {}
    engine.add(message)
    while engine.has_work():
        for event in engine.step():
            assert not isinstance(event, Failed), event
            sent.setdefault(event.choice, []).append(event)
    return sent


def passes(messages: list[Tokens]) -> list[PassTrace]:
    return [trace for message in messages for trace in message.traces]


@pytest.mark.parametrize("draft", [SUBSPEC, PLAIN])
@pytest.mark.parametrize("n", [1, 3])
def test_each_pass_has_its_figures_and_its_tree(draft: DraftSpec, n: int) -> None:
    sent = record(small_passes(draft), traced("r", n=n))
    for choice, messages in sent.items():
        last = messages[-1].stats
        assert last is not None
        first_number = 1 if choice == 0 else messages[0].traces[0].number
        found = passes(messages)
        assert [own.number for own in found] == list(range(first_number, last.passes + 1))
        assert sum(own.tokens for own in found) == last.completion_tokens
        drafted = sum(len(own.nodes) for own in found)
        assert drafted == last.drafted
        origins = [origin for message in messages for origin in message.origins]
        accepted = [
            (own.number, source)
            for own in found
            for source, is_accepted in zip(own.nodes.sources, own.nodes.accepted, strict=True)
            if is_accepted
        ]
        assert accepted == [(own.pass_number, own.source) for own in origins if own.depth]
        assert all(own.pass_ms > 0 and own.link_bytes > 0 for own in found)
        assert all(own.own_rows <= own.rows and own.sequences >= 1 for own in found)
    of_prompt = [own for own in passes(sent[0]) if own.tokens == 0]
    assert len(of_prompt) >= 1, "the prompt takes several passes"
    assert sum(own.own_rows for own in of_prompt) + sent[0][0].traces[-1].own_rows == len(PROMPT)
    assert all(len(own.nodes) == 0 for own in of_prompt)


def test_the_accepted_nodes_spell_the_tokens_of_the_pass() -> None:
    sent = record(load(checkpoint("llama"), SUBSPEC), traced("r"))
    assert any(sum(own.nodes.accepted) for own in passes(sent[0]))
    for message in sent[0]:
        nodes = message.traces[-1].nodes.only_accepted()
        assert nodes.tokens == message.ids[: len(nodes)]
        assert nodes.parents == tuple(range(-1, len(nodes) - 1))


def test_traces_change_no_answer_and_come_only_when_asked_for() -> None:
    engine = load(checkpoint("llama"), SUBSPEC)
    plain = [replace(traced(name), traced_nodes=0) for name in "ab"]
    want = exact(run(engine, plain))
    assert exact(run(engine, [traced("a"), plain[1]])) == want
    for message in plain:
        assert not any(own.traces for own in record(engine, message)[0])


def test_a_resumed_answer_goes_on_counting_its_passes() -> None:
    engine = load(checkpoint("llama"), SUBSPEC)
    message = traced("r")
    begun = record(engine, message)[0][:2]
    ids = tuple(token for own in begun for token in own.ids)
    tail = Tail(0, ids, begun[-1].stats)
    rest = record(engine, replace(message, request_id="rest", emitted=(tail,)))[0]
    assert passes(rest)[0].number == passes(begun)[-1].number + 1
    assert passes(rest)[-1].number == passes(rest)[0].number + len(passes(rest)) - 1


def test_the_nodes_of_an_answer_are_bounded() -> None:
    messages = record(load(checkpoint("llama"), SUBSPEC), traced("r", nodes=30))[0]
    found, last = passes(messages), messages[-1].stats
    assert last is not None
    assert sum(len(own.nodes) + own.nodes_left_out for own in found) == last.drafted > 30
    assert len(found[1].nodes) > 0 and found[1].nodes_left_out == 0
    assert all(all(own.nodes.accepted) for own in found if own.nodes_left_out)
    num_accepted = sum(sum(own.nodes.accepted) for own in found)
    assert num_accepted == sum(origin.depth > 0 for own in messages for origin in own.origins)


def test_the_passes_of_a_prompt_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "MAX_HELD", 1)
    first, last, *_ = passes(record(small_passes(SUBSPEC), traced("r"))[0])
    assert (first.tokens, first.number, first.passes_left_out) == (0, 2, 1)
    assert (last.number, last.passes_left_out) == (3, 0)


def bushy(width: int, accepted_depth: int) -> DraftTree:
    """Return a tree of a path, and of `width` other children of the root that score better."""
    path = range(accepted_depth)
    return DraftTree(
        tokens=(0, *(1 + own for own in path), *(1000 + own for own in range(width))),
        parents=(-1, *path, *(0,) * width),
        depths=(0, *(1 + own for own in path), *(1,) * width),
        scores=(0.0, *(-50.0 - own for own in path), *(-float(own) for own in range(width))),
        sources=("", *("a",) * accepted_depth, *("b",) * width),
    )


@pytest.mark.parametrize(
    ("width", "depth", "num_kept"), [(3, 2, 5), (500, 4, MAX_NODES), (9, 200, 200)]
)
def test_a_large_tree_keeps_accepted_nodes_and_the_best_ones(
    width: int, depth: int, num_kept: int
) -> None:
    tree = bushy(width, depth)
    found = drafted_nodes(tree, [*range(1, depth + 1), 77])
    assert len(found) == num_kept
    assert found.only_accepted().tokens == tuple(range(1, depth + 1))
    rejected = [own for own, kept in zip(found.tokens, found.accepted, strict=True) if not kept]
    assert rejected == [1000 + own for own in range(min(width, num_kept - depth))]
    assert all(parent < node for node, parent in enumerate(found.parents))


def test_a_score_is_a_number_in_json() -> None:
    tree = DraftTree.chain([1, 2, 3], [0.0, -0.00049, float("-inf")], "a")
    assert drafted_nodes(tree, [2, 9]) == DraftedNodes(
        (-1, 0), (2, 3), ("a", "a"), (-0.0, traces.LOWEST_SCORE), (True, False)
    )
