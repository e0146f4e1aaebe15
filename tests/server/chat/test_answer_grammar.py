"""Tests of forced calls: what their grammars accept, and that parsers read it as calls."""

from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer

from engine.parsing.parser import merge
from engine.parsing.selection import Formats, known_formats
from engine.sampling.grammar.check import GrammarChecker
from server.chat.answer_grammar import answer_grammar, behind_thought, calls_grammar
from server.chat.tools import tool_use
from server.schemas.chat import ChatRequest

DEMO = Path(__file__).parents[3] / "configs/demo/target/tokenizer.json"
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TIME = ("get_time", '{"city": "Paris"}')
NOW = ("now", "{}")
BAD = ("get_time", '{"town": 1}')


@pytest.fixture(scope="module")
def vocabulary() -> Tokenizer:
    """Return the demo's tokenizer with the marks of all formats as added tokens."""
    tokenizer = Tokenizer.from_file(str(DEMO))
    marks = {mark for known in known_formats().values() for mark in known.special_tokens}
    tokenizer.add_tokens([AddedToken(mark, special=False) for mark in sorted(marks)])
    return tokenizer


@pytest.fixture(scope="module")
def matcher_tokenizer(vocabulary: Tokenizer) -> LLTokenizer:
    return LLTokenizer(vocabulary.to_str())


def formats(name: str) -> Formats:
    known = known_formats()
    reasoning = known[name] if "reasoning" in known[name].reads else known["think"]
    return Formats(known[name], reasoning).forced


def request(choice: Any, *, strict: bool = True, parallel: bool = True) -> ChatRequest:
    tools = [
        {
            "type": "function",
            "function": {"name": "get_time", "parameters": CITY, "strict": strict},
        },
        {"type": "function", "function": {"name": "now"}},
    ]
    return ChatRequest.model_validate(
        {
            "messages": [{"role": "user", "content": "x"}],
            "tools": tools,
            "tool_choice": choice,
            "parallel_tool_calls": parallel,
        }
    )


def written(name: str, *calls: tuple[str, str]) -> str:
    """Return calls in the syntax of a format."""
    syntax = formats(name).tools.syntax
    assert syntax is not None
    texts = [
        syntax.begin.replace("%s", called) + arguments + syntax.end for called, arguments in calls
    ]
    return syntax.open + (syntax.separator or "").join(texts) + syntax.close


NAMED = {"type": "function", "function": {"name": "get_time"}}
FORCING = ["hermes", "llama3_json", "mistral", "harmony", "generic"]


@pytest.mark.parametrize("name", FORCING)
@pytest.mark.parametrize(
    ("choice", "right", "wrong"),
    [
        ("required", [(TIME,), (NOW,)], [(BAD,), ()]),
        (NAMED, [(TIME,)], [(NOW,), (BAD,), ()]),
        ("auto", [(TIME,), ()], [(BAD,)]),
    ],
)
def test_api_15_a_forced_answer_is_calls_that_match(
    vocabulary: Tokenizer,
    matcher_tokenizer: LLTokenizer,
    name: str,
    choice: Any,
    right: list[Any],
    wrong: list[Any],
) -> None:
    asked = tool_use(request(choice))
    tokens = vocabulary.get_vocab()
    added = {t.content: i for i, t in vocabulary.get_added_tokens_decoder().items()}
    assert added.items() <= tokens.items()
    form = formats(name)
    grammar = behind_thought(calls_grammar(asked, form, added), form, "", "<think>", added)
    for calls, ok in [(c, True) for c in right] + [(c, False) for c in wrong]:
        syntax = form.tools.syntax
        assert syntax is not None
        text = written(name, *calls) if calls else f"{syntax.text_begin}Hello."
        for reasoning in ("", _reasoning(form)):
            matcher = LLMatcher(matcher_tokenizer, grammar)
            assert not matcher.is_error(), matcher.get_error()
            ids = vocabulary.encode(reasoning + text, add_special_tokens=False).ids
            accepted = matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()
            assert accepted == ok, (reasoning, text)
            parser = form.parser(asked.schemas, "")
            pieces = merge([*parser.feed(reasoning + text), *parser.finish()])
            if ok:
                assert [p.text for p in pieces if p.kind == "call"] == [c[0] for c in calls]
                assert [p.text for p in pieces if p.kind == "arguments"] == [c[1] for c in calls]
                content = "".join(p.text for p in pieces if p.kind == "content")
                assert content == ("" if calls else "Hello.")


def _reasoning(form: Formats) -> str:
    assert form.reasoning is not None
    thought = form.reasoning.thought("", "<think>")
    assert thought is not None
    return f"{thought.begin}Hm, I call <something>.{thought.close}"


@pytest.mark.parametrize("name", FORCING)
def test_text_follows_its_schema_if_no_call_is_required(
    vocabulary: Tokenizer, matcher_tokenizer: LLTokenizer, name: str
) -> None:
    added = {t.content: i for i, t in vocabulary.get_added_tokens_decoder().items()}
    body = request("auto", strict=False).model_dump(by_alias=True, exclude_none=True)
    body["response_format"] = {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"enum": ["yes", "no"]}},
    }
    asked = ChatRequest.model_validate(body)
    plain = ChatRequest.model_validate({k: body[k] for k in ("messages", "response_format")})
    form = formats(name)
    assert form.tools.syntax is not None
    lead = form.tools.syntax.text_begin
    check = GrammarChecker(added, vocabulary.get_vocab_size()).reason
    for this, call_allowed in ((asked, True), (plain, False)):
        grammar = answer_grammar(this, tool_use(this), form, added, check)
        grammar = behind_thought(grammar, form, "", "<think>", added)
        for text, ok in (
            (f'{lead}"yes"', True),
            (f'{_reasoning(form)}{lead}"no"', True),
            (f"{lead}Hello.", False),
            (written(name, NOW), call_allowed),
        ):
            matcher = LLMatcher(matcher_tokenizer, grammar)
            assert not matcher.is_error(), matcher.get_error()
            ids = vocabulary.encode(text, add_special_tokens=False).ids
            num_consumed = matcher.try_consume_tokens(ids)
            assert (num_consumed == len(ids) and matcher.is_accepting()) == ok, text


def test_a_tag_that_is_no_token_forces_a_call_as_well(
    vocabulary: Tokenizer, matcher_tokenizer: LLTokenizer
) -> None:
    grammar = calls_grammar(tool_use(request("auto")), formats("hermes"), {})
    for arguments, ok in ((TIME[1], True), ('{"town": 1}', False)):
        matcher = LLMatcher(matcher_tokenizer, grammar)
        text = f"So {written('hermes', ('get_time', arguments))}"
        ids = [i for c in text for i in vocabulary.encode(c, add_special_tokens=False).ids]
        assert (matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()) == ok


@pytest.mark.parametrize("name", ["hermes", "llama3_json", "generic"])
@pytest.mark.parametrize("parallel", [True, False])
def test_parallel_calls_may_be_forbidden(
    vocabulary: Tokenizer, matcher_tokenizer: LLTokenizer, name: str, parallel: bool
) -> None:
    added = {t.content: i for i, t in vocabulary.get_added_tokens_decoder().items()}
    for choice in ("required", "auto"):
        asked = tool_use(request(choice, strict=False, parallel=parallel))
        assert asked.is_forced == (choice == "required" or not parallel)
        grammar = calls_grammar(asked, formats(name), added)
        matcher = LLMatcher(matcher_tokenizer, grammar)
        ids = vocabulary.encode(written(name, TIME, NOW), add_special_tokens=False).ids
        assert (matcher.try_consume_tokens(ids) == len(ids)) == parallel
