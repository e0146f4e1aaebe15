"""Forced calls in every format: the grammar's answers are read as calls that match the schema."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker
from tokenizers import Tokenizer

from engine.parsing.parser import merge
from engine.parsing.selection import Formats, known_formats
from engine.sampling.grammar.grammar import Grammars
from server.chat.answer_grammar import calls_grammar
from server.chat.tools import tool_use
from server.schemas.chat import ChatRequest
from tests.server.chat.random_tools import (
    DEMO,
    PATTERN_ENDS,
    STRING_FORMATS,
    DemoModel,
    Random,
    decoded,
    new_grammars,
    random_answer,
    shown,
    vocabulary,
)

FORMATS = [name for name, known in known_formats().items() if known.syntax is not None]
FEW, MANY = 2, 200
MODELLED = 5  # tools that the demo's model calls in each format
ATTEMPTS = 10  # to get an answer that ends
# Python has no year 0, so it refuses some of the dates that the standard allows.
CHECKED = FormatChecker(["uuid", "ipv4", "ipv6", "email", "regex"])


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
        ends += [text for text in texts if "{key}" not in text]
    marks = [end for end in dict.fromkeys([*ends, '"', "}", "]", ")", '": ', "=1"]) if end]
    return [text + end for end in marks for text in ("", *PATTERN_ENDS)]


def forced(
    name: str, tokenizer: Tokenizer, schema: dict[str, Any], *, is_parallel: bool
) -> tuple[Mapping[str, Any], str]:
    """Return the tools by name, of which one has this schema, and the grammar of forced calls."""
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": schema}}]
    body = {"messages": [{"role": "user", "content": "x"}], "tools": tools}
    request = ChatRequest.model_validate(
        body | {"tool_choice": "required", "parallel_tool_calls": is_parallel}
    )
    use = tool_use(request)
    added = {t.content: i for i, t in tokenizer.get_added_tokens_decoder().items()}
    return use.schemas, calls_grammar(use, Formats(known_formats()[name], None), added)


def check(name: str, tokenizer: Tokenizer, grammars: Grammars, seed: int) -> None:
    """Assert that an answer of random tokens is a call that matches its random tool."""
    schema = Random(seed).tool()
    tools, grammar = forced(name, tokenizer, schema, is_parallel=seed % 4 == 0)
    ends = [tokenizer.encode(end, add_special_tokens=False).ids for end in ends_of(name, schema)]
    answers = (
        random_answer(grammars, grammar, ends, seed + attempt * 1000) for attempt in range(ATTEMPTS)
    )
    ids = next(ids for ids, has_ended in answers if has_ended)
    assert check_text(name, schema, tools, decoded(tokenizer, ids), has_ended=True)


def check_text(
    name: str, schema: dict[str, Any], tools: Mapping[str, Any], text: str, *, has_ended: bool
) -> int:
    """Assert that a text has only calls that match the schema, and return their number.

    The last call of a text that has not ended need not match it.
    """
    parser = known_formats()[name].parser(tools, before_of(name))
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
    assert calls or not has_ended, (shown(schema), text)
    for arguments in calls:
        assert isinstance(json.loads(arguments), dict), (text, arguments)
    validator = Draft202012Validator(schema, format_checker=CHECKED)
    for arguments in calls if has_ended else calls[:-1]:
        errors = list(validator.iter_errors(json.loads(arguments)))
        assert not errors, (errors[0].message, shown(schema), text, arguments)
    return len(calls)


@pytest.mark.parametrize("name", FORMATS)
def test_random_calls_are_read_and_match(
    tokenizer: Tokenizer, grammars: Grammars, name: str
) -> None:
    for seed in range(FEW):
        check(name, tokenizer, grammars, seed)


@pytest.mark.parametrize("string_format", STRING_FORMATS)
def test_formats_of_strings_are_forced_in_raw_text(
    tokenizer: Tokenizer, grammars: Grammars, string_format: str
) -> None:
    schema = {
        "type": "object",
        "properties": {"key": {"type": "string", "format": string_format}},
        "required": ["key"],
        "additionalProperties": False,
    }
    _, grammar = forced("qwen3_coder", tokenizer, schema, is_parallel=False)
    assert not grammars.compile(grammar).is_accepting()


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FORMATS)
def test_many_random_calls_are_read_and_match(
    tokenizer: Tokenizer, grammars: Grammars, name: str
) -> None:
    for seed in range(FEW, FEW + MANY):
        check(name, tokenizer, grammars, seed)


@pytest.mark.parametrize(
    ("seed", "names"),
    [
        pytest.param(0, FORMATS[::4], marks=pytest.mark.slow, id="0 in some formats"),
        *(
            pytest.param(seed, FORMATS, marks=pytest.mark.long, id=str(seed))
            for seed in range(MODELLED)
        ),
    ],
)
def test_calls_of_the_demo_model_are_read_and_match(seed: int, names: list[str]) -> None:
    tokenizer = Tokenizer.from_file(str(DEMO))
    grammars, model = new_grammars(tokenizer), DemoModel(tokenizer)
    num_ended = 0
    for name in names:
        schema = Random(seed).tool()
        tools, grammar = forced(name, tokenizer, schema, is_parallel=seed % 4 == 0)
        ids, has_ended = model.answer(grammars, grammar, seed)
        # The limit of tokens may cut a character of a mark into bytes, which no parser knows.
        text = decoded(tokenizer, ids).rstrip("\N{REPLACEMENT CHARACTER}")
        check_text(name, schema, tools, text, has_ended=has_ended)
        num_ended += has_ended
    assert num_ended > 0  # this small model goes on with many texts for ever
