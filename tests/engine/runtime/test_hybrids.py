"""Tests of models with recurrent layers: answers are those of plain decoding and of the library."""

import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.drafting.tree import Bounds
from engine.errors import ModelError
from engine.messages import Failed, Generate, StateStats
from engine.model.reference import Reference
from engine.runtime.engine import Engine
from engine.spec import DraftSpec, TargetSpec
from engine.weights.family import kv_shape
from tests.engine.books import check_books, check_idle
from tests.engine.checkpoints import tiny_config
from tests.engine.hybrids import HYBRIDS
from tests.engine.models import (
    PLAIN,
    SMALL,
    VOCAB,
    Answers,
    add_tokenizer,
    alone,
    checkpoint,
    exact,
    hooks,
    load,
    prompt,
    request,
    run,
)
from tests.engine.structures import forwarded, generated
from tests.engine.traffic import Guesses
from tests.variations import variations

NEW = 24
PROMPTS = {"long": prompt(150, 1), "short": prompt(3, 2), "repeated": prompt(5, 3) * 8}
# One family for each kind of recurrence; the others have the same parts, and run among slow tests.
# The library's `generate` bounds the steps of the recurrence in a prompt only, so answers are
# compared with its forward without a cache.
UNBOUNDED = ("nemotron_h", "nemotron_h_dense")


def asked(**params: Any) -> list[Generate]:
    return [request(name, tokens, max_tokens=NEW, **params) for name, tokens in PROMPTS.items()]


@cache
def wanted(family: str) -> Answers:
    """Return the answers of plain decoding to what is `asked`, with log-probabilities."""
    plain = load(checkpoint(family), PLAIN)
    found = alone(plain, asked(logprobs=2))
    plain.close()
    return found


@pytest.mark.parametrize(
    ("family", "key"), [("lfm2", "conv_L_cache"), ("nemotron_h_dense", "conv_kernel")]
)
def test_a_convolution_may_see_one_row_only(family: str, key: str, tmp_path: Path) -> None:
    config = tiny_config(family, vocab_size=VOCAB)
    setattr(config, key, 1)
    Reference(config, seed=3).model.save_pretrained(tmp_path)
    add_tokenizer(tmp_path)
    want = alone(load(tmp_path, PLAIN), asked(logprobs=2))
    for name, tokens in PROMPTS.items():
        assert want[name, 0].ids == generated(tmp_path, tokens, NEW), name
    engine = with_guesses(load(tmp_path, DraftSpec("ngram", **{**SMALL, "width": 1})), want)
    for _ in range(2):
        assert exact(run(engine, asked(logprobs=2))) == exact(want)
    own = DraftSpec("specexec", source=str(tmp_path), **SMALL)
    assert exact(run(load(tmp_path, own), asked(logprobs=2))) == exact(want)


def test_steps_of_a_recurrence_are_bounded_in_all_passes(tmp_path: Path) -> None:
    config = tiny_config("nemotron_h_dense", vocab_size=VOCAB)
    config.time_step_min = 0.7  # many steps are smaller, unlike with the usual bound
    Reference(config, seed=3).model.save_pretrained(tmp_path)
    add_tokenizer(tmp_path)
    want = alone(load(tmp_path, PLAIN), asked(logprobs=2))
    for name, tokens in PROMPTS.items():
        assert want[name, 0].ids == forwarded(tmp_path, tokens, NEW), name
    engine = with_guesses(load(tmp_path, DraftSpec("ngram", **{**SMALL, "width": 1})), want)
    assert exact(run(engine, asked(logprobs=2))) == exact(want)


def with_guesses(engine: Engine, want: Any) -> Engine:
    """Let an engine draft trees that have the right tokens among wrong ones."""
    engine._drafting._lookups = [Guesses(want, random.Random(5))]
    engine._drafting._bounds = Bounds(depth=24, width=1, branch=1, budget=24)
    return engine


@pytest.mark.parametrize("family", variations(HYBRIDS, quick=["granitemoehybrid", "kimi_linear"]))
def test_answers_equal_plain_decoding_and_the_librarys(family: str) -> None:
    folder, want = checkpoint(family), wanted(family)
    for name, tokens in PROMPTS.items():
        librarys = forwarded if family in UNBOUNDED else generated
        assert want[name, 0].ids == librarys(folder, tokens, NEW), name
    engine = with_guesses(load(folder, DraftSpec("ngram", **{**SMALL, "width": 1})), want)
    for _ in range(2):
        found = run(engine, asked(logprobs=2))
        assert exact(found) == exact(want)
    accepted = [answer.stats.accepted for answer in found.values() if answer.stats is not None]
    assert sum(accepted) > NEW  # so trees are accepted, and their paths repeated


@pytest.mark.parametrize("family", variations(["qwen3_next", "lfm2"], quick=["lfm2"]))
def test_sampled_answers_and_several_choices_do_not_depend_on_the_draft(family: str) -> None:
    folder, other = checkpoint(family), checkpoint("llama", seed=9, layers=1)
    messages = [
        request("three", prompt(70, 4), n=3, temperature=1.0, seed=2, max_tokens=NEW),
        request("scored", prompt(20, 5), prompt_logprobs=1, logprobs=1, max_tokens=NEW),
    ]
    want = alone(load(folder, PLAIN), messages)
    engine = load(folder, DraftSpec("specexec", source=str(other), **SMALL))
    assert exact(run(engine, messages)) == exact(want)


@pytest.mark.parametrize("family", ["qwen3_next", "lfm2"])
def test_trees_of_several_tiles_change_no_answer(family: str) -> None:
    folder, other, want = checkpoint(family), checkpoint("llama", seed=9, layers=1), wanted(family)
    bounds: dict[str, Any] = {"depth": 6, "width": 24, "branch": 8, "budget": 150, "tuned": False}
    engine = load(folder, DraftSpec("specexec", source=str(other), **bounds))
    engine._drafting._lookups = [Guesses(want, random.Random(3))]
    found = run(engine, asked(logprobs=2))
    assert exact(found) == exact(want)
    stats = [answer.stats for answer in found.values() if answer.stats is not None]
    assert sum(own.drafted for own in stats) > 64 * sum(own.passes for own in stats)
    assert sum(own.accepted for own in stats) > NEW


@pytest.mark.parametrize(
    "dtype",
    variations([torch.bfloat16, torch.float16], quick=[torch.bfloat16]),
    ids=str,
)
def test_answers_in_16_bits_do_not_depend_on_the_draft(dtype: torch.dtype) -> None:
    folder = checkpoint("qwen3_next", dtype)
    want = alone(load(folder, PLAIN), asked(logprobs=1))
    engine = with_guesses(load(folder, DraftSpec("ngram", depth=24, width=1, budget=24)), want)
    assert exact(run(engine, asked(logprobs=1))) == exact(want)


@pytest.mark.parametrize(
    "family", variations(["qwen3_next", "granitemoehybrid"], quick=["qwen3_next"])
)
def test_answers_of_4_bit_weights_do_not_depend_on_the_draft(family: str) -> None:
    """Filters of convolutions are not quantized, though they have three dimensions."""
    folder = checkpoint(family)
    target = TargetSpec(str(folder), quantize="nf4")
    want = alone(load(folder, PLAIN, target=target), asked())
    engine = load(folder, DraftSpec("ngram"), target=target)
    assert exact(run(engine, asked())) == exact(want)


@pytest.mark.parametrize("at", [1, 4, 7, 10])
def test_a_client_that_leaves_in_a_pass_changes_no_other_answer(at: int) -> None:
    """It leaves before some unit, when some layers have repeated accepted rows and others not."""
    want, draft = wanted("qwen3_next"), DraftSpec("ngram", depth=24, width=1, budget=24)
    engine = with_guesses(load(checkpoint("qwen3_next"), draft), want)
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
    assert left
    for name in ("short", "repeated"):
        assert found[name] == want[name, 0].ids
    check_books(engine)
    check_idle(engine)


@pytest.mark.parametrize("at", [3, 4])  # loading has run a layer and the head
def test_a_client_that_leaves_in_the_first_pass_fails_no_other(at: int) -> None:
    """Layers of the family return a tuple, whose length is known once they have run."""
    engine = load(checkpoint("bamba"), PLAIN)
    hooks(engine).on_unit = lambda call: engine.abort("short") if call == at else None
    engine.add(asked()[1])
    while engine.has_work():
        assert engine.step() == []
    hooks(engine).on_unit = None
    assert run(engine, asked()[1:2])["short", 0].ids == wanted("bamba")["short", 0].ids


def test_a_sequence_whose_states_a_failed_pass_has_changed_runs_again() -> None:
    want = wanted("qwen3_next")["long", 0]
    engine = load(checkpoint("qwen3_next"), PLAIN)
    failing = [True]

    def fail(call: int) -> None:
        if failing and call > 2 * 3:  # units, each with three tiles of the prompt
            failing.clear()
            raise torch.OutOfMemoryError("pretended")

    hooks(engine).on_unit = fail
    (found,) = run(engine, asked(logprobs=2)[:1]).values()
    assert not failing and found.exact == want.exact


@pytest.mark.parametrize("unit", range(4))
def test_a_failed_read_before_accepted_rows_are_repeated_changes_no_other_answer(unit: int) -> None:
    want, draft = wanted("qwen3_next"), DraftSpec("ngram", depth=24, width=1, budget=24)
    engine = with_guesses(load(checkpoint("qwen3_next"), draft, max_sequences=2), want)
    for message in asked(logprobs=2):
        engine.add(message)
    events: list[Any] = []
    while not any(s.pages.state and s.pages.state.path for s in engine._scheduler.running):
        events += engine.step()
    own: Any = engine._loaded.stream
    read = own.unit

    def fail(index: int, on_wait: Any = None) -> Any:
        if index == unit:
            raise ModelError("its weights could not be read")
        return read(index, on_wait)

    own.unit = fail
    events += engine.step()
    own.unit = read
    while engine.has_work():
        events += engine.step()
        check_books(engine)
    failed = {event.request_id for event in events if isinstance(event, Failed)}
    assert failed == {"long", "short"}  # those of the pass
    answer = [token for e in events if e.request_id == "repeated" for token in e.ids]
    assert answer == want["repeated", 0].ids
    check_idle(engine)
    assert exact(run(engine, asked(logprobs=2))) == exact(
        want
    )  # with what is stored of those that failed


def test_trees_have_few_rows_unless_more_are_asked_for() -> None:
    """What is kept of a row costs memory in each recurrent layer."""
    folder, other = checkpoint("lfm2"), str(checkpoint("llama", seed=9, layers=1))
    for asked_for, rows in ((None, 64), (150, 150)):
        engine = load(folder, DraftSpec("specexec", source=other, budget=asked_for))
        states = engine._cache.states
        assert states is not None and states.stash_rows == rows
        assert engine._drafting._bounds.budget == rows


def cached(engine: Engine, name: str, tokens: list[int], **params: Any) -> tuple[int, list[int]]:
    """Return how many tokens of a prompt were found in the cache, and the answer."""
    ((_, answer),) = run(engine, [request(name, tokens, **params)]).items()
    assert answer.stats is not None
    return answer.stats.cached_tokens, answer.ids


@pytest.mark.parametrize(
    ("family", "length"),
    variations(
        [("qwen3_next", 40), ("lfm2", 129), ("qwen3_next", 250), ("lfm2", 250)],
        quick=[("qwen3_next", 40), ("lfm2", 129), ("lfm2", 250)],
    ),
)
def test_the_second_turn_of_a_chat_runs_only_its_new_tokens(family: str, length: int) -> None:
    folder, first = checkpoint(family), prompt(length, 7)
    engine, plain = load(folder, PLAIN), load(folder, PLAIN, prefix_cache=False)
    _, answer = cached(engine, "first", first)
    whole = [*first, *answer, *prompt(9, 8)]
    found, second = cached(engine, "second", whole)
    assert found == len(first) + len(answer) - 1  # its last token has not run
    assert second == cached(plain, "second", whole)[1]
    # A template has changed the end of the prompt: at most two pages are computed again.
    other = [*first[: length - 5], *prompt(20, 9)]
    found, third = cached(engine, "third", other)
    assert found >= length - 5 - 2 * 64 and found % 64 == 0
    assert third == cached(plain, "third", other)[1]


def test_states_that_save_the_fewest_tokens_are_dropped_first() -> None:
    folder = checkpoint("lfm2")
    engine = load(folder, PLAIN)
    stored = engine._cache._stored
    assert stored is not None
    most = engine._loaded.plan.stored_states
    for number in range(most):
        cached(engine, str(number), prompt(150, 100 + number), max_tokens=2)
        assert stored.num_stored <= most
    assert stored.num_stored == most
    found, _ = cached(engine, "again", prompt(150, 100 + most - 1), max_tokens=2)
    assert found == 128
    check_books(engine)


def test_a_pass_reports_states_in_use_hits_and_evictions() -> None:
    engine, first = load(checkpoint("qwen3_next"), PLAIN, max_sequences=2), prompt(150, 7)
    states, most = engine._cache.states, engine._loaded.plan.stored_states
    assert states is not None and engine.info.num_states == states.num_states == 2 + most
    one = states.state_bytes
    assert (
        sum(own.states[0].nbytes + own.windows[0].nbytes for own in states.layers.values()) == one
    )

    def reported(tokens: list[int]) -> StateStats:
        cached(engine, "r", tokens, max_tokens=1)
        assert engine.last_pass is not None and engine.last_pass.states is not None
        return engine.last_pass.states

    assert reported(first) == StateStats(0, 3, 3 * one, hits=0, evictions=0)
    # Of the two states at page borders, that at the first one is stored already.
    assert reported([*first, 5, 6]) == StateStats(0, 4, 4 * one, hits=1, evictions=0)
    for number in range(most):
        last = reported(prompt(150, 100 + number))
    assert last == StateStats(0, most, most * one, hits=0, evictions=3)
    llama = load(checkpoint("llama"), PLAIN)
    cached(llama, "r", first, max_tokens=1)
    assert llama.info.num_states == 0
    assert llama.last_pass is not None and llama.last_pass.states is None


@pytest.mark.parametrize("family", ["qwen3_next", "lfm2"])
def test_the_audit_runs_an_answer_again_with_states_of_its_own(family: str) -> None:
    engine = load(checkpoint(family), DraftSpec("ngram"), audit=1.0)
    run(engine, asked())
    for _ in PROMPTS:
        audited = engine.auditor.run()
        assert audited is not None and (audited.positions, audited.mismatches) == (NEW, 0)
    check_idle(engine)


def test_only_layers_with_attention_have_keys_and_values() -> None:
    layers = {family: kv_shape(tiny_config(family)).num_layers for family in HYBRIDS}
    assert layers == {**dict.fromkeys(HYBRIDS, 1), "falcon_h1": 3}
