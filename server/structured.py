"""Grammars of answers, as llguidance writes them: what `SamplingParams.grammar` holds. Pure."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from engine.grammar import fault_of
from server.errors import ApiError

# One way to write each JSON text, the one that models have seen most: there is no white space for
# a model to lose itself in, and more of the answer is forced.
JSON_FORM = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}

_TEXT = "TEXT: /(?s:.)*/"


class Tagged(NamedTuple):
    """A kind of passage: JSON between two tags."""

    begin: str
    schema: Mapping[str, Any]
    end: str


def tagged(
    kinds: Sequence[Tagged],
    *,
    at_least_one: bool,
    several: bool,
    free_text: bool,
    separator: str = "",
    trigger: str = "",
    text_begin: str = "",
    text_not_begin: str = "",
    tokens: Mapping[str, int] | None = None,
) -> str:
    """Answers with passages of JSON, such as tool calls.

    A passage is a kind's begin tag, JSON that matches its schema, and its end tag. Kinds may share
    tags, or the start of them. Where `several` are allowed, `separator` stands between two.

    With `free_text` any text may come before a passage, between two instead of the separator, and,
    where `several` are allowed, after the last. A begin tag, or the first added token or `trigger`
    in it, commits the answer to a passage: it should be what text does not contain by chance.
    Without, where none is needed, the answer may be text instead, which begins with the tags
    `text_begin`, if any, and with none of the characters `text_not_begin`, if any.

    `tokens` are the tokenizer's added tokens by spelling. Where a tag has one, that token is meant.
    """
    tags = _Tags(tokens or {}, trigger)
    rules, passages = [], []
    for index, kind in enumerate(kinds):
        opening = tags.open(kind.begin) if free_text else tags.literal(kind.begin)
        rules.append(f"passage_{index}: {opening} json_{index} {tags.literal(kind.end)}")
        rules.append(f"json_{index}: %json {json.dumps(in_form(kind.schema))}")
        passages.append(f"passage_{index}")
    rules.append(f"passage: {' | '.join(passages)}")
    if free_text:
        more = "passage* TEXT" if several else ""
        start = f"passage {more}" if at_least_one else (more or "passage | TEXT")
    else:
        more = f"({tags.literal(separator)} passage)*" if several else ""
        start = f"passage {more}" if at_least_one else f"(passage {more})?"
        if not at_least_one and (text_begin or text_not_begin):
            barred = "".join(f"\\x{ord(character):02x}" for character in text_not_begin)
            text = f"(/[^{barred}]/ TEXT)?" if barred else "TEXT"
            start = f"passage {more} | {tags.literal(text_begin)} {text}"
    return serialized(lark_grammar="\n".join([f"start: {start}", *rules, *tags.rules, _TEXT]))


def after_thinking(grammar: str, close: str, tokens: Mapping[str, int], *, begin: str = "") -> str:
    """The same grammar for what follows a thinking part: any text down to the tag `close`.

    With a tag `begin` the thinking part begins with it, and may be missing. `tokens` as in
    `tagged`. Up to two blanks or line breaks may follow it.
    """
    tags = _Tags(tokens)
    thinking = f"{tags.open(close)} /[ \\n]?[ \\n]?/"
    if begin:
        thinking = f"({tags.literal(begin)} {thinking})?"
    thought = serialized(lark_grammar="\n".join([f"start: {thinking} @answer", *tags.rules, _TEXT]))
    inner = json.loads(grammar)["grammars"][0] | {"name": "answer"}
    return json.dumps({"grammars": [*json.loads(thought)["grammars"], inner]})


def is_fit(grammar: str) -> bool:
    """Whether an answer can be held to a grammar."""
    return fault_of(grammar) is None


def checked(grammar: str, param: str) -> str:
    """The grammar as it is. Raises `ApiError` 400 at `param` for one that nothing can follow."""
    fault = fault_of(grammar)
    if fault is not None:
        raise ApiError(f"'{param}' cannot be followed: {fault}", code="invalid_schema", param=param)
    return grammar


def serialized(**grammar: object) -> str:
    """A grammar of one part: `json_schema=...` or `lark_grammar=...`."""
    return json.dumps({"grammars": [grammar]})


def in_form(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema whose JSON is written in `JSON_FORM`."""
    return {"x-guidance": JSON_FORM, **schema}


class _Tags:
    """Spells tags in Lark; `rules` are what `open` needs."""

    def __init__(self, tokens: Mapping[str, int], trigger: str = "") -> None:
        self._tokens = tokens
        spellings = sorted(filter(None, {*tokens, trigger}), key=len, reverse=True)
        self._cut = re.compile(f"({'|'.join(map(re.escape, spellings))})" if spellings else "(?!)")
        self._heads: dict[str, str] = {}  # what commits to a tag -> its rule
        self.rules: list[str] = []

    def literal(self, tag: str) -> str:
        return " ".join(map(self._piece, self._pieces(tag)))

    def open(self, tag: str) -> str:
        """Any text, then the tag: its first piece ends the text, as a token or spelled out."""
        first, *rest = self._pieces(tag)
        if first not in self._heads:
            name = self._heads[first] = f"head_{len(self._heads)}"
            token = f" | TEXT {self._piece(first)}" if first in self._tokens else ""
            self.rules.append(f"spelled_{name}[lazy]: TEXT {json.dumps(first)}")
            self.rules.append(f"{name}: spelled_{name}{token}")
        return " ".join([self._heads[first], *map(self._piece, rest)])

    def _pieces(self, tag: str) -> list[str]:
        return [piece for piece in self._cut.split(tag) if piece]

    def _piece(self, piece: str) -> str:
        token = self._tokens.get(piece)
        return json.dumps(piece) if token is None else f"<[{token}]>"
