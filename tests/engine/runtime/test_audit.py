"""The audit passes what plain decoding would have emitted, and counts what it would not."""

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
from engine.sequences.sequence import Request, Sequence
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
    "min_tokens": {  # without the ban its first token would be the last
        "ignore_eos": False,
        "min_tokens": 5,
        "stop_token_ids": (5,),
        "logit_bias": ((5, 100.0),),
    },
}


def auditor_of(engine: Engine, share: float = 1.0, max_rows: int = 4096) -> Auditor:
    plan = replace(engine._loaded.plan, max_rows=max_rows)
    return Auditor(replace(engine._loaded, audit=share, plan=plan))


def finished(engine: Engine, message: Generate, ids: list[int], choice: int = 0) -> Sequence:
    """A choice of a request that got these tokens."""
    asked = Request(message, engine._loaded.limits)
    sequence = Sequence(asked, choice, engine._loaded.stop_rules(message))
    sequence.tokens += ids
    return sequence


def served(engine: Engine, message: Generate) -> list[Sequence]:
    answers = run(engine, [message])
    return [finished(engine, message, answers[key].ids, key[1]) for key in sorted(answers)]


def audit(auditor: Auditor, sequence: Sequence) -> Audited | None:
    auditor.offer(sequence)
    return auditor.run()


def tampered(sequence: Sequence, place: int = -4) -> Sequence:
    """The same choice with another token at a place of the answer."""
    token = 3 + (sequence.tokens[place] + 50) % 120
    sequence.tokens[place] = token
    return sequence


@pytest.fixture(scope="module")
def folder() -> Any:
    return checkpoint("llama")


@pytest.mark.parametrize("numerics", ["strict", "fast"])
def test_answers_as_plain_decoding_gives_them_have_no_mismatch(folder: Any, numerics: str) -> None:
    engine = load(folder, SUBSPEC, numerics=numerics)
    auditor = auditor_of(engine)
    for name, params in SAMPLINGS.items():
        for sequence in served(engine, request(name, prompt(70, 2), n=2, **params)):
            answer = len(sequence.tokens) - 70
            assert audit(auditor, sequence) == Audited(answer, 0), (name, sequence.choice)
    assert not auditor.has_pending


@pytest.mark.parametrize("numerics", ["strict", "fast"])
def test_a_tampered_answer_is_counted(folder: Any, numerics: str) -> None:
    engine = load(folder, SUBSPEC, numerics=numerics)
    auditor = auditor_of(engine)
    for name, params in SAMPLINGS.items():
        if name == "min_tokens":
            continue  # its answer may be short
        (sequence,) = served(engine, request(name, prompt(30, 4), **params))
        found = audit(auditor, tampered(sequence))
        assert found is not None and found.mismatches >= 1, name


def test_only_the_tampered_token_and_what_follows_from_it_are_counted(folder: Any) -> None:
    engine = load(folder, PLAIN)
    (sequence,) = served(engine, request("r", prompt(30, 4)))
    assert audit(auditor_of(engine), tampered(sequence, -1)) == Audited(24, 1)


@pytest.mark.parametrize(
    ("params", "other"),
    [
        ({"temperature": 1.0, "seed": 5}, {"seed": 6}),
        ({"temperature": 1.0, "seed": 5}, {"temperature": 0.3}),
        ({"temperature": 0.0}, {"logit_bias": ((9, 50.0),)}),
        ({"temperature": 0.0}, {"frequency_penalty": 2.0}),
    ],
)
def test_an_answer_to_other_parameters_is_counted(
    folder: Any, params: dict[str, Any], other: dict[str, Any]
) -> None:
    engine = load(folder, PLAIN)
    message = request("r", prompt(30, 4), **params)
    (sequence,) = served(engine, message)
    changed = replace(message, params=replace(message.params, **other))
    found = audit(auditor_of(engine), finished(engine, changed, sequence.tokens[30:]))
    assert found is not None and found.mismatches > 0


def test_a_choice_under_anothers_noise_is_counted(folder: Any) -> None:
    engine = load(folder, PLAIN)
    message = request("r", prompt(30, 4), n=2, temperature=1.0, seed=3)
    first, second = served(engine, message)
    found = audit(auditor_of(engine), finished(engine, message, second.tokens[30:], choice=0))
    assert first.tokens != second.tokens
    assert found is not None and found.mismatches > 0


def test_a_prefix_that_was_stored_wrong_comes_to_light(folder: Any) -> None:
    """The audit takes nothing from the prefix cache: it would repeat the mistake."""
    engine = load(folder, PLAIN)
    asked = prompt(200, 7)
    served(engine, request("stores", asked))
    with torch.inference_mode():
        engine._loaded.cache.pool.keys.neg_()
    (sequence,) = served(engine, request("reads", asked))
    found = audit(auditor_of(engine), sequence)
    assert found is not None and found.mismatches > 0


def test_an_answer_that_crosses_the_ropes_border_is_checked_on_both_sides() -> None:
    engine = load(checkpoint("phi3_longrope"), SUBSPEC)
    auditor = auditor_of(engine)
    for length in (10, 28, 50):  # the frequencies change at 32 tokens
        (sequence,) = served(engine, request("r", prompt(length, 3)))
        assert audit(auditor, sequence) == Audited(24, 0), length
        assert audit(auditor, tampered(sequence, -1)) == Audited(24, 1), length


@pytest.mark.parametrize("max_rows", [64, 100, 4096])
def test_a_long_answer_is_walked_within_the_bound_of_a_pass(folder: Any, max_rows: int) -> None:
    engine = load(folder, PLAIN)
    (sequence,) = served(engine, request("r", prompt(150, 2), max_tokens=130))
    auditor = auditor_of(engine, max_rows=max_rows)
    assert audit(auditor, sequence) == Audited(130, 0)
    assert audit(auditor, tampered(sequence, -1)) == Audited(130, 1)


# -- beside requests


@pytest.mark.parametrize("border", [1, 2, 4])
def test_a_newcomer_ends_a_check_at_the_next_border_and_it_is_tried_again(
    folder: Any, border: int
) -> None:
    engine = load(folder, PLAIN)
    (sequence,) = served(engine, request("r", prompt(30, 2)))
    auditor, free = auditor_of(engine), engine._loaded.cache.num_free_pages
    borders = 0

    def count(_unit: int) -> None:
        nonlocal borders
        borders += 1
        if borders == border:
            auditor.preempt()

    hooks(engine).on_unit = count
    assert audit(auditor, sequence) is None
    assert borders == border, "no layer was run after it"
    assert auditor.has_pending
    assert engine._loaded.cache.num_free_pages == free
    assert len(run(engine, [request("newcomer", prompt(9, 1))])) == 1
    assert auditor.run() == Audited(24, 0)


def test_a_check_that_was_preempted_before_it_began_does_not_begin(folder: Any) -> None:
    engine = load(folder, PLAIN)
    (sequence,) = served(engine, request("r", prompt(30, 2)))
    auditor = auditor_of(engine)
    auditor.preempt()
    assert audit(auditor, sequence) is None
    assert auditor.run() == Audited(24, 0), "the next one is not disturbed by an old request"


def test_an_answer_without_room_in_the_free_pages_is_dropped(folder: Any) -> None:
    engine = load(folder, PLAIN)
    (sequence,) = served(engine, request("r", prompt(100, 2)))
    auditor, cache = auditor_of(engine), engine._loaded.cache
    taken = cache.open([])
    assert cache.reserve(taken, cache.num_free_pages * 64)
    assert audit(auditor, sequence) is None
    assert not auditor.has_pending
    cache.close(taken)


def test_weights_that_cannot_be_read_cost_one_check(
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


def test_a_mismatch_is_told_without_any_text(folder: Any, caplog: pytest.LogCaptureFixture) -> None:
    engine = load(folder, PLAIN)
    (sequence,) = served(engine, request("my-request", prompt(30, 4)))
    auditor = auditor_of(engine)
    audit(auditor, sequence)
    assert caplog.records == []
    audit(auditor, tampered(sequence, -1))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "audit of my-request, choice 0: 1 of 24 tokens are not what plain decoding chooses"
    )


# -- which are kept


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


def test_the_share_is_kept_and_the_same_ones_in_every_run(engine: Engine) -> None:
    names = range(2000)
    assert kept(engine, 0.0, names) == []
    assert len(kept(engine, 1.0, names)) == 2000
    tenth = kept(engine, 0.1, names)
    assert 150 < len(tenth) < 250
    assert kept(engine, 0.1, names) == tenth


def test_the_number_that_wait_is_bound(engine: Engine) -> None:
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
def test_fast_numerics_allow_a_near_tie_and_no_more(folder: Any, params: dict[str, Any]) -> None:
    fast, strict = load(folder, PLAIN, numerics="fast"), load(folder, PLAIN)
    near, far = [1.0, 1.0 + TOLERANCE / 2, 0.0], [1.0, 1.0 + TOLERANCE * 2, 0.0]
    assert agrees(fast, near, 0, **params)
    assert not agrees(fast, far, 0, **params)
    assert not agrees(strict, near, 0, **params)


@pytest.mark.parametrize(
    ("near", "far", "params"),
    [
        # token 1 is just outside, then clearly outside of what the rule keeps
        ([2.0, 1.0, 1.0002], [2.0, 1.0, 1.01], {"top_k": 2}),
        ([0.0, -2.1990, -9.0], [0.0, -2.4, -9.0], {"top_p": 0.9}),
        ([0.0, -2.3030, -9.0], [0.0, -2.4, -9.0], {"min_p": 0.1}),
    ],
)
def test_fast_numerics_allow_a_token_at_the_border_of_a_rule(
    folder: Any, near: list[float], far: list[float], params: dict[str, Any]
) -> None:
    fast = load(folder, PLAIN, numerics="fast")
    # a seed whose noise makes token 1 win if it is kept
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
