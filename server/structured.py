"""Grammars of answers, as llguidance writes them: what `SamplingParams.grammar` holds. Pure."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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
    tokens: Mapping[str, int] | None = None,
) -> str:
    """Answers with passages of JSON, such as tool calls.

    A passage is a kind's begin tag, JSON that matches its schema, and its end tag. Kinds may share
    tags, or the start of them. Where `several` are allowed, `separator` stands between two.

    With `free_text` any text may come before a passage, between two instead of the separator, and,
    where `several` are allowed, after the last. A begin tag, or the first added token in it,
    commits the answer to a passage: it should start with what text does not contain by chance.

    `tokens` are the tokenizer's added tokens by spelling. Where a tag has one, that token is meant.
    """
    tags = _Tags(tokens or {})
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
    return serialized(lark_grammar="\n".join([f"start: {start}", *rules, *tags.rules, _TEXT]))


def after_thinking(grammar: str, close: str, tokens: Mapping[str, int]) -> str:
    """The same grammar for what follows a thinking part: any text down to the tag `close`.

    `tokens` as in `tagged`. Up to two blanks or line breaks may follow it.
    """
    tags = _Tags(tokens)
    opening = tags.open(close)
    thought = serialized(
        lark_grammar="\n".join([f"start: {opening} /\\s?\\s?/ @answer", *tags.rules, _TEXT])
    )
    inner = json.loads(grammar)["grammars"][0] | {"name": "answer"}
    return json.dumps({"grammars": [*json.loads(thought)["grammars"], inner]})


def serialized(**grammar: object) -> str:
    """A grammar of one part: `json_schema=...` or `lark_grammar=...`."""
    return json.dumps({"grammars": [grammar]})


def in_form(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema whose JSON is written in `JSON_FORM`."""
    return {"x-guidance": JSON_FORM, **schema}


class _Tags:
    """Spells tags in Lark; `rules` are what `open` needs."""

    def __init__(self, tokens: Mapping[str, int]) -> None:
        self._tokens = tokens
        spellings = sorted(filter(None, tokens), key=len, reverse=True)
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
