"""A reader of calls that look like Python, `look_up(key="tea", n=3)`."""

import json
import re

from engine.parsing.call_reader import CallReader
from engine.parsing.calls import TOOL_NAME, CallText, NotACall, Tools
from engine.parsing.format import ParameterSyntax
from engine.parsing.json_text import JsonText, NotJson
from engine.parsing.parser import Piece

HEAD = re.compile(rf"(?P<name>{TOOL_NAME})\s*")
HEAD_BEGUN = re.compile(r"[\w.-]{1,128}\s*")
KEY = re.compile(r"\s*(?P<key>\w{1,256})\s*")
KEY_BEGUN = re.compile(r"\s*(\w{1,256}\s*)?")


class PythonicCall:
    """A reader of one call in Python's syntax, whose arguments all have names.

    Args:
        tools: the tools that may be called.
        is_tagged: whether the call comes after a tag. Without one, a call of an unknown
            tool counts as a call only if it has arguments.
    """

    def __init__(self, tools: Tools, *, is_tagged: bool) -> None:
        self._tools = tools
        self._is_tagged = is_tagged
        self._state = "name"
        self._text = ""  # of the name or the key that is being read
        self._name = ""
        self._num_read = 0
        self._num_written = 0  # arguments
        self._value = JsonText()
        self._pending = ""  # what comes before the value that is being read
        self._is_certain = False

    @property
    def complete(self) -> bool:
        return self._state == "done"

    def feed(self, character: str) -> list[Piece]:
        if not self._is_certain:
            self._num_read += 1
        written = self._step(character)
        if self._is_certain:
            return [Piece("arguments", written, 1)]
        if self._state in ("name", "key"):
            return []
        self._is_certain = True
        return [
            Piece("call", self._name, self._num_read),
            Piece("arguments", "{" + written, 0),
        ]

    def end(self) -> list[Piece]:
        if self._state == "done":
            return []
        text = ""
        if self._state == "value" and not self._pending:
            text = self._value.finish()
        return [Piece("arguments", text + "}", 0)]

    def _step(self, character: str) -> str:
        """Return the JSON that `character` makes certain, without the opening brace."""
        if self._state == "name":
            return self._read_name(character)
        if self._state == "value":
            return self._read_value(character)
        if character == ")" and not self._text.strip():
            if not (self._num_written or self._is_tagged or self._name in self._tools):
                raise NotACall
            self._state = "done"
            return "}"
        if self._state == "next":
            if character == ",":
                self._state = "key"
            elif not character.isspace():
                raise NotACall
            return ""
        return self._read_key(character)

    def _read_name(self, character: str) -> str:
        found = HEAD.fullmatch(self._text) if character == "(" else None
        if found is not None:
            self._name, self._text, self._state = found["name"], "", "key"
            return ""
        self._text += character
        if not HEAD_BEGUN.fullmatch(self._text):
            raise NotACall
        return ""

    def _read_key(self, character: str) -> str:
        found = KEY.fullmatch(self._text) if character == "=" else None
        if found is None:
            self._text += character
            if not KEY_BEGUN.fullmatch(self._text):
                raise NotACall
            return ""
        self._pending = (", " if self._num_written else "") + json.dumps(found["key"]) + ": "
        self._text, self._state, self._value = "", "value", JsonText()
        self._num_written += 1
        return ""

    def _read_value(self, character: str) -> str:
        if self._value.in_bare_scalar and (character in ",)" or character.isspace()):
            written = self._written(self._value.finish())
            self._state = "next"
            return written + self._step(character)
        try:
            written = self._written(self._value.feed(character))
        except NotJson:
            raise NotACall from None
        if self._value.is_complete:
            self._state = "next"
        return written

    def _written(self, text: str) -> str:
        """Return new text of a value; before the first of it, also the key."""
        if not text:
            return ""
        pending, self._pending = self._pending, ""
        return pending + text


class PythonicReader(CallReader):
    """A parser of answers with calls in Python's syntax, or as JSON objects."""

    def _new_call(self, begin: str) -> CallText | None:
        if re.match(r"[^\W\d]", begin) and ("[" in self._held or self._open or self._is_after_call):
            return PythonicCall(self._tools, is_tagged=bool(self._open))
        return super()._new_call(begin)


def _begin(key: str, _kind: str) -> str:
    return f"{key}="


PARAMETERS = ParameterSyntax(
    _begin, end="", separator=", ", keys=re.compile(r"[^\W\d]\w*"), is_raw=False
)
