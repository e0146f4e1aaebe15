"""The check of a grammar without the model's vocabulary."""

import pytest

from engine.sampling.grammar.check import MAX_CHARACTERS, GrammarChecker
from tests.engine.grammars import lark, schema_grammar

ADDED = {"<tool>": 5, "[X]": 7, "</s>": 998}
VOCAB_SIZE = 1000


@pytest.fixture(scope="module")
def checker() -> GrammarChecker:
    return GrammarChecker(ADDED, VOCAB_SIZE)


@pytest.mark.parametrize(
    "source",
    [
        lark('start: "é" <tool> TEXT </s>', "TEXT: /(?s:.)*/"),
        lark('start: ("[X]" | <[7]>) <[999]>'),
        schema_grammar({"type": "object", "properties": {"a": {"type": "string"}}}),
        schema_grammar({"properties": {f"key {i}": {"type": "string"} for i in range(300)}}),
    ],
)
def test_a_grammar_that_compiles_has_no_reason_against_it(
    checker: GrammarChecker, source: str
) -> None:
    assert checker.reason(source) is None


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (lark("start: ("), "Expected token"),
        (lark("start: <nobody>"), "unknown special token"),
        (lark(f"start: <[{VOCAB_SIZE}]>"), "range end too large"),
        (lark("start: A", "A: /a/ & /b/"), "matches no text"),
        (lark("start: " + " | ".join(f'A "{i}"' for i in range(5000)), "A: /a/"), "size"),
        (lark('start: "' + "a" * MAX_CHARACTERS + '"'), f"at most {MAX_CHARACTERS} are allowed"),
    ],
)
def test_the_reason_against_a_grammar_is_returned(
    checker: GrammarChecker, source: str, reason: str
) -> None:
    assert reason in (checker.reason(source) or "")
