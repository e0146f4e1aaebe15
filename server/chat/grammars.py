"""Grammars of answers in the form of llguidance, which `SamplingParams.grammar` holds.

Compiling a grammar is slow: call the functions that raise `ApiError` in a thread.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, NamedTuple

from engine.errors import RequestError
from engine.parsing.format import ParameterSyntax
from engine.sampling.grammar.grammar import regex_to_lark, to_lark
from server.chat.grammar_tags import Tags, with_json_form
from server.chat.json_schemas import prepared_schema
from server.chat.parameter_grammar import parameter_rules
from server.errors import ApiError
from server.schemas.chat import ChatRequest
from server.schemas.completions import CompletionRequest
from server.schemas.structured import StructuredBody, StructuredOutputs
from server.text.limits import GRAMMAR
from server.text.stages import Stage, doing
from server.text.trial import tried

Check = Callable[[str], str | None]  # returns the reason why a grammar cannot be used, if any

_TEXT = "TEXT: /(?s:.)*/"

SAFE_CHARACTERS = 1024  # shorter grammars neither crash the parser nor take more than 0.03 s
LONGEST_REASON = 500  # characters; the reason quotes the grammar, which may be long


def chat_grammar(body: ChatRequest, check: Check) -> str:
    """Return the grammar of a chat's answer, "" for any text.

    Raise `ApiError` 400 for a grammar that does not compile.
    """
    form = body.response_format
    if form is None or form.type == "text":
        return _structured_grammar(body, check)
    if form.json_schema is None or form.json_schema.json_schema is None:
        return json_grammar({"type": "object"})
    schema, is_strict = form.json_schema.json_schema, bool(form.json_schema.strict)
    grammar = json_grammar(schema, is_strict=is_strict)
    return checked(grammar, "response_format.json_schema.schema", check)


def completion_grammar(body: CompletionRequest, check: Check) -> str:
    """Return the grammar of a completion's answer, "" for any text.

    Raise `ApiError` 400 for a grammar that does not compile.
    """
    return _structured_grammar(body, check)


@contextmanager
def name_grammar_field(body: ChatRequest | CompletionRequest) -> Iterator[None]:
    """Name the field of `body` in errors of the engine about the grammar that was made of it."""
    try:
        yield
    except RequestError as error:
        if error.code != "invalid_grammar":
            raise
        raise ApiError(str(error), code=error.code, param=_grammar_field(body)) from error


def _grammar_field(body: ChatRequest | CompletionRequest) -> str:
    """Return the name of the field from which the answer's grammar is made."""
    if body.form is not None:
        return body.form[0].partition(".")[0]
    form = body.response_format if isinstance(body, ChatRequest) else None
    return "tools" if form is None or form.type == "text" else "response_format"


def _structured_grammar(body: StructuredBody, check: Check) -> str:
    if body.form is None:
        return ""
    param, form = body.form
    match form:
        case StructuredOutputs(json_=dict(schema)):
            return checked(json_grammar(schema), param, check)
        case StructuredOutputs(regex=str(regex)):
            lark = regex_to_lark(regex)
            return checked(serialize_grammar(lark_grammar=lark), param, check)
        case StructuredOutputs(choice=list(texts)):
            lark = f"start: {' | '.join(map(json.dumps, texts))}"
            return checked(serialize_grammar(lark_grammar=lark), param, check)
        case StructuredOutputs(grammar=str(grammar)):
            try:
                lark = to_lark(grammar)
            except ValueError as error:
                raise _compile_error(str(error), param) from None
            return checked(serialize_grammar(lark_grammar=lark), param, check)
        case _:
            return ""


def checked(grammar: str, param: str, check: Check) -> str:
    """Return `grammar` if it compiles. Raise `ApiError` 400 with the reason if it does not."""
    with doing(Stage.GRAMMAR):
        reason = _reason(grammar, check)
    if reason is not None:
        raise _compile_error(reason, param)
    return grammar


@lru_cache(maxsize=64)
def _reason(grammar: str, check: Check) -> str | None:
    """Return the reason why a grammar cannot be used, which a long one is tried for elsewhere."""
    if len(grammar) <= SAFE_CHARACTERS:
        return check(grammar)
    outcome = tried(partial(check, grammar), GRAMMAR)
    return outcome.reason or outcome.value


def _compile_error(reason: str, param: str) -> ApiError:
    message = f"'{param}' cannot be compiled: {reason[:LONGEST_REASON]}"
    return ApiError(message, code="invalid_grammar", param=param)


def dropped_keywords(body: ChatRequest | CompletionRequest) -> list[str]:
    """Return the keywords that `chat_grammar` or `completion_grammar` drops from a schema."""
    schema: Mapping[str, Any] | None = None
    is_strict = False
    if body.form is not None:
        schema = body.form[1].json_
    elif isinstance(body, ChatRequest) and body.response_format is not None:
        form = body.response_format.json_schema
        if form is not None:
            schema, is_strict = form.json_schema, bool(form.strict)
    return [] if schema is None else prepared_schema(schema, is_strict=is_strict)[1]


def json_grammar(schema: Mapping[str, Any], *, is_strict: bool = False) -> str:
    """Return the grammar of JSON that matches a schema; `is_strict` as in `prepared_schema`."""
    prepared, _ = prepared_schema(schema, is_strict=is_strict)
    return serialize_grammar(json_schema=with_json_form(prepared))


class Passage(NamedTuple):
    """A kind of passage in an answer, such as a call of one tool.

    Args:
        begin: the tag before it.
        schema: the JSON schema of what is between the tags.
        end: the tag after it.
        parameters: how the members of the object are written one by one; None: as JSON.
    """

    begin: str
    schema: Mapping[str, Any]
    end: str
    parameters: ParameterSyntax | None = None


def passages_grammar(
    kinds: Sequence[Passage],
    *,
    at_least_one: bool,
    several: bool,
    free_text: bool,
    separator: str = "",
    opening: str = "",
    closing: str = "",
    trigger: str = "",
    text: str = "",
    text_begin: str = "",
    text_not_begin: str = "",
    tokens: Mapping[str, int] | None = None,
) -> str:
    """Return the grammar of answers with passages of JSON, such as tool calls.

    A passage is a kind's begin tag, JSON that matches its schema, and its end tag. Kinds may share
    tags, or the beginning of tags.

    With `free_text`, any text may come before a passage, and between two passages instead of the
    separator; after the last one, only if there may be `several`. A begin tag, or the first added
    token or `trigger` in it, makes a passage obligatory, so text must not contain it by chance.

    Without `free_text`, an answer consists of passages. Without `at_least_one`, it may instead be
    text if one of `text`, `text_begin` and `text_not_begin` is given, and else empty.

    Args:
        kinds: the kinds of passages.
        at_least_one: whether an answer needs a passage.
        several: whether an answer may have more than one passage.
        free_text: whether any text may come before passages.
        separator: the text between two passages.
        opening: the tags before the first of several passages.
        closing: the tags after the last of them.
        trigger: a part of begin tags that makes a passage obligatory; used with `free_text`.
        text: the grammar of an answer that is text; "" for any text.
        text_begin: the tags before an answer that is text.
        text_not_begin: the characters with which an answer that is any text cannot begin.
        tokens: the ids of the tokenizer's added tokens, by their spelling. Where a tag contains
            such a spelling, the answer must have that token.
    """
    tags, group = Tags(tokens or {}, trigger), "passage"
    rules = _passage_rules(kinds, tags, after_text=free_text and not opening)
    more = f"({tags.literal(separator)} passage)*" if several else ""
    if opening:
        begin = tags.open(opening) if free_text else tags.literal(opening)
        rules.append(f"passages: {begin} passage {more} {tags.literal(closing)}")
        group, more = "passages", ""
    if free_text:
        more = f"{group}* TEXT" if several else ""
        start = f"{group} {more}" if at_least_one else (more or f"{group} | TEXT")
    elif not at_least_one and (text or text_begin or text_not_begin):
        said = "@text" if text else _text_without(text_not_begin)
        start = f"{group} {more} | {tags.literal(text_begin)} {said}"
    else:
        start = f"{group} {more}" if at_least_one else f"({group} {more})?"
    lark = "\n".join([f"start: {start}", *rules, *tags.rules, _TEXT])
    grammar = serialize_grammar(lark_grammar=lark)
    return _add_part(grammar, "text", text) if "@text" in start else grammar


def _text_without(characters: str) -> str:
    """Return any text that does not begin with one of `characters`, in Lark."""
    excluded = "".join(f"\\x{ord(character):02x}" for character in characters)
    return f"(/[^{excluded}]/ TEXT)?" if excluded else "TEXT"


def _passage_rules(kinds: Sequence[Passage], tags: Tags, *, after_text: bool) -> list[str]:
    """Return the rules of a passage; with `after_text`, any text may come before it."""
    rules = []
    for index, kind in enumerate(kinds):
        begin = tags.open(kind.begin) if after_text else tags.literal(kind.begin)
        rules.append(f"passage_{index}: {begin} json_{index} {tags.literal(kind.end)}")
        if kind.parameters is None:
            rules.append(f"json_{index}: %json {json.dumps(with_json_form(kind.schema))}")
        else:
            rules += parameter_rules(f"json_{index}", kind.schema, kind.parameters, tags)
    names = " | ".join(f"passage_{index}" for index in range(len(kinds)))
    return [*rules, f"passage: {names}"]


def prepend_tags(tags: str, grammar: str, tokens: Mapping[str, int]) -> str:
    """Return the grammar of `tags` followed by `grammar`; `tokens` as in `passages_grammar`."""
    start = serialize_grammar(lark_grammar=f"start: {Tags(tokens).literal(tags)} @text")
    return _add_part(start, "text", grammar)


def allow_thinking(grammar: str, close: str, tokens: Mapping[str, int], *, begin: str = "") -> str:
    """Return the grammar of a thinking part, which is any text, followed by `grammar`.

    Up to two blanks or line breaks may follow the thinking part.

    Args:
        grammar: the grammar of what follows the thinking part.
        close: the tag that ends the thinking part.
        tokens: as in `passages_grammar`.
        begin: the tag that begins the thinking part, which may be missing then; "": the thinking
            part has already begun, and cannot be missing.
    """
    tags = Tags(tokens)
    thinking = f"{tags.open(close)} /[ \\n]?[ \\n]?/"
    if begin:
        thinking = f"({tags.literal(begin)} {thinking})?"
    lark = "\n".join([f"start: {thinking} @answer", *tags.rules, _TEXT])
    return _add_part(serialize_grammar(lark_grammar=lark), "answer", grammar)


def _add_part(grammar: str, name: str, part: str) -> str:
    """Return `grammar` together with the grammar `part`, to which it refers as `@name`."""
    first, *others = json.loads(part)["grammars"]
    whole = [*json.loads(grammar)["grammars"], first | {"name": name}, *others]
    return json.dumps({"grammars": whole})


def serialize_grammar(**grammar: object) -> str:
    """Return a grammar of one part as JSON: `json_schema=...` or `lark_grammar=...`."""
    return json.dumps({"grammars": [grammar]})
