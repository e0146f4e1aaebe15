"""Tests of the closing tokens of an answer: they are few, and never lost once known."""

import random
from pathlib import Path

import numpy as np
import pytest

from engine.sampling.grammar.closing import ClosingPath
from engine.sampling.grammar.grammar import Grammar, Grammars
from tests.engine.grammars import lark, schema_grammar

DEMO = Path(__file__).parents[4] / "configs/demo/target/tokenizer.json"
EOS = 2

# A grammar, and the most closing tokens: about those of its shortest text.
CASES = {
    "object": (schema_grammar({"type": "object"}), 2),
    "pattern": (schema_grammar({"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"}), 8),
    "long": (schema_grammar({"type": "string", "minLength": 30}), 32),
    "items": (schema_grammar({"type": "array", "minItems": 5, "items": {"type": "number"}}), 15),
    "either": (schema_grammar({"anyOf": [{"const": "x" * 99}, {"type": "null"}]}), 2),
    "spaced": ('{"grammars": [{"json_schema": {"required": ["a", "b"]}}]}', 12),
    "sentences": (lark("start: /([a-z ]+\\. ){3}/"), 12),
    "ending": (lark('start: /[.!]+/ "END"'), 5),
    "open": (lark("start: /a+/"), 2),
    "special": (lark("start: TEXT <[4089]> /x+/", "TEXT: /(?s:.)*/"), 3),
}


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(DEMO.read_text, 4100, [EOS, 0])


def choose(grammar: Grammar, closing: ClosingPath, room: int, rng: random.Random) -> int:
    """Return a random allowed token after which the answer can be completed."""
    tokens = np.flatnonzero(grammar.allowed()).tolist()
    for token in rng.sample(tokens, min(6, len(tokens))):
        if closing.can_close_after(token, room):
            return int(token)
    assert closing.tokens
    return closing.tokens[0]


@pytest.mark.parametrize("case", CASES)
def test_an_answer_ends_in_time_whichever_tokens_are_chosen(grammars: Grammars, case: str) -> None:
    source, shortest = CASES[case]
    compiled, rng = grammars.compile(source), random.Random(case)
    for limit in (shortest, shortest + 1, shortest + 7, shortest + 30):
        grammar = compiled.copy()
        closing = ClosingPath(grammar)
        for room in reversed(range(limit)):
            token = choose(grammar, closing, room, rng)
            closing.advance(token)
            grammar.consume(token)
            if grammar.is_complete():
                break
        assert grammar.is_complete(), (case, limit)


def test_a_limit_too_small_for_any_answer_has_no_effect(grammars: Grammars) -> None:
    closing = ClosingPath(grammars.compile(CASES["long"][0]))
    assert closing.can_close_after(grammars.tokenizer.tokenize_str('"')[0], 8)
    assert closing.tokens is not None and len(closing.tokens) > 9


def test_padding_and_special_tokens_are_never_allowed(grammars: Grammars) -> None:
    allowed = grammars.compile(lark("start: /(?s:.)*/")).allowed()
    assert allowed[EOS] and not allowed[1] and not allowed[4088:].any()


def test_a_trial_does_not_change_the_grammar(grammars: Grammars) -> None:
    grammar = grammars.compile(CASES["object"][0])
    text = grammars.tokenizer.tokenize_str('{"a": [1, {"b": "c"}], "d": null}')
    for token in text:
        before = grammar.allowed().tolist()
        with grammar.trial([token]) as matches:
            assert matches
            with grammar.trial([EOS]) as ends:
                assert not ends
        assert grammar.allowed().tolist() == before and before[token]
        grammar.consume(token)
    assert grammar.is_complete() and not grammar.forced()
