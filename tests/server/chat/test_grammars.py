"""Grammars built by the front end accept exactly the texts they are meant to."""

import json
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from server.chat.grammars import Tagged, after_thinking, in_form, serialized, tagged

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
    """Whether a text is a whole answer; `spelled`: without the tokens of the tags."""
    matcher = LLMatcher(tokenizer, grammar)
    assert not matcher.is_error(), matcher.get_error()
    pieces = text.replace("<", "<\0").split("\0") if spelled else [text]
    ids = [token for piece in pieces for token in tokenizer.tokenize_str(piece)]
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def tools(**rules: Any) -> str:
    kinds = [
        Tagged('<tool_call>\n{"name": "add", "arguments": ', ADD, "}\n</tool_call>"),
        Tagged(
            '<tool_call>\n{"name": "time", "arguments": ', {"type": "object"}, "}\n</tool_call>"
        ),
    ]
    return tagged(kinds, separator="\n", tokens=TOKENS, **rules)


# (at_least_one, several, free_text) -> texts that match; of the others below none does
TEXTS = (
    "",
    "hello",
    CALL,
    f"{CALL}\n{TIME}",
    f"hello {CALL}",
    f"hello {CALL}and{TIME}\n",
    f"{CALL}!",
)
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
def test_tagged_passages(
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
def test_a_begin_tag_in_free_text_commits(tokenizer: LLTokenizer, text: str, spelled: bool) -> None:
    grammar = tools(at_least_one=False, several=True, free_text=True)
    assert accepts(tokenizer, grammar, "a < b <tool", spelled=spelled)
    assert not accepts(tokenizer, grammar, text, spelled=spelled)


def test_tags_without_tokens_are_spelled_out(tokenizer: LLTokenizer) -> None:
    kinds = [
        Tagged('{"name": "f", "parameters": ', ADD, "}"),
        Tagged('{"name": "fé", "parameters": ', {"type": "object"}, "}"),
    ]
    grammar = tagged(kinds, at_least_one=True, several=True, free_text=False, separator="; ")
    one, other = '{"name": "f", "parameters": {"x": 1}}', '{"name": "fé", "parameters": {"x": "y"}}'
    assert accepts(tokenizer, grammar, one) and accepts(tokenizer, grammar, f"{other}; {one}")
    assert not accepts(tokenizer, grammar, one + other)


@pytest.mark.parametrize(
    ("inner", "right", "wrong"),
    [
        (serialized(json_schema=in_form(ADD)), '{"x": 1}', "x"),
        (serialized(lark_grammar='start: "yes" | "no"'), "yes", "maybe"),
        (tools(at_least_one=True, several=False, free_text=False), CALL, "hello"),
    ],
)
def test_thinking_is_free_and_the_answer_is_not(
    tokenizer: LLTokenizer, inner: str, right: str, wrong: str
) -> None:
    grammar = after_thinking(inner, "</think>", TOKENS)
    for thought in ("</think>", "so 1 < 2\n</think>\n\n"):
        for spelled in (False, True):
            whole = thought + right
            if spelled and right == CALL:
                continue  # this grammar means the token
            assert accepts(tokenizer, grammar, whole, spelled=spelled)
            assert not accepts(tokenizer, grammar, thought + wrong, spelled=spelled)
    assert not accepts(tokenizer, grammar, right)


def test_json_is_written_in_one_form(tokenizer: LLTokenizer) -> None:
    value = {"a": [1, {"b": "c d"}], "e": None}
    grammar = serialized(json_schema=in_form({"type": "object"}))
    assert accepts(tokenizer, grammar, json.dumps(value))
    assert not accepts(tokenizer, grammar, json.dumps(value, indent=1))
