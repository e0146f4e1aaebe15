"""Grammars of answers, as llguidance writes them: what `SamplingParams.grammar` holds.

Compiling one takes a while: call what raises `ApiError` in a thread.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from engine.errors import RequestError
from engine.sampling.grammar.check import check_grammar
from engine.sampling.grammar.grammar import regex_to_lark, to_lark
from server.chat.grammar_tags import Tags, in_form
from server.chat.parameter_grammar import parameter_rules
from server.errors import ApiError
from server.parsing.format import ParameterSyntax
from server.schemas.chat import ChatRequest
from server.schemas.completions import CompletionRequest
from server.schemas.structured import StructuredOutputs

_TEXT = "TEXT: /(?s:.)*/"

LONGEST_REASON = 500  # characters: a reason quotes the grammar


def chat_grammar(body: ChatRequest) -> str:
    """What a chat's answer must match, "" for anything. Raises `ApiError` 400."""
    form = body.response_format
    if form is None or form.type == "text":
        return _structured(body.structured_outputs)
    if form.json_schema is None or form.json_schema.json_schema is None:
        return json_grammar({"type": "object"})
    schema = form.json_schema.json_schema
    return checked(json_grammar(schema), "response_format.json_schema.schema")


def completion_grammar(body: CompletionRequest) -> str:
    """What a completion must match, "" for anything. Raises `ApiError` 400."""
    return _structured(body.structured_outputs)


@contextmanager
def made_of(body: ChatRequest | CompletionRequest) -> Iterator[None]:
    """Where the engine finds that an answer's grammar cannot be followed, name its field."""
    try:
        yield
    except RequestError as error:
        if error.code != "invalid_grammar":
            raise
        raise ApiError(str(error), code=error.code, param=_field(body)) from error


def _field(body: ChatRequest | CompletionRequest) -> str:
    """The field that an answer's grammar comes from."""
    if body.structured_outputs is not None:
        return "structured_outputs"
    form = body.response_format if isinstance(body, ChatRequest) else None
    return "tools" if form is None or form.type == "text" else "response_format"


def _structured(form: StructuredOutputs | None) -> str:
    match form:
        case StructuredOutputs(json_=dict(schema)):
            return checked(json_grammar(schema), "structured_outputs.json")
        case StructuredOutputs(regex=str(regex)):
            lark = regex_to_lark(regex)
            return checked(serialized(lark_grammar=lark), "structured_outputs.regex")
        case StructuredOutputs(choice=list(texts)):
            lark = f"start: {' | '.join(map(json.dumps, texts))}"
            return checked(serialized(lark_grammar=lark), "structured_outputs.choice")
        case StructuredOutputs(grammar=str(grammar)):
            param = "structured_outputs.grammar"
            try:
                lark = to_lark(grammar)
            except ValueError as error:
                raise _refused(str(error), param) from None
            return checked(serialized(lark_grammar=lark), param)
        case _:
            return ""


def checked(grammar: str, param: str) -> str:
    """The same grammar, if it compiles. Raises `ApiError` 400 with the reason."""
    reason = check_grammar(grammar)
    if reason is not None:
        raise _refused(reason, param)
    return grammar


def _refused(reason: str, param: str) -> ApiError:
    message = f"'{param}' cannot be compiled: {reason[:LONGEST_REASON]}"
    return ApiError(message, code="invalid_grammar", param=param)


def json_grammar(schema: Mapping[str, Any]) -> str:
    """JSON that matches a schema."""
    return serialized(json_schema=in_form(schema))


class Tagged(NamedTuple):
    """A kind of passage: JSON between two tags, or arguments that a syntax writes one by one."""

    begin: str
    schema: Mapping[str, Any]
    end: str
    parameters: ParameterSyntax | None = None


def tagged(
    kinds: Sequence[Tagged],
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
    """Answers with passages of JSON, such as tool calls.

    A passage is a kind's begin tag, JSON that matches its schema, and its end tag. Kinds may share
    tags, or the start of them. Where `several` are allowed, `separator` stands between two. Around
    all that follow each other are the tags `opening` and `closing`.

    With `free_text` any text may come before passages, and, where `several` are allowed, after
    them. The first tag, or the first added token or `trigger` in it, commits the answer to a
    passage: it should be what text does not contain by chance.

    Without, an answer is passages; where none is needed it may be empty instead, or text behind the
    tags `text_begin`, if any of the following is given: `text` is the grammar of the text, "" for
    any that begins with none of the characters `text_not_begin`.

    `tokens` are the tokenizer's added tokens by spelling. Where a tag has one, that token is meant.
    """
    tags = Tags(tokens or {}, trigger)
    rules, passages = [], []
    for index, kind in enumerate(kinds):
        is_first = free_text and not opening
        begin = tags.open(kind.begin) if is_first else tags.literal(kind.begin)
        rules.append(f"passage_{index}: {begin} json_{index} {tags.literal(kind.end)}")
        rules += _body(f"json_{index}", kind, tags)
        passages.append(f"passage_{index}")
    rules.append(f"passage: {' | '.join(passages)}")
    if opening:
        begin = tags.open(opening) if free_text else tags.literal(opening)
        more = f"({tags.literal(separator)} passage)*" if several else ""
        rules.append(f"passages: {begin} passage {more} {tags.literal(closing)}")
    group = "passages" if opening else "passage"
    if free_text:
        more = f"{group}* TEXT" if several else ""
        start = f"{group} {more}" if at_least_one else (more or f"{group} | TEXT")
    else:
        more = f"({tags.literal(separator)} passage)*" if several and not opening else ""
        start = f"{group} {more}" if at_least_one else f"({group} {more})?"
        if not at_least_one and (text or text_begin or text_not_begin):
            barred = "".join(f"\\x{ord(character):02x}" for character in text_not_begin)
            said = "@text" if text else f"(/[^{barred}]/ TEXT)?" if barred else "TEXT"
            start = f"{group} {more} | {tags.literal(text_begin)} {said}"
    grammar = serialized(lark_grammar="\n".join([f"start: {start}", *rules, *tags.rules, _TEXT]))
    return _with_part(grammar, "text", text) if "@text" in start else grammar


def _body(name: str, kind: Tagged, tags: Tags) -> list[str]:
    """The rules of what a passage has between its tags."""
    if kind.parameters is None:
        return [f"{name}: %json {json.dumps(in_form(kind.schema))}"]
    return parameter_rules(name, kind.schema, kind.parameters, tags)


def behind(tags: str, grammar: str, tokens: Mapping[str, int]) -> str:
    """The same grammar for what follows some tags; `tokens` as in `tagged`."""
    start = serialized(lark_grammar=f"start: {Tags(tokens).literal(tags)} @text")
    return _with_part(start, "text", grammar)


def after_thinking(grammar: str, close: str, tokens: Mapping[str, int], *, begin: str = "") -> str:
    """The same grammar for what follows a thinking part: any text down to the tag `close`.

    With a tag `begin` the thinking part begins with it, and may be missing. `tokens` as in
    `tagged`. Up to two blanks or line breaks may follow it.
    """
    tags = Tags(tokens)
    thinking = f"{tags.open(close)} /[ \\n]?[ \\n]?/"
    if begin:
        thinking = f"({tags.literal(begin)} {thinking})?"
    thought = serialized(lark_grammar="\n".join([f"start: {thinking} @answer", *tags.rules, _TEXT]))
    return _with_part(thought, "answer", grammar)


def _with_part(grammar: str, name: str, part: str) -> str:
    """A grammar that names another `@name`, and that other."""
    first, *others = json.loads(part)["grammars"]
    whole = [*json.loads(grammar)["grammars"], first | {"name": name}, *others]
    return json.dumps({"grammars": whole})


def serialized(**grammar: object) -> str:
    """A grammar of one part: `json_schema=...` or `lark_grammar=...`."""
    return json.dumps({"grammars": [grammar]})
