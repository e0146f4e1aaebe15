"""Tests of draft models with recurrent layers: they draft well, and change no answer."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.drafting.model import importance
from engine.drafting.model.draft_model import DraftModel, DraftStep
from engine.messages import Generate
from engine.spec import DraftSpec
from tests.engine.books import check_books, check_idle
from tests.engine.drafting.model.test_importance import with_bos
from tests.engine.hybrids import DENSE, HYBRIDS
from tests.engine.models import (
    PLAIN,
    SMALL,
    SUBSPEC,
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
from tests.variations import variations

NEW = 24
NGRAM = DraftSpec("ngram", **SMALL)
FAMILIES = variations(HYBRIDS, quick=["qwen3_next", "lfm2"])
PROMPTS = {"long": prompt(150, 1), "short": prompt(3, 2), "repeated": prompt(5, 3) * 8}


def asked(**params: Any) -> list[Generate]:
    return [request(name, tokens, max_tokens=NEW, **params) for name, tokens in PROMPTS.items()]


@cache
def plain(family: str) -> Answers:
    """Return the answers of plain decoding."""
    return alone(load(checkpoint(family), PLAIN), asked(logprobs=2))


def accepted(answers: Answers) -> float:
    """Return how many drafted tokens were accepted for each pass."""
    stats = [answer.stats for answer in answers.values() if answer.stats is not None]
    return sum(own.accepted for own in stats) / sum(own.passes for own in stats)


@pytest.fixture(name="whole")
def _whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the substitutes be the whole weights."""
    monkeypatch.setattr("engine.weights.formats.linear.supports", lambda *_: False)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_equal_plain_decoding(family: str, caplog: pytest.LogCaptureFixture) -> None:
    engine = load(checkpoint(family), SUBSPEC)
    assert "drafts keep" not in caplog.text, "attention of other kinds is no failure"
    draft_ahead(engine)
    found = run(engine, asked(logprobs=2))
    assert exact(found) == exact(plain(family))
    # Another expert changes all that follows, and random routers choose by small differences.
    assert accepted(found) > (1 if family in DENSE else 0.5)
    check_idle(engine)


def test_more_is_accepted_than_of_n_grams() -> None:
    folder = checkpoint("qwen3_5_text")
    found, ngram = (run(load(folder, own), asked()) for own in (SUBSPEC, NGRAM))
    assert accepted(found) > 1 > 4 * accepted(ngram)


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("family", FAMILIES)
def test_drafts_of_whole_weights_have_the_targets_logits(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(checkpoint(family), SUBSPEC)
    seen: dict[tuple[int, ...], Tensor] = {}
    own = DraftModel._forward

    def forward(model: DraftModel, step: DraftStep) -> Tensor:
        logits = own(model, step)
        nodes = [(growth, node) for growth, nodes in step.chosen for node in nodes]
        for (growth, node), row in zip(nodes, logits, strict=True):
            seen[*growth.sequence.tokens, *growth.path(node)] = row.clone()
        return logits

    monkeypatch.setattr(DraftModel, "_forward", forward)
    draft_ahead(engine, steps=1)
    found = run(engine, asked())
    # of four levels; none in the pass of the prompt, and fewer where more was drafted ahead
    assert accepted(found) > (1.5 if family.startswith("nemotron_h") else 2.5)
    some = list(seen)[:: len(seen) // 20]
    assert any(len(tokens) > 160 for tokens in some)
    for tokens in some:
        torch.testing.assert_close(
            seen[tokens], target_logits(engine, tokens), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("num_nodes", [1, 9])
def test_without_memory_for_rows_fewer_are_drafted(
    num_nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.planning.states.count_nodes", lambda *_: num_nodes)
    engine = load(checkpoint("qwen3_5_text"), SUBSPEC)
    draft_ahead(engine)
    assert exact(run(engine, asked(logprobs=2))) == exact(plain("qwen3_5_text"))
    nodes = draft_model(engine).caches.nodes
    assert nodes is not None and nodes.num_free == nodes.num_nodes == num_nodes


@pytest.mark.parametrize("at", [1, 6])
def test_a_client_that_leaves_in_a_pass_changes_no_other_answer(at: int) -> None:
    engine = load(checkpoint("qwen3_5_text"), SUBSPEC)
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
            found[event.request_id] += event.ids  # type: ignore[union-attr]  # none has failed
        check_books(engine)
    assert left
    for name in ("short", "repeated"):
        assert found[name] == plain("qwen3_5_text")[name, 0].ids
    check_idle(engine)


@pytest.mark.parametrize("family", ["qwen3_5_text", "falcon_h1"])
def test_the_audit_runs_an_answer_again_with_states_of_its_own(family: str) -> None:
    engine = load(checkpoint(family), SUBSPEC, audit=1.0)
    run(engine, asked())
    for _ in PROMPTS:
        audited = engine.auditor.run()
        assert audited is not None and (audited.positions, audited.mismatches) == (NEW, 0)
    check_idle(engine)


def test_answers_in_16_bits_do_not_depend_on_the_draft() -> None:
    folder = checkpoint("qwen3_5_text", torch.bfloat16)
    messages = [*asked(), request("n", prompt(70, 4), n=3, temperature=1.0, seed=2, max_tokens=NEW)]
    want = alone(load(folder, PLAIN), messages)
    found = run(load(folder, SUBSPEC), messages)
    assert exact(found) == exact(want)
    assert accepted(found) > 1


def test_substitutes_are_calibrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(importance, "TEXT_TOKENS", 8)
    folder = with_bos("qwen3_5_text", tmp_path)
    with caplog.at_level("INFO"):
        engine = load(folder, replace(SUBSPEC, calibrate=True), max_sequences=2)
    assert "calibrating the 4-bit copies took" in caplog.text
    check_idle(engine)
    assert exact(run(engine, asked(logprobs=2))) == exact(plain("qwen3_5_text"))
