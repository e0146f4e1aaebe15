"""Forced calls in every format: the grammar's answers are read as calls that match the schema."""

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from tokenizers import Tokenizer

from engine.parsing.parser import merge
from engine.parsing.selection import Formats, known_formats
from engine.sampling.grammar.grammar import Grammars
from server.chat.answer_grammar import calls_grammar
from server.chat.tools import tool_use
from server.schemas.chat import ChatRequest
from tests.server.chat.random_tools import (
    PATTERN_ENDS,
    Random,
    decoded,
    new_grammars,
    random_answer,
    shown,
    vocabulary,
)

FORMATS = [name for name, known in known_formats().items() if known.syntax is not None]
FEW, MANY = 2, 200


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return vocabulary()


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return new_grammars(tokenizer)


def before_of(name: str) -> str:
    """What a prompt of this format ends with."""
    return ">>>" if name == "functionary_v32" else ""


def ends_of(name: str, schema: dict[str, Any]) -> list[str]:
    """Return the texts that end a raw string in this format."""
    syntax = known_formats()[name].syntax
    assert syntax is not None
    ends = [syntax.end + syntax.close, syntax.close]
    if syntax.parameters is not None:
        texts = {syntax.parameters.string_end or "", syntax.parameters.end}
        ends += [text.replace("{key}", key) for text in texts for key in schema["properties"]]
    marks = [end for end in dict.fromkeys([*ends, '"', "}", ")", ', "']) if end]
    return [text + end for end in marks for text in ("", *PATTERN_ENDS)]


def check(name: str, tokenizer: Tokenizer, grammars: Grammars, seed: int) -> None:
    """Assert that an answer of random tokens is a call that matches its random tool."""
    schema: dict[str, Any] = Random(seed).tool()
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": schema}}]
    body = {"messages": [{"role": "user", "content": "x"}], "tools": tools}
    request = ChatRequest.model_validate(
        body | {"tool_choice": "required", "parallel_tool_calls": seed % 4 == 0}
    )
    known = known_formats()[name]
    use = tool_use(request)
    added = {t.content: i for i, t in tokenizer.get_added_tokens_decoder().items()}
    grammar = calls_grammar(use, Formats(known, None), added)
    ends = [tokenizer.encode(end, add_special_tokens=False).ids for end in ends_of(name, schema)]
    ids, has_ended = random_answer(grammars, grammar, ends, seed)
    text = decoded(tokenizer, ids)
    parser = known.parser(use.schemas, before_of(name))
    pieces = merge([*parser.feed(text), *parser.finish()])
    calls: list[str] = []
    for piece in pieces:
        if piece.kind == "call":
            assert piece.text == "look_up"
            calls.append("")
        elif piece.kind == "arguments":
            calls[-1] += piece.text
    said = "".join(p.text for p in pieces if p.kind in ("content", "reasoning"))
    assert not said.strip(), (shown(schema), text, calls)
    calls = calls if has_ended else calls[:-1]
    assert calls, (shown(schema), text)
    for arguments in calls:
        errors = list(Draft202012Validator(schema).iter_errors(json.loads(arguments)))
        assert not errors, (errors[0].message, shown(schema), text, arguments)


@pytest.mark.parametrize("name", FORMATS)
def test_random_calls_are_read_and_match(
    tokenizer: Tokenizer, grammars: Grammars, name: str
) -> None:
    for seed in range(FEW):
        check(name, tokenizer, grammars, seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FORMATS)
def test_many_random_calls_are_read_and_match(
    tokenizer: Tokenizer, grammars: Grammars, name: str
) -> None:
    for seed in range(FEW, FEW + MANY):
        check(name, tokenizer, grammars, seed)
