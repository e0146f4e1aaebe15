"""Tests of the audit: it counts the tokens that plain decoding would not have emitted."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch

from engine.errors import ModelError
from engine.messages import Audited, Generate
from engine.runtime.audit import MAX_WAITING, TOLERANCES, Auditor
from engine.runtime.engine import Engine
from engine.sampling.logit_rules import TokenCounts
from engine.sampling.noise import gumbel
from engine.sequences.sequence import Request, TokenSequence
from tests.engine.models import PLAIN, SUBSPEC, checkpoint, hooks, load, prompt, request, run
from tests.engine.sequence_makers import make_sequence

SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 1.0, "seed": 11},
    "cut": {"temperature": 0.9, "seed": 12, "top_p": 0.8, "top_k": 20, "min_p": 0.01},
    "penalties": {
        "temperature": 0.8,
        "seed": 15,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.4,
    },
    "greedy penalties": {"frequency_penalty": 0.7},
    "bias": {"temperature": 1.0, "seed": 16, "logit_bias": ((7, 3.0), (9, -100.0))},
    "min_tokens": {  # without the ban, the first token would end the answer
        "ignore_eos": False,
        "min_tokens": 5,
        "stop_token_ids": (5,),
        "logit_bias": ((5, 100.0),),
    },
}


def auditor_of(engine: Engine, share: float = 1.0, max_rows: int = 4096) -> Auditor:
    plan = replace(engine._loaded.plan, max_rows=max_rows)
    return Auditor(replace(engine._loaded, audit=share, plan=plan))


def finished(engine: Engine, message: Generate, ids: list[int], choice: int = 0) -> TokenSequence:
    """Return a finished choice of a request, with these tokens as its answer."""
    asked = Request(message, engine._loaded.limits)
    sequence = TokenSequence(asked, choice, engine._loaded.stop_rules(message))
    sequence.tokens += ids
    return sequence


def served(engine: Engine, message: Generate) -> list[TokenSequence]:
    answers = run(engine, [message])
    return [finished(engine, message, answers[key].ids, key[1]) for key in sorted(answers)]


def audit(auditor: Auditor, sequence: TokenSequence) -> Audited | None:
    auditor.offer(sequence)
    return auditor.run()


def changed_answer(sequence: TokenSequence, place: int = -4) -> TokenSequence:
    """Change the token at a place of an answer, and return the same choice."""
    token = 3 + (sequence.tokens[place] + 50) % 120
    sequence.tokens[place] = token
    return sequence


@pytest.fixture(scope="module")
def folder() -> Any:
    return checkpoint("llama")


@pytest.mark.parametrize("numerics", ["strict", "fast"])
def test_correct_answers_have_no_mismatch(folder: Any, numerics: str) -> None:
    engine = load(folder, SUBSPEC, numerics=numerics)
    auditor = auditor_of(engine)
    for name, params in SAMPLINGS.items():
        for sequence in served(engine, request(name, prompt(70, 2), n=2, **params)):
            answer = len(sequence.tokens) - 70
            assert audit(auditor, sequence) == Audited(answer, 0), (name, sequence.choice)
    assert not auditor.has_pending


@pytest.mark.parametrize("numerics", ["strict", "fast"])
def test_a_changed_answer_has_mismatches(folder: Any, numerics: str) -> None:
    engine = load(folder, SUBSPEC, numerics=numerics)
    auditor = auditor_of(engine)
    for name, params in SAMPLINGS.items():
        if name == "min_tokens":
            continue  # its answer may be short
        (sequence,) = served(engine, request(name, prompt(30, 4), **params))
        found = audit(auditor, changed_answer(sequence))
        assert found is not None and found.mismatches >= 1, name


def test_a_changed_last_token_is_the_only_mismatch(folder: Any) -> None:
    engine = load(folder, PLAIN)
    (sequence,) = served(engine, request("r", prompt(30, 4)))
    assert audit(auditor_of(engine), changed_answer(sequence, -1)) == Audited(24, 1)


@pytest.mark.parametrize(
    ("params", "other"),
    [
        ({"temperature": 1.0, "seed": 5}, {"seed": 6}),
        ({"temperature": 1.0, "seed": 5}, {"temperature": 0.3}),
        ({"temperature": 0.0}, {"logit_bias": ((9, 50.0),)}),
        ({"temperature": 0.0}, {"frequency_penalty": 2.0}),
    ],
)
def test_an_answer_to_other_parameters_has_mismatches(
    folder: Any, params: dict[str, Any], other: dict[str, Any]
) -> None:
    engine = load(folder, PLAIN)
    message = request("r", prompt(30, 4), **params)
    (sequence,) = served(engine, message)
    changed = replace(message, params=replace(message.params, **other))
    found = audit(auditor_of(engine), finished(engine, changed, sequence.tokens[30:]))
    assert found is not None and found.mismatches > 0


def test_a_choice_with_the_noise_of_another_has_mismatches(folder: Any) -> None:
    engine = load(folder, PLAIN)
    message = request("r", prompt(30, 4), n=2, temperature=1.0, seed=3)
    first, second = served(engine, message)
    found = audit(auditor_of(engine), finished(engine, message, second.tokens[30:], choice=0))
    assert first.tokens != second.tokens
    assert found is not None and found.mismatches > 0


def test_an_answer_from_a_wrong_stored_prefix_has_mismatches(folder: Any) -> None:
    """The audit uses no stored prefix, which would repeat the mistake."""
    engine = load(folder, PLAIN)
    asked = prompt(200, 7)
    served(engine, request("stores", asked))
    with torch.inference_mode():
        engine._loaded.cache.pool.keys.neg_()
    (sequence,) = served(engine, request("reads", asked))
    found = audit(auditor_of(engine), sequence)
    assert found is not None and found.mismatches > 0


def test_an_answer_beyond_the_original_rope_length_is_checked() -> None:
    engine = load(checkpoint("phi3_longrope"), SUBSPEC)
    auditor = auditor_of(engine)
    for length in (10, 28, 50):  # the frequencies change at 32 tokens
        (sequence,) = served(engine, request("r", prompt(length, 3)))
        assert audit(auditor, sequence) == Audited(24, 0), length
        assert audit(auditor, changed_answer(sequence, -1)) == Audited(24, 1), length


@pytest.mark.parametrize("max_rows", [64, 100, 4096])
def test_a_long_answer_is_checked_in_passes_of_bounded_size(folder: Any, max_rows: int) -> None:
    engine = load(folder, PLAIN)
    (sequence,) = served(engine, request("r", prompt(150, 2), max_tokens=130))
    auditor = auditor_of(engine, max_rows=max_rows)
    assert audit(auditor, sequence) == Audited(130, 0)
    assert audit(auditor, changed_answer(sequence, -1)) == Audited(130, 1)


# -- with requests


@pytest.mark.parametrize("last", [1, 2, 4])
def test_a_new_request_ends_a_check_which_is_repeated_later(folder: Any, last: int) -> None:
    engine = load(folder, PLAIN)
    (sequence,) = served(engine, request("r", prompt(30, 2)))
    auditor, free = auditor_of(engine), engine._loaded.cache.num_free_pages
    num_units = 0

    def count(_unit: int) -> None:
        nonlocal num_units
        num_units += 1
        if num_units == last:
            auditor.preempt()

    hooks(engine).on_unit = count
    assert audit(auditor, sequence) is None
    assert num_units == last, "no layer ran after the preemption"
    assert auditor.has_pending
    assert engine._loaded.cache.num_free_pages == free
    assert len(run(engine, [request("new", prompt(9, 1))])) == 1
    assert auditor.run() == Audited(24, 0)


def test_a_check_preempted_before_it_begins_does_not_begin(folder: Any) -> None:
    engine = load(folder, PLAIN)
    (sequence,) = served(engine, request("r", prompt(30, 2)))
    auditor = auditor_of(engine)
    auditor.preempt()
    assert audit(auditor, sequence) is None
    assert auditor.run() == Audited(24, 0), "the next check is not preempted by an old request"


def test_an_answer_that_does_not_fit_the_free_pages_is_dropped(folder: Any) -> None:
    engine = load(folder, PLAIN)
    (sequence,) = served(engine, request("r", prompt(100, 2)))
    auditor, cache = auditor_of(engine), engine._loaded.cache
    taken = cache.open([])
    assert cache.reserve(taken, cache.num_free_pages * 64)
    assert audit(auditor, sequence) is None
    assert not auditor.has_pending
    cache.close(taken)


def test_weights_that_cannot_be_read_drop_one_check(
    folder: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = load(folder, PLAIN)
    (sequence,) = served(engine, request("r", prompt(30, 2)))
    auditor = auditor_of(engine)

    def broken(*_: Any) -> None:
        raise ModelError("unit 1 cannot be read")

    with monkeypatch.context() as patch:
        patch.setattr(engine._loaded.decoder, "forward", broken)
        assert audit(auditor, sequence) is None
    assert not auditor.has_pending
    assert "unit 1 cannot be read" in caplog.text
    assert audit(auditor, sequence) == Audited(24, 0)


def test_a_mismatch_is_logged_without_text_of_the_answer(
    folder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    engine = load(folder, PLAIN)
    (sequence,) = served(engine, request("my-request", prompt(30, 4)))
    auditor = auditor_of(engine)
    audit(auditor, sequence)
    assert caplog.records == []
    audit(auditor, changed_answer(sequence, -1))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "Audit of my-request, choice 0: plain decoding chooses 1 of 24 tokens differently"
    )


# -- which answers are audited


@pytest.fixture
def engine(folder: Any) -> Engine:
    return load(folder, PLAIN)


def kept(engine: Engine, share: float, names: range) -> list[str]:
    auditor = auditor_of(engine, share)
    found = []
    for number in names:
        before = len(auditor._waiting)
        auditor.offer(make_sequence([3, 4], name=f"r{number}"))
        if len(auditor._waiting) > before:
            found.append(f"r{number}")
        auditor._waiting.clear()
    return found


def test_the_audited_share_consists_of_the_same_answers_in_each_run(engine: Engine) -> None:
    names = range(2000)
    assert kept(engine, 0.0, names) == []
    assert len(kept(engine, 1.0, names)) == 2000
    tenth = kept(engine, 0.1, names)
    assert 150 < len(tenth) < 250
    assert kept(engine, 0.1, names) == tenth


def test_the_number_of_waiting_answers_is_bounded(engine: Engine) -> None:
    auditor = auditor_of(engine)
    for number in range(MAX_WAITING + 5):
        auditor.offer(make_sequence([3, 4], name=f"r{number}"))
    waiting = [sequence.request_id for sequence in auditor._waiting]
    assert len(waiting) == MAX_WAITING
    assert waiting[-1] == f"r{MAX_WAITING + 4}"


# -- fast numerics

TOLERANCE = TOLERANCES[torch.float32]


def agrees(engine: Engine, logits: list[float], token: int, **params: Any) -> bool:
    sequence = make_sequence([3, 4], **params)
    sequence.tokens.append(token)
    return auditor_of(engine)._matches(sequence, TokenCounts([3, 4]), None, 2, torch.tensor(logits))


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"temperature": 0.7, "top_k": 1}])
def test_fast_numerics_accept_a_near_tie_only(folder: Any, params: dict[str, Any]) -> None:
    fast, strict = load(folder, PLAIN, numerics="fast"), load(folder, PLAIN)
    near, far = [1.0, 1.0 + TOLERANCE / 2, 0.0], [1.0, 1.0 + TOLERANCE * 2, 0.0]
    assert agrees(fast, near, 0, **params)
    assert not agrees(fast, far, 0, **params)
    assert not agrees(strict, near, 0, **params)


@pytest.mark.parametrize(
    ("near", "far", "params"),
    [
        # Token 1 is just outside, then clearly outside of the tokens that the rule keeps.
        ([2.0, 1.0, 1.0002], [2.0, 1.0, 1.01], {"top_k": 2}),
        ([0.0, -2.1990, -9.0], [0.0, -2.4, -9.0], {"top_p": 0.9}),
        ([0.0, -2.3030, -9.0], [0.0, -2.4, -9.0], {"min_p": 0.1}),
    ],
)
def test_fast_numerics_accept_a_token_near_the_threshold_of_a_rule(
    folder: Any, near: list[float], far: list[float], params: dict[str, Any]
) -> None:
    fast = load(folder, PLAIN, numerics="fast")
    # With this seed's noise token 1 is chosen if the rule keeps it.
    params |= {"temperature": 1.0, "seed": _seed_for(near)}
    assert agrees(fast, near, 1, **params)
    assert not agrees(fast, far, 1, **params)
    assert not agrees(load(folder, PLAIN), near, 1, **params)


def _seed_for(logits: list[float]) -> int:
    tokens = torch.arange(3)
    for seed in range(1000):
        noisy = torch.tensor(logits) + gumbel(seed, 0, 2, tokens)
        if int(noisy.argmax()) == 1 and noisy.topk(2).values.diff().abs() > 0.5:
            return seed
    raise AssertionError("no seed lets token 1 win")
