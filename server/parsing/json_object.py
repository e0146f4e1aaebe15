"""A reader of a JSON object that arrives one character at a time."""

import json
import re
from typing import Literal

from server.parsing.parser import BLANKS

WORDS = ("true", "false", "null")
ESCAPES = frozenset('"\\/bfnrtu')
HEX = frozenset("0123456789abcdefABCDEF")
NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
# every beginning of a number: each part may be cut off
NUMBER_BEGUN = re.compile(r"-?((0|[1-9]\d*)(\.\d*)?((?<=\d)[eE][+-]?\d*)?)?", re.ASCII)


class NotJson(Exception):
    """The error raised when the text cannot become a JSON object, whatever follows."""


class JsonObject:
    """A reader of one JSON object (RFC 8259), fed character by character up to its closing brace.

    A key that the outermost object has twice is an error.

    Attributes:
        key: the key that was read last in the outermost object; None before the first one.
        strings: those members of the outermost object that are strings and have been read.
        complete: whether the object is closed.
    """

    def __init__(self) -> None:
        self.key: str | None = None
        self.strings: dict[str, str] = {}
        self.complete = False
        self._keys: set[str] = set()  # the keys of the outermost object
        self._closers: list[str] = []  # the closing brackets of open objects and arrays
        self._expects: Literal["object", "key", "colon", "value", "next"] = "object"
        self._is_empty = False  # right after an opening bracket, which may be closed at once
        # the number, word or string that is being read; only the quote of a string in inner objects
        self._token = ""
        self._is_escaped = False  # right after a backslash
        self._num_hex = 0  # the hexadecimal digits that an escape still needs

    @property
    def depth(self) -> int:
        """Return the number of open objects and arrays."""
        return len(self._closers)

    @property
    def in_scalar(self) -> bool:
        """Return whether a value is being read that is a string, number or word."""
        return bool(self._token) and self._expects == "value"

    def feed(self, character: str) -> None:
        """Read the next character.

        Raise `NotJson` at a character that cannot follow; nothing may be fed after that.
        """
        assert not self.complete, "the object has ended"
        if self._token.startswith('"'):
            self._read_string(character)
        elif self._token and _begins_scalar(self._token + character):
            self._token += character
        else:
            if self._token:
                self._end_scalar()
            if character not in BLANKS:
                self._read_structure(character)

    def _read_string(self, character: str) -> None:
        if character < " ":
            raise NotJson
        if self.depth == 1:
            self._token += character
        if self._num_hex:
            if character not in HEX:
                raise NotJson
            self._num_hex -= 1
        elif self._is_escaped:
            if character not in ESCAPES:
                raise NotJson
            self._is_escaped = False
            self._num_hex = 4 if character == "u" else 0
        elif character == "\\":
            self._is_escaped = True
        elif character == '"':
            self._end_string()

    def _end_string(self) -> None:
        text, self._token = self._token, ""
        if self._expects == "value":
            if self.depth == 1 and self.key is not None:
                self.strings[self.key] = json.loads(text)
            self._expects = "next"
            return
        self._expects = "colon"
        if self.depth == 1:
            self.key = json.loads(text)
            if self.key in self._keys:
                raise NotJson
            self._keys.add(self.key)

    def _end_scalar(self) -> None:
        if self._token not in WORDS and not NUMBER.fullmatch(self._token):
            raise NotJson
        self._token, self._expects = "", "next"

    def _read_structure(self, character: str) -> None:
        expects, is_empty, self._is_empty = self._expects, self._is_empty, False
        if expects == "colon" and character == ":":
            self._expects = "value"
        elif expects == "next" and character == ",":
            self._expects = "key" if self._closers[-1] == "}" else "value"
        elif (expects == "next" or is_empty) and character == self._closers[-1]:
            self._closers.pop()
            self._expects = "next"
            self.complete = not self._closers
        elif expects in ("object", "value") and character == "{":
            self._closers.append("}")
            self._expects, self._is_empty = "key", True
        elif expects == "value" and character == "[":
            self._closers.append("]")
            self._is_empty = True
        elif (expects in ("key", "value") and character == '"') or (
            expects == "value" and _begins_scalar(character)
        ):
            self._token = character
        else:
            raise NotJson


def _begins_scalar(text: str) -> bool:
    """Return whether `text` is the beginning of a number or a word."""
    return bool(NUMBER_BEGUN.fullmatch(text)) or any(word.startswith(text) for word in WORDS)
