"""Rewriting of the JSON that models write into JSON that always parses."""

import json
import re
from typing import Literal

from engine.parsing.parser import BLANKS

WORDS = {  # as JSON, as Python, and as JavaScript write them
    "true": "true",
    "false": "false",
    "null": "null",
    "True": "true",
    "False": "false",
    "None": "null",
    "NaN": "null",
}
NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
# Matches every beginning of a number, since the text may end within any part of it.
NUMBER_BEGUN = re.compile(r"-?((0|[1-9]\d*)(\.\d*)?((?<=\d)[eE][+-]?\d*)?)?", re.ASCII)
BARE_KEY = re.compile(r"[\w.$-]", re.ASCII)
ESCAPES = frozenset('"\\/bfnrt')
HEX = frozenset("0123456789abcdefABCDEF")
CLOSERS = {"{": "}", "[": "]"}
RAW_QUOTE = '<|"|>'  # opens and closes a string without escapes; it is fed as one symbol
QUOTES = frozenset({'"', "'", RAW_QUOTE})


class NotJson(Exception):
    """The error raised when no continuation of a text could make it a JSON value."""


def quoted(text: str) -> str:
    """Return `text` escaped for a JSON string, without the quotes around it."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


class JsonText:
    """A writer of one JSON value, fed with what a model wrote, symbol by symbol.

    What `feed` and `finish` return is JSON. It is the model's own text where that is JSON already.
    The writer also accepts control characters and unknown escapes in strings, strings in single
    quotes, Python's words, a comma before a closing bracket, doubled braces (`{{"a": 1}}`) and
    closing brackets that are missing before others.

    Args:
        has_bare_keys: whether keys may have no quotes.

    Attributes:
        key: the key of the outermost object that was read last.
        num_keys: the number of keys of the outermost object that were read.
        values: the strings and scalars of the outermost object, as JSON.
        is_complete: whether the value has ended. A number or a word never ends by itself.
    """

    def __init__(self, *, has_bare_keys: bool = False) -> None:
        self.key: str | None = None
        self.num_keys = 0
        self.values: dict[str, str] = {}
        self.is_complete = False
        self.depth = 0  # the number of objects and arrays that are open
        self._has_bare_keys = has_bare_keys
        self._gap = " " if has_bare_keys else ""  # after colons and commas: models write none
        self._closers: list[str] = []  # of what is open; "" for the second of two braces
        self._expects: Literal["value", "key", "colon", "next"] = "value"
        self._is_empty = False  # whether the last symbol opened an object or array
        self._held = ""  # commas, keys and scalars: dropped if no complete value follows
        self._token = ""  # the scalar, the bare key or the string that is being read
        self._quote = ""  # of the string that is being read
        self._escape = ""  # the escape that is being read

    @property
    def expects_value(self) -> bool:
        """Whether a value may begin at the next symbol."""
        return self._expects == "value" and not self._token and not self._quote

    @property
    def in_bare_scalar(self) -> bool:
        """Whether the whole value is a number or a word, which may end here."""
        return bool(self._token) and not self._quote and not self._closers

    @property
    def is_in_string(self) -> bool:
        """Whether a string is being read inside of an object or array."""
        return bool(self._quote and self._closers)

    def feed(self, symbol: str) -> str:
        """Return the JSON that `symbol`, a character or `RAW_QUOTE`, makes certain.

        Raises `NotJson`; only `finish` may be called after that.
        """
        assert not self.is_complete, "the value has ended"
        if self._quote:
            return self._read_string(symbol)
        text = ""
        if self._token:
            if self._continues_token(symbol):
                self._token += symbol
                return ""
            text = self._end_token()
        return text + self._read_structure(symbol)

    def finish(self) -> str:
        """End the value, and return the JSON that completes it, such as missing brackets.

        Call it where the text ends or is not JSON any more. An incomplete member or item is left
        out, but an incomplete string is kept and closed.
        """
        text = ""
        if self._quote and self._expects == "value":
            text = '"'
        elif self.in_bare_scalar:
            text = self._end_token()
        closers = "".join(reversed(self._closers))
        self._quote = self._token = self._held = ""
        self._closers, self.is_complete = [], True
        return text + closers

    def _continues_token(self, symbol: str) -> bool:
        if self._expects == "key":
            return bool(BARE_KEY.fullmatch(symbol))
        return _begins_scalar(self._token + symbol)

    def _end_token(self) -> str:
        """End the number, word or bare key that was being read, and return its JSON.

        A key is returned later, together with its value. Raises `NotJson` for any other token.
        """
        token, self._token = self._token, ""
        if self._expects == "key":
            self._end_key(f'"{token}"')
            return ""
        if token not in WORDS and not NUMBER.fullmatch(token):
            raise NotJson
        return self._end_value(self._release(WORDS.get(token, token)), WORDS.get(token, token))

    def _end_value(self, text: str, value: str) -> str:
        """Record that a string or scalar has ended, with `value` as its JSON; return `text`."""
        if self.key is not None and self._is_outermost():
            self.values[self.key] = value
        self._expects = "next"
        self.is_complete = not self._closers
        return text

    def _end_key(self, key: str) -> None:
        self._held += key
        self._expects = "colon"
        if self._is_outermost():
            self.key = json.loads(key)
            self.num_keys += 1

    def _release(self, text: str) -> str:
        held, self._held = self._held, ""
        return held + text

    def _read_string(self, symbol: str) -> str:
        if self._escape:
            return self._read_escape(symbol)
        if symbol == self._quote:
            return self._end_string()
        if symbol == "\\" and self._quote != RAW_QUOTE:
            self._escape = symbol
            return ""
        return self._keep(quoted(symbol))

    def _read_escape(self, symbol: str) -> str:
        """Return the JSON of an escape sequence if `symbol` ends it, else ""."""
        escape = self._escape + symbol
        if escape == "\\u" or (len(escape) < 6 and escape[1] == "u" and symbol in HEX):
            self._escape = escape
            return ""
        self._escape = ""
        if escape[1] == "u" and symbol not in HEX:  # a broken escape is text
            return self._keep(quoted(escape[:-1])) + self._read_string(symbol)
        if escape[1] == "u" or symbol in ESCAPES:
            return self._keep(escape)
        return self._keep("'" if symbol == "'" else quoted(escape))

    def _keep(self, text: str) -> str:
        """Return text of a string that is a value; collect it and return "" if it is a key."""
        if self._expects == "key":
            self._token += text
            return ""
        if self._is_outermost():
            self._token += text
        return text

    def _is_outermost(self) -> bool:
        """Return whether the whole value is an object and its own members are being read."""
        return self.depth == 1 and self._closers[0] == "}"

    def _end_string(self) -> str:
        token, self._token, self._quote = self._token, "", ""
        if self._expects == "key":
            self._end_key(f'"{token}"')
            return ""
        return self._end_value('"', f'"{token}"')

    def _read_structure(self, symbol: str) -> str:
        if symbol in BLANKS:
            if self._closers and not self._has_bare_keys:
                self._held += symbol
            return ""
        is_empty, self._is_empty = self._is_empty, False
        expects = self._expects
        if symbol in ("}", "]"):
            return self._close(symbol)
        if expects == "colon" and symbol == ":":
            self._held, self._expects = self._held + symbol + self._gap, "value"
        elif expects == "next" and symbol == "," and self._closers:
            self._held += symbol + self._gap
            self._expects = "value" if self._closers[-1] == "]" else "key"
        elif expects == "value" and symbol in CLOSERS:
            self._closers.append(CLOSERS[symbol])
            self.depth += 1
            self._expects = "key" if symbol == "{" else "value"
            self._is_empty = True
            return self._release(symbol)
        elif expects == "key" and symbol == "{" and is_empty:
            self._closers.append("")
        else:
            return self._begin_token(symbol)
        return ""

    def _begin_token(self, symbol: str) -> str:
        if self._expects in ("key", "value") and symbol in QUOTES:
            self._quote = symbol
            return self._release('"') if self._expects == "value" else ""
        is_key = self._expects == "key" and self._has_bare_keys and BARE_KEY.fullmatch(symbol)
        if not is_key and not (self._expects == "value" and _begins_scalar(symbol)):
            raise NotJson
        self._token = symbol
        return ""

    def _close(self, symbol: str) -> str:
        """Return a closing bracket, preceded by the closing brackets that the model left out."""
        if symbol not in self._closers:
            raise NotJson
        text = self._held if self._held.isspace() else ""
        self._held = ""
        while self._closers:
            closer = self._closers.pop()
            text += closer
            self.depth -= bool(closer)
            if closer == symbol or (closer == "" and symbol == "}"):
                break
        self._expects = "next"
        self.is_complete = not self._closers
        return text


def _begins_scalar(text: str) -> bool:
    """Return whether `text` is the beginning of a number or of a word such as `true`."""
    return bool(NUMBER_BEGUN.fullmatch(text)) or any(word.startswith(text) for word in WORDS)


def as_json(text: str) -> str | None:
    """Return a text as valid JSON if `JsonText` can read it as one whole value, else None."""
    writer, written = JsonText(), ""
    try:
        for index, character in enumerate(text := text.strip()):
            written += writer.feed(character)
            if writer.is_complete:
                return written if index == len(text) - 1 else None
        return written + writer.finish() if writer.in_bare_scalar else None
    except NotJson:
        return None


class StringSearch:
    """A search for strings in the text of an object or array, which arrives in parts."""

    def __init__(self) -> None:
        self._writer = JsonText()
        self._is_json = True  # whether the text is the beginning of a value that has not ended

    @property
    def is_in_string(self) -> bool:
        """Whether the text ends inside a string."""
        return self._is_json and self._writer.is_in_string

    def feed(self, text: str) -> None:
        """Read more of the text."""
        for character in text:
            if not self._is_json:
                return
            try:
                self._writer.feed(character)
            except NotJson:
                self._is_json = False
            else:
                self._is_json = not self._writer.is_complete
