"""The spelling of tags and of JSON in grammars, as llguidance reads them."""

import json
import re
from collections.abc import Mapping
from typing import Any

# Each JSON text can be written in one way only, the one that models have seen most. A model cannot
# go on writing white space for ever, and more of the answer is forced.
# `oneOf` is read as `anyOf` where its branches overlap.
JSON_FORM = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "coerce_one_of": True,
}


def with_json_form(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema whose JSON is written in `JSON_FORM`, unless it sets a form itself."""
    return {"x-guidance": JSON_FORM, **schema}


TEXT = "TEXT"  # the terminal of any text, which a grammar has to define


class Tags:
    """A speller of tags in Lark; `rules` are what `open` and `text` need.

    Args:
        tokens: the tokenizer's added tokens by spelling: where a tag has one, that token is meant.
        trigger: the beginning of tags that commits an answer to them.
    """

    def __init__(self, tokens: Mapping[str, int], trigger: str = "") -> None:
        self._tokens = tokens
        self._trigger = trigger
        spellings = sorted(filter(None, tokens), key=len, reverse=True)
        self._cut = re.compile(f"({'|'.join(map(re.escape, spellings))})" if spellings else "(?!)")
        self._texts: dict[tuple[str, str], str] = {}  # a terminal and its end -> their rule
        self.rules: list[str] = []

    def literal(self, tag: str) -> str:
        """Return a tag as it has to be written."""
        return " ".join(map(self._piece, self._pieces(tag)))

    def open(self, tag: str) -> str:
        """Return any text and the tag. The trigger, or else the first token, ends the text."""
        head = self._trigger
        if not (head and tag.startswith(head)):
            pieces = self._pieces(tag)
            first = next((i for i, p in enumerate(pieces) if p in self._tokens), 0)
            head = "".join(pieces[: first + 1])
        return f"{self.text(TEXT, head)} {self.literal(tag.removeprefix(head))}"

    def text(self, expression: str, end: str) -> str:
        """Return the rule of a text that matches an expression of terminals, and of its end.

        The first `end` ends the text. The first added token in the end may be spelled out too, as
        text that a model writes is.
        """
        if (expression, end) not in self._texts:
            name = self._texts[expression, end] = f"text_{len(self._texts)}"
            terminal = expression
            if expression != TEXT:
                terminal = f"{name.upper()}_TERM"
                self.rules.append(f"{terminal}: {expression}")
            self.rules += self._ended(name, terminal, end)
        return self._texts[expression, end]

    def _ended(self, name: str, terminal: str, end: str) -> list[str]:
        pieces = self._pieces(end)
        first = next((i for i, p in enumerate(pieces) if p in self._tokens), None)
        if first is None:
            return [f"{name}[lazy]: {terminal} {json.dumps(end)}"]
        lead, token = "".join(pieces[:first]), pieces[first]
        text = f"{name.upper()}_LEAD" if lead else terminal
        rest = " ".join(map(self._piece, pieces[first + 1 :]))
        rules = [f"{name}_spelled[lazy]: {terminal} {json.dumps(lead + token)}"]
        if lead:
            rules.append(f"{text}: {terminal} {json.dumps(lead)}")
        return [*rules, f"{name}: ({name}_spelled | {text} {self._piece(token)}) {rest}"]

    def _pieces(self, tag: str) -> list[str]:
        """Return the added tokens in a tag, and what is between them."""
        return [piece for piece in self._cut.split(tag) if piece]

    def _piece(self, piece: str) -> str:
        token = self._tokens.get(piece)
        if token is None:
            return json.dumps(piece)
        if piece.startswith("<") and piece.endswith(">"):
            return f"<[{token}]>"
        # llguidance takes other added tokens that are not special for text.
        return f"({json.dumps(piece)} | <[{token}]>)"
