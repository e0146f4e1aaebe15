"""Tests that the grammars of the front end accept exactly the intended texts."""

import json
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from server.chat.grammar_tags import with_json_form
from server.chat.grammars import Passage, allow_thinking, passages_grammar, serialize_grammar

DEMO = Path(__file__).parents[3] / "configs/demo/target/tokenizer.json"
TOKENS = {"<tool_call>": 4090, "</tool_call>": 4091, "</think>": 4089}

ADD: dict[str, Any] = {
    "type": "object",
    "properties": {"x": {"type": "integer"}},
    "required": ["x"],
    "additionalProperties": False,
}
CALL = '<tool_call>\n{"name": "add", "arguments": {"x": 12}}\n</tool_call>'
TIME = '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'


@pytest.fixture(scope="module")
def tokenizer() -> LLTokenizer:
    return LLTokenizer(DEMO.read_text())


def accepts(tokenizer: LLTokenizer, grammar: str, text: str, *, spelled: bool = False) -> bool:
    """Return whether a text is a whole answer; `spelled`: tags are spelled without their tokens."""
    matcher = LLMatcher(tokenizer, grammar)
    assert not matcher.is_error(), matcher.get_error()
    pieces = text.replace("<", "<\0").split("\0") if spelled else [text]
    ids = [token for piece in pieces for token in tokenizer.tokenize_str(piece)]
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def tools(**rules: Any) -> str:
    kinds = [
        Passage('<tool_call>\n{"name": "add", "arguments": ', ADD, "}\n</tool_call>"),
        Passage(
            '<tool_call>\n{"name": "time", "arguments": ', {"type": "object"}, "}\n</tool_call>"
        ),
    ]
    return passages_grammar(kinds, separator="\n", tokens=TOKENS, **rules)


TEXTS = (
    "",
    "hello",
    CALL,
    f"{CALL}\n{TIME}",
    f"hello {CALL}",
    f"hello {CALL}and{TIME}\n",
    f"{CALL}!",
)
# ((at_least_one, several, free_text), the texts that match; all other ones of TEXTS do not)
RULES: list[tuple[tuple[bool, bool, bool], set[str]]] = [
    ((False, False, False), {"", CALL}),
    ((False, True, False), {"", CALL, f"{CALL}\n{TIME}"}),
    ((True, False, False), {CALL}),
    ((True, True, False), {CALL, f"{CALL}\n{TIME}"}),
    ((False, False, True), {"", "hello", CALL, f"hello {CALL}"}),
    ((True, False, True), {CALL, f"hello {CALL}"}),
    ((True, True, True), set(TEXTS) - {"", "hello"}),
    ((False, True, True), set(TEXTS)),
]


@pytest.mark.parametrize(("rules", "right"), RULES)
def test_a_grammar_of_passages_accepts_exactly_its_texts(
    tokenizer: LLTokenizer, rules: tuple[bool, bool, bool], right: set[str]
) -> None:
    at_least_one, several, free_text = rules
    grammar = tools(at_least_one=at_least_one, several=several, free_text=free_text)
    assert {text for text in TEXTS if accepts(tokenizer, grammar, text)} == right


@pytest.mark.parametrize("spelled", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        CALL.replace("12", "true"),
        CALL.replace("add", "other"),
        CALL.replace("\n</tool_call>", ""),
        "hello <tool_call>",
        f"{CALL}<tool_call>",
    ],
)
def test_a_begin_tag_in_free_text_makes_a_passage_obligatory(
    tokenizer: LLTokenizer, text: str, spelled: bool
) -> None:
    grammar = tools(at_least_one=False, several=True, free_text=True)
    assert accepts(tokenizer, grammar, "a < b <tool", spelled=spelled)
    assert not accepts(tokenizer, grammar, text, spelled=spelled)


def test_tags_without_tokens_are_spelled_out(tokenizer: LLTokenizer) -> None:
    kinds = [
        Passage('{"name": "f", "parameters": ', ADD, "}"),
        Passage('{"name": "fé", "parameters": ', {"type": "object"}, "}"),
    ]
    grammar = passages_grammar(
        kinds, at_least_one=True, several=True, free_text=False, separator="; "
    )
    one, other = '{"name": "f", "parameters": {"x": 1}}', '{"name": "fé", "parameters": {"x": "y"}}'
    assert accepts(tokenizer, grammar, one) and accepts(tokenizer, grammar, f"{other}; {one}")
    assert not accepts(tokenizer, grammar, one + other)


@pytest.mark.parametrize(
    ("inner", "right", "wrong"),
    [
        (serialize_grammar(json_schema=with_json_form(ADD)), '{"x": 1}', "x"),
        (serialize_grammar(lark_grammar='start: "yes" | "no"'), "yes", "maybe"),
        (tools(at_least_one=True, several=False, free_text=False), CALL, "hello"),
    ],
)
def test_thinking_is_free_but_the_answer_follows_the_grammar(
    tokenizer: LLTokenizer, inner: str, right: str, wrong: str
) -> None:
    grammar = allow_thinking(inner, "</think>", TOKENS)
    for reasoning in ("</think>", "so 1 < 2\n</think>\n\n"):
        for spelled in (False, True):
            whole = reasoning + right
            if spelled and right == CALL:
                continue  # this grammar requires the token of the tag
            assert accepts(tokenizer, grammar, whole, spelled=spelled)
            assert not accepts(tokenizer, grammar, reasoning + wrong, spelled=spelled)
    assert not accepts(tokenizer, grammar, right)


def test_json_can_be_written_in_one_way_only(tokenizer: LLTokenizer) -> None:
    value = {"a": [1, {"b": "c d"}], "e": None}
    grammar = serialize_grammar(json_schema=with_json_form({"type": "object"}))
    assert accepts(tokenizer, grammar, json.dumps(value))
    assert not accepts(tokenizer, grammar, json.dumps(value, indent=1))
