"""Following a JSON object while it is being written."""

import json
import re
from typing import Literal

from server.parsing.parser import BLANKS

WORDS = ("true", "false", "null")
ESCAPES = frozenset('"\\/bfnrtu')
HEX = frozenset("0123456789abcdefABCDEF")
NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
# whatever a number may begin with: each part may end where the text does
NUMBER_BEGUN = re.compile(r"-?((0|[1-9]\d*)(\.\d*)?((?<=\d)[eE][+-]?\d*)?)?", re.ASCII)


class NotJson(Exception):
    """The text is no JSON object, whatever follows."""


class JsonObject:
    """One JSON object (RFC 8259), fed character by character up to its closing brace.

    Attributes:
        key: of the outermost object's member that was begun last; none may come twice.
        strings: the outermost object's members that are strings, as far as they are read.
        complete: whether the object is closed.
    """

    def __init__(self) -> None:
        self.key: str | None = None
        self.strings: dict[str, str] = {}
        self.complete = False
        self._keys: set[str] = set()  # of the outermost object
        self._closers: list[str] = []  # of what is open
        self._expects: Literal["object", "key", "colon", "value", "next"] = "object"
        self._empty = False  # right behind an opening bracket, which may be closed at once
        self._token = ""  # the number, word or string that is being read; of an inner one its quote
        self._escaped = False  # behind a backslash
        self._num_hex = 0  # digits that an escape still needs

    @property
    def depth(self) -> int:
        """How many objects and arrays are open."""
        return len(self._closers)

    @property
    def in_scalar(self) -> bool:
        """Whether a string, number or word is being read that is a value."""
        return bool(self._token) and self._expects == "value"

    def feed(self, character: str) -> None:
        """Take the next character. Raises `NotJson`; nothing may be fed after that."""
        assert not self.complete, "the object has ended"
        if self._token.startswith('"'):
            self._string(character)
        elif self._token and _begins_scalar(self._token + character):
            self._token += character
        else:
            if self._token:
                self._scalar_read()
            if character not in BLANKS:
                self._structure(character)

    def _string(self, character: str) -> None:
        if character < " ":
            raise NotJson
        if self.depth == 1:
            self._token += character
        if self._num_hex:
            if character not in HEX:
                raise NotJson
            self._num_hex -= 1
        elif self._escaped:
            if character not in ESCAPES:
                raise NotJson
            self._escaped = False
            self._num_hex = 4 if character == "u" else 0
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._string_read()

    def _string_read(self) -> None:
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

    def _scalar_read(self) -> None:
        if self._token not in WORDS and not NUMBER.fullmatch(self._token):
            raise NotJson
        self._token, self._expects = "", "next"

    def _structure(self, character: str) -> None:
        expects, empty, self._empty = self._expects, self._empty, False
        if expects == "colon" and character == ":":
            self._expects = "value"
        elif expects == "next" and character == ",":
            self._expects = "key" if self._closers[-1] == "}" else "value"
        elif (expects == "next" or empty) and character == self._closers[-1]:
            self._closers.pop()
            self._expects = "next"
            self.complete = not self._closers
        elif expects in ("object", "value") and character == "{":
            self._closers.append("}")
            self._expects, self._empty = "key", True
        elif expects == "value" and character == "[":
            self._closers.append("]")
            self._empty = True
        elif (expects in ("key", "value") and character == '"') or (
            expects == "value" and _begins_scalar(character)
        ):
            self._token = character
        else:
            raise NotJson


def _begins_scalar(text: str) -> bool:
    """Whether a number or a word may begin like this."""
    return bool(NUMBER_BEGUN.fullmatch(text)) or any(word.startswith(text) for word in WORDS)
