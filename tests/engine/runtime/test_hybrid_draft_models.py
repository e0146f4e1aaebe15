"""Tests of separate draft models with recurrent layers, whose states are their own."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.drafting.model.draft_cache import OwnCache
from engine.drafting.model.draft_model import DraftModel, DraftStep
from engine.messages import Generate, Tokens
from engine.runtime.engine import Engine
from engine.spec import DraftSpec
from tests.engine.books import check_books, check_idle
from tests.engine.hybrids import HYBRIDS
from tests.engine.models import (
    PLAIN,
    SMALL,
    Answers,
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
from tests.engine.target_logits import target_logits
from tests.engine.traffic import pages
from tests.engine.wrappers import save_wrapper
from tests.variations import variations

NEW = 24
CHAIN: dict[str, Any] = {"depth": 4, "width": 1, "branch": 1, "budget": 5, "tuned": False}
QUICK = ("qwen3_5_text", "falcon_h1")
FAMILY = "qwen3_5_text"
PROMPTS = {"long": prompt(150, 1), "short": prompt(3, 2), "repeated": prompt(5, 3) * 8}


def asked(**params: Any) -> list[Generate]:
    return [request(name, tokens, max_tokens=NEW, **params) for name, tokens in PROMPTS.items()]


@cache
def plain(family: str) -> Answers:
    """Return the answers of plain decoding."""
    return alone(load(checkpoint(family), PLAIN), asked(logprobs=2))


def drafted(
    family: str = FAMILY, bounds: Any = CHAIN, *, seed: int | None = None, **changes: Any
) -> Engine:
    """Return an engine whose draft model is the target itself, or of other weights."""
    source = checkpoint(family) if seed is None else checkpoint(family, seed=seed)
    draft = DraftSpec("specexec", source=str(source), **bounds)
    engine = load(checkpoint(family), draft, **changes)
    if bounds is CHAIN:
        engine._drafting._lookups = []  # they would take rows of the chain
    return engine


def own_cache(engine: Engine) -> OwnCache:
    caches = draft_model(engine).caches
    assert isinstance(caches, OwnCache)
    return caches


def is_all_accepted(answers: Answers, new: int = NEW) -> bool:
    """Return whether each pass after a prompt's emitted a whole chain and a bonus token."""
    fewest = 1 + -(-(new - 1) // (CHAIN["depth"] + 1))
    return {own.stats and own.stats.passes for own in answers.values()} == {fewest}


@pytest.fixture(name="check_logits")
def _check_logits(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], int]:
    """Return a function that checks the logits of all drafted rows so far; it returns their number.

    They have to be those of the model in a folder after the same tokens, which run as one prompt.
    """
    seen: dict[tuple[int, ...], Tensor] = {}
    own = DraftModel._forward

    def forward(model: DraftModel, step: DraftStep) -> Tensor:
        logits = own(model, step)
        nodes = [(growth, node) for growth, nodes in step.chosen for node in nodes]
        for (growth, node), row in zip(nodes, logits, strict=True):
            seen[*growth.sequence.tokens, *growth.path(node)] = row.clone()
        return logits

    monkeypatch.setattr(DraftModel, "_forward", forward)

    def check(folder: Path) -> int:
        engine = load(folder, PLAIN)
        for tokens in list(seen)[:: len(seen) // 40 + 1]:
            wanted = target_logits(engine, tokens)
            torch.testing.assert_close(seen[tokens], wanted, rtol=1e-4, atol=1e-4)
        return len(seen)

    return check


@pytest.mark.parametrize("family", variations(HYBRIDS, quick=QUICK))
def test_a_draft_that_equals_the_target_is_accepted_in_full(family: str) -> None:
    engine = drafted(family)
    for ahead in (False, True):  # the second time with what is stored of the prompts
        if ahead:
            draft_ahead(engine)
        found = run(engine, asked(logprobs=2))
        assert exact(found) == exact(plain(family))
        assert is_all_accepted(found)
        check_idle(engine)


@pytest.mark.parametrize("family", variations(HYBRIDS, quick=[FAMILY]))
def test_states_are_right_after_rejected_branches(
    family: str, check_logits: Callable[[Path], int]
) -> None:
    engine = drafted(family, SMALL, seed=9)
    for ahead in (False, True):
        if ahead:
            draft_ahead(engine, steps=1)
        assert exact(run(engine, asked(logprobs=2))) == exact(plain(family))
    assert check_logits(checkpoint(family, seed=9)) > 6 * NEW
    check_idle(engine)


def test_choices_of_a_request_have_states_of_their_own() -> None:
    message = request("three", prompt(170, 4), n=3, temperature=1.0, seed=2, max_tokens=NEW)
    engine = drafted()
    found = run(engine, [message])
    assert len({tuple(own.ids) for own in found.values()}) == 3
    assert exact(found) == exact(run(load(checkpoint(FAMILY), PLAIN), [message]))
    assert is_all_accepted(found)
    check_idle(engine)


def test_states_are_right_after_pauses(check_logits: Callable[[Path], int]) -> None:
    messages = [
        request(str(number), prompt(100, number), temperature=1.0, seed=number, max_tokens=60)
        for number in range(4)
    ]
    want = alone(load(checkpoint(FAMILY), PLAIN), messages)
    with pages(6, 0):
        engine = drafted(FAMILY, SMALL)
    paused: list[Any] = []
    own = engine._scheduler.release

    def release(sequence: Any) -> None:
        paused.append(sequence)
        own(sequence)

    engine._scheduler.release = release
    assert exact(run(engine, messages)) == exact(want)
    assert len(paused) > 0
    check_logits(checkpoint(FAMILY))
    check_idle(engine)


@pytest.mark.parametrize("at", [1, 6])
def test_a_client_that_leaves_in_a_pass_changes_no_other_state(
    at: int, check_logits: Callable[[Path], int]
) -> None:
    engine = drafted(FAMILY, SMALL)
    draft_ahead(engine)
    left = False

    def leave(call: int) -> None:
        nonlocal left
        if not left and call >= 20 + at:
            left = True
            engine.abort("long")

    hooks(engine).on_unit = leave
    for message in asked():
        engine.add(message)
    found: dict[str, list[int]] = {name: [] for name in PROMPTS}
    while engine.has_work():
        for event in engine.step():
            assert isinstance(event, Tokens)
            found[event.request_id] += event.ids
        check_books(engine)
    assert left
    for name in ("short", "repeated"):
        assert found[name] == plain(FAMILY)[name, 0].ids
    check_logits(checkpoint(FAMILY))
    check_idle(engine)


def test_steps_that_are_dropped_leave_the_states_as_they_are(
    monkeypatch: pytest.MonkeyPatch, check_logits: Callable[[Path], int]
) -> None:
    """Steps ahead run one layer, and are dropped when the pass is over."""
    engine = drafted(FAMILY, SMALL, seed=9)
    monkeypatch.setattr(type(draft_model(engine)), "num_pieces", 1000)
    own, dropped = DraftModel.continue_step, 0

    def continue_step(model: DraftModel, until: float, calibration: Any) -> bool:
        if model.unfinished is not None:
            model.unfinished.resumable.max_layers = 1
        return own(model, until, calibration)

    def drop_step(model: DraftModel) -> None:
        nonlocal dropped
        if model.unfinished is not None:
            scratch = [model._scratch[growth.sequence] for growth, _ in model.unfinished.chosen]
            dropped += sum(bool(own.pending) for own in scratch)
        drop(model)

    drop = DraftModel.drop_step
    monkeypatch.setattr(DraftModel, "continue_step", continue_step)
    monkeypatch.setattr(DraftModel, "drop_step", drop_step)
    monkeypatch.setattr(engine._drafting, "_grow", grow_every_third(engine))
    draft_ahead(engine, steps=1)
    assert exact(run(engine, asked(logprobs=2))) == exact(plain(FAMILY))
    assert dropped > 5
    check_logits(checkpoint(FAMILY, seed=9))
    check_idle(engine)


def grow_every_third(engine: Engine) -> Any:
    """Return a `Drafting._grow` that drafts before each third pass only, so tokens are pending."""
    own, calls = engine._drafting._grow, iter(range(10_000))
    return lambda growths, rows: 0.0 if next(calls) % 3 else own(growths, rows)


def test_a_failed_step_means_that_a_prompt_runs_again(
    monkeypatch: pytest.MonkeyPatch, check_logits: Callable[[Path], int]
) -> None:
    engine = drafted(FAMILY, SMALL)
    failing = [True]
    layer = draft_model(engine).decoder.layers[2]
    own = layer.forward

    def fail(*inputs: Any, **named: Any) -> Any:
        if failing:
            failing.clear()
            raise torch.OutOfMemoryError("pretended")
        return own(*inputs, **named)

    monkeypatch.setattr(layer, "forward", fail)
    found = run(engine, asked(logprobs=2)[:1])
    assert not failing and exact(found)["long", 0] == exact(plain(FAMILY))["long", 0]
    assert check_logits(checkpoint(FAMILY)) > NEW
    check_idle(engine)


@pytest.mark.parametrize("tile", [32, 512])
def test_a_long_prompt_runs_in_parts_and_its_states_are_stored(
    tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.drafting.model.pending.PROMPT_TILE", tile)
    engine, first = drafted(), prompt(200, 7)
    (answer,) = run(engine, [request("first", first, max_tokens=NEW)]).values()
    assert is_all_accepted({("first", 0): answer})
    rows: list[int] = []
    decoder = draft_model(engine).decoder
    own = decoder.forward

    def forward(tokens: Any, *others: Any) -> Tensor:
        rows.append(len(tokens))
        return own(tokens, *others)

    monkeypatch.setattr(decoder, "forward", forward)
    whole = [*first, *answer.ids, *prompt(9, 8)]
    found = run(engine, [request("second", whole, max_tokens=NEW)])
    assert is_all_accepted(found)
    assert rows[0] < 20, "the states at the end of the answer were found"
    rows.clear()
    # A template has changed the end of the prompt: at most two pages are computed again.
    other = [*first[:195], *prompt(20, 9)]
    assert is_all_accepted(run(engine, [request("third", other, max_tokens=NEW)]))
    assert sum(rows[: 1 + (rows[0] == tile)]) <= 20 + 2 * 64
    check_idle(engine)


@pytest.mark.parametrize("num_nodes", [1, 9])
def test_without_memory_for_rows_fewer_are_drafted(
    num_nodes: int, monkeypatch: pytest.MonkeyPatch, check_logits: Callable[[Path], int]
) -> None:
    monkeypatch.setattr("engine.planning.states.count_nodes", lambda *_: num_nodes)
    engine = drafted(FAMILY, SMALL, seed=9)
    draft_ahead(engine)
    assert exact(run(engine, asked(logprobs=2))) == exact(plain(FAMILY))
    check_logits(checkpoint(FAMILY, seed=9))
    nodes = own_cache(engine).nodes
    assert nodes is not None and nodes.num_free == nodes.num_nodes == num_nodes


def test_a_target_without_recurrent_layers_may_have_such_a_draft() -> None:
    folder, source = checkpoint("llama"), checkpoint("lfm2", seed=9)
    engine = load(folder, DraftSpec("specexec", source=str(source), **SMALL))
    draft_ahead(engine)
    found = run(engine, asked(logprobs=2))
    assert exact(found) == exact(alone(load(folder, PLAIN), asked(logprobs=2)))
    assert engine._cache.states is None and own_cache(engine).cache.states is not None
    check_idle(engine)


def test_the_language_part_of_a_model_that_takes_images_may_be_the_draft(tmp_path: Path) -> None:
    folder = save_wrapper("qwen3_5", tmp_path)
    engine = load(folder, DraftSpec("specexec", source=str(folder), **CHAIN))
    engine._drafting._lookups = []
    found = run(engine, asked())
    assert exact(found) == exact(alone(load(folder, PLAIN), asked()))
    assert is_all_accepted(found)


def test_answers_in_16_bits_do_not_depend_on_the_draft() -> None:
    folder = checkpoint(FAMILY, torch.bfloat16)
    want = alone(load(folder, PLAIN), asked())
    engine = load(folder, DraftSpec("specexec", source=str(folder), **SMALL))
    found = run(engine, asked())
    assert exact(found) == exact(want)
    stats = [own.stats for own in found.values() if own.stats is not None]
    assert sum(own.accepted for own in stats) > sum(own.passes for own in stats)
