"""Tests of answers with a grammar: they match it, and drafts do not change them."""

import json
import random
import re
from dataclasses import replace
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from engine.errors import RequestError
from engine.messages import Generate, Speculation
from engine.runtime.choices import MIN_LIKELIHOOD
from engine.spec import DraftSpec
from tests.engine.grammars import (
    EOS,
    ids,
    json_checkpoint,
    lark,
    random_schema,
    schema_grammar,
)
from tests.engine.models import PLAIN, SMALL, SUBSPEC, Answer, alone, exact, load, request, run
from tests.variations import variations

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
GRAMMARS = {
    "person": schema_grammar(PERSON),
    "object": schema_grammar({"type": "object"}),
    "number": schema_grammar({"type": "number"}),
    "regex": lark("start: /[a-f]{3,9}-[0-9]+/"),
    "choice": lark('start: "red" | "green" | "a b c"'),
    "free": lark("start: /(?s:.)*/"),
}
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"logprobs": 2},
    "hot": {"temperature": 1.0, "seed": 1, "logprobs": 0},
    "cut": {"temperature": 0.8, "seed": 2, "top_p": 0.7, "top_k": 9, "min_p": 0.02},
    "penalties": {
        "temperature": 0.7,
        "seed": 3,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.4,
    },
    "bias": {
        "temperature": 1.0,
        "seed": 4,
        "logit_bias": ((40, 4.0), (3, -100.0)),
        "min_tokens": 9,
    },
    "stops": {"temperature": 1.0, "seed": 5, "stop": ('"age', "e"), "stop_token_ids": (33,)},
    "no end": {"temperature": 1.0, "seed": 6, "ignore_eos": True},
}
OTHERS = {("number", "no end"), ("object", "hot"), ("regex", "stops"), ("free", "penalties")}
DRAFTS = {
    "subspec": SUBSPEC,
    "noise": DraftSpec("specexec", source=str(json_checkpoint(seed=9, layers=1)), **SMALL),
    "ngram": DraftSpec("ngram"),
    "recycling": DraftSpec("recycling"),
}


def asked() -> list[Generate]:
    prompt = ids('give {"name": "abc", "age": 12, "tags": ["red"]}')
    return [
        request(
            f"{grammar} {how}",
            prompt,
            n=2 if how == "hot" else 1,
            grammar=source,
            **{"max_tokens": 40, "ignore_eos": False, **params},
        )
        for grammar, source in GRAMMARS.items()
        for how, params in SAMPLINGS.items()
        if grammar == "person" or how in ("greedy", "bias") or (grammar, how) in OTHERS
    ]


@pytest.fixture(scope="module")
def want() -> dict[tuple[str, int], Answer]:
    engine = load(json_checkpoint(), PLAIN)
    answers = alone(engine, asked())
    engine.close()
    return answers


@pytest.mark.parametrize(
    ("draft", "chance"),
    variations(
        [*((draft, MIN_LIKELIHOOD) for draft in DRAFTS), ("subspec", 1e-9)],
        quick=[("subspec", MIN_LIKELIHOOD), ("noise", MIN_LIKELIHOOD)],
    ),
)
def test_no_draft_changes_an_answer(
    draft: str,
    chance: float,
    want: dict[tuple[str, int], Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "engine.runtime.choices.MIN_LIKELIHOOD", chance
    )  # of a row that is chosen ahead
    engine = load(json_checkpoint(), DRAFTS[draft], max_sequences=8)
    predicted = tuple(ids('{"name": "abc", "age": 1, "tags": ["red", "green"]}'))
    messages = [replace(message, prediction=predicted) for message in asked()]
    got = run(engine, messages)
    assert exact(got) == exact(want)
    assert engine._cache.num_free_pages == engine._cache.num_pages


def matches(name: str, text: str) -> bool:
    if name in ("person", "object", "number"):
        schema = {"person": PERSON, "object": {"type": "object"}, "number": {"type": "number"}}
        return bool(Draft202012Validator(schema[name]).is_valid(json.loads(text)))
    patterns = {"regex": "[a-f]{3,9}-[0-9]+", "choice": "red|green|a b c", "free": "(?s:.)*"}
    return re.fullmatch(patterns[name], text) is not None


@pytest.mark.parametrize("draft", variations(["subspec", "ngram"], quick=["ngram"]))
def test_an_answer_is_the_same_if_its_grammar_leaves_no_time_for_drafts(
    draft: str, want: dict[tuple[str, int], Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.sampling.grammar.constraint.DRAFT_SECONDS", 0.0)
    engine = load(json_checkpoint(), DRAFTS[draft], max_sequences=8)
    got = run(engine, asked())
    assert {name: answer.ids for name, answer in got.items()} == {
        name: answer.ids for name, answer in want.items()
    }
    assert not any(answer.stats.accepted for answer in got.values() if answer.stats)


def test_every_answer_matches_its_grammar(want: dict[tuple[str, int], Answer]) -> None:
    for (name, _), answer in want.items():
        grammar, how = name.split(" ", 1)
        if how != "stops":
            assert matches(grammar, answer.text), (name, answer.text)
            assert answer.finish == "stop", name
            assert len(answer.ids) <= 40


def test_stop_strings_work_inside_a_grammar(want: dict[tuple[str, int], Answer]) -> None:
    for (name, _), answer in want.items():
        if name.endswith("stops"):
            assert "e" not in answer.text and '"age' not in answer.text
            assert answer.finish == "stop"


def test_the_grammar_overrides_min_tokens_and_bias(want: dict[tuple[str, int], Answer]) -> None:
    assert want["choice bias", 0].text in ("red", "green", "a b c")
    assert len(want["number bias", 0].ids) >= 9, "a number may go on"
    assert EOS not in want["person greedy", 0].ids, "nothing may follow: no token says so"


def test_an_answer_is_completed_before_its_token_limit() -> None:
    engine = load(json_checkpoint(), SUBSPEC, max_sequences=8)
    shortest = len(ids('{"name": "", "age": 0, "tags": []}'))
    params: dict[str, Any] = {"grammar": GRAMMARS["person"], "temperature": 1.0, "n": 2}
    messages = [
        request(str(most), ids("go"), max_tokens=most, seed=most, **params)
        for most in (1, shortest - 1, *range(shortest, shortest + 12, 2), 60)
    ]
    for (name, _), answer in run(engine, messages).items():
        most = int(name)
        assert answer.finish == ("stop" if most >= shortest else "length"), (most, answer.text)
        assert len(answer.ids) <= most
        assert answer.finish == "length" or matches("person", answer.text)


def test_an_answer_is_completed_before_the_end_of_the_context() -> None:
    engine = load(json_checkpoint(), PLAIN, context_length=64)
    message = request(
        "r", ids("a" * 20), grammar=GRAMMARS["object"], max_tokens=None, temperature=1.0, seed=4
    )
    (answer,) = run(engine, [message]).values()
    assert answer.finish == "stop"
    assert isinstance(json.loads(answer.text), dict)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("nonsense", "Expected token"),
        (lark("start: nobody"), "nobody"),
        (lark("start: <nobody>"), "nobody"),
        (lark("start: A", "A: /a/ & /b/"), "no text"),
        (schema_grammar({"type": "foo"}), "foo"),
        (schema_grammar({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}), "no text"),
    ],
)
def test_a_grammar_that_cannot_be_followed_is_refused(source: str, reason: str) -> None:
    engine = load(json_checkpoint(), PLAIN)
    with pytest.raises(RequestError, match=reason) as refused:
        engine.add(request("r", ids("go"), grammar=source))
    assert refused.value.code == "invalid_grammar"
    assert not engine.has_work() and not engine._requests._by_id


def test_forced_tokens_are_accepted_without_a_draft() -> None:
    schema = {"const": {"abcabcabcabc": "defdefdef", "def": [1, 2, 3, 4, 5]}}
    engine = load(json_checkpoint(), replace(DRAFTS["ngram"], depth=24, budget=32, tuned=False))
    message = request("r", ids("go"), grammar=schema_grammar(schema), max_tokens=80)
    (answer,) = run(engine, [message]).values()
    assert json.loads(answer.text) == schema["const"] and answer.stats is not None
    assert answer.stats.passes <= 4 < len(answer.ids) / 4
    assert answer.stats.accepted >= 30
    plain = replace(message, request_id="p", speculation=Speculation("none"))
    (one_by_one,) = run(engine, [plain]).values()
    assert one_by_one.stats is not None and one_by_one.stats.drafted == 0
    assert one_by_one.exact == answer.exact


def test_answers_match_random_schemas() -> None:
    engine = load(json_checkpoint(), SUBSPEC, max_sequences=8)
    chance = random.Random(7)
    schemas = [random_schema(chance) for _ in range(20)]
    messages = [
        request(
            str(i),
            ids("go"),
            grammar=schema_grammar(schema),
            temperature=1.0,
            seed=i,
            max_tokens=250,
        )
        for i, schema in enumerate(schemas)
    ]
    for (name, _), answer in run(engine, messages).items():
        assert answer.finish == "stop", (schemas[int(name)], answer.text)
        assert Draft202012Validator(schemas[int(name)]).is_valid(json.loads(answer.text)), name


def test_the_audit_finds_no_mismatch_in_answers_with_grammars() -> None:
    engine = load(json_checkpoint(), SUBSPEC, audit=1.0)
    names = ("person greedy", "person hot", "object hot", "number no end", "regex stops")
    run(engine, [message for message in asked() if message.request_id in names])
    while engine.auditor.has_pending:
        audited = engine.auditor.run()
        assert audited is not None and audited.positions > 0 and audited.mismatches == 0
