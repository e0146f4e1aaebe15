"""Readers of calls whose arguments are elements, such as `<parameter=key>value</parameter>`."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from engine.parsing.call_reader import CallReader
from engine.parsing.calls import (
    TOOL_NAME,
    ArgumentsText,
    CallText,
    NotACall,
    Tools,
    known_name,
)
from engine.parsing.json_text import StringSearch, quoted
from engine.parsing.parser import Piece
from engine.parsing.tags import Tags
from engine.parsing.values import Kind, Schema, is_text, kinds_of, parameter_schema, typed

STRING = frozenset({"string"})
OBJECT = frozenset({"object"})
WRAPPERS = ("arguments", "parameters", "properties", "input")  # models put arguments in them
BRACKETED = frozenset({"object", "array"})
BARE_NAME = re.compile(r"\s*[\w.-]*\s*")
LONGEST_HEAD = 512  # characters of what names a call or a parameter
CDATA = "<![CDATA[", "]]>"
NOT_STRINGS = frozenset({"number", "boolean", "object", "array", "null"})
WRITTEN_KINDS = {"true": STRING, "false": NOT_STRINGS}  # of `string="..."`


@dataclass(frozen=True)
class Elements:
    """The marks of calls whose arguments are elements.

    Args:
        start: the beginning of a call; "" if the name comes at once after the tag of calls.
        head_end: what ends the head that names the tool; "" if the first parameter does.
        end: the end of a call.
        parameter: the beginning of a parameter.
        key_end: what ends the head that names the parameter.
        parameter_end: the end of a parameter.
        name: finds the `name` in a call's head.
        key: finds the `key` in a parameter's head, and its `kind` where the model writes it.
        is_trimmed: whether values are on lines of their own: the line breaks around a value that
            begins with one do not belong to it.
        is_repaired: whether a parameter also ends where the next one begins or the call ends.
        has_cdata: whether values may be in CDATA sections.
    """

    start: str
    head_end: str
    end: str
    parameter: str
    key_end: str
    parameter_end: str
    name: re.Pattern[str] = re.compile(rf"\s*(?P<name>{TOOL_NAME})\s*")
    key: re.Pattern[str] = re.compile(r"\s*(?P<key>.*?)\s*", re.DOTALL)
    is_trimmed: bool = False
    is_repaired: bool = False
    has_cdata: bool = False


def is_bracketed(kinds: frozenset[Kind]) -> bool:
    """Return whether a parameter of these types may be an object or array, and no string."""
    return bool(kinds & BRACKETED) and "string" not in kinds


def attribute(name: str, group: str) -> str:
    """Return a regular expression for an attribute of a tag; its value is in the group `group`."""
    return rf"""\s*{name}\s*=\s*["']?(?P<{group}>[^"'\s]*)["']?"""


class ElementsCall:
    """A reader of one call whose arguments are elements.

    Args:
        elements: the marks of the format.
        tools: the tools that may be called; the schemas give values their types.
        closes: the tags that may follow a call, and end it if its own end is missing.
    """

    def __init__(self, elements: Elements, tools: Tools, closes: frozenset[str]) -> None:
        self._marks = elements
        self._tools = tools
        self._closes = closes - {elements.end}
        self._state: Literal["name", "body", "key", "value", "json", "done"] = "name"
        self._search = Tags(
            *filter(None, [elements.head_end, elements.parameter, elements.end, *self._closes])
        )
        self._num_read = 0
        self._head = ""
        self._parameters: Schema = {}  # the schema of the called tool
        self._is_first = True  # whether no parameter has been written
        self._value: _Value | None = None
        self._json: ArgumentsText | None = None

    @property
    def complete(self) -> bool:
        return self._state == "done"

    def feed(self, character: str) -> list[Piece]:
        if self._state == "name":
            return self._read_name(character)
        if self._json is not None and not self._json.complete:
            return self._read_json(self._json, character)
        text, tag = self._search.feed(character)
        written = "".join(self._read_text(text))
        if tag:
            written += "".join(self._read_tag(tag))
        return [Piece("arguments", written, len(character))]

    def end(self) -> list[Piece]:
        if self._json is not None:
            return self._json.end()
        if self._state == "done":
            return []
        text = ""
        if self._value is not None:
            text = self._value.cut()
        return [Piece("arguments", text + "}", 0)]

    def _read_name(self, character: str) -> list[Piece]:
        self._num_read += 1
        text, tag = self._search.feed(character)
        self._head += text
        is_name = self._marks.head_end or BARE_NAME.fullmatch(self._head)
        if len(self._head) > LONGEST_HEAD or not is_name:
            raise NotACall
        if not tag:
            return []
        head = self._head.rstrip()
        is_empty = head.endswith("/")  # the element has no content
        found = self._marks.name.fullmatch(head.removesuffix("/") if is_empty else self._head)
        if found is None or not found["name"]:
            raise NotACall
        name = known_name(found["name"], self._tools)
        self._parameters = self._tools.get(name, {})
        self._enter("body")
        written = "".join(self._read_tag(tag) if tag != self._marks.head_end else ())
        if is_empty:
            self._enter("done")
            written = "}"
        return [Piece("call", name, self._num_read), Piece("arguments", "{" + written, 0)]

    def _enter(self, state: Literal["body", "key", "value", "done"]) -> None:
        marks, self._state, self._head = self._marks, state, ""
        if state == "body":
            self._search = Tags(marks.parameter, marks.end, *self._closes)
        elif state == "key":
            self._search = Tags(marks.key_end, marks.parameter, marks.end)
        elif state == "value":
            others = (marks.parameter, marks.end) if marks.is_repaired else ()
            self._search = Tags(marks.parameter_end, *others)

    def _read_text(self, text: str) -> Iterator[str]:
        if self._state == "value" and self._value is not None:
            yield self._value.feed(text)
        elif self._state == "key":
            self._head += text
            if len(self._head) > LONGEST_HEAD:
                raise NotACall
        elif self._state == "body" and self._is_first and text.startswith("{"):
            self._json = ArgumentsText("", 0)
            self._state = "json"
            self._json.feed(text[0])

    def _read_json(self, json_text: ArgumentsText, character: str) -> list[Piece]:
        """Read arguments that the model wrote as a JSON object instead of elements."""
        pieces = [p for p in json_text.feed(character) if p.kind == "arguments"]
        if json_text.complete:
            self._enter("body")
        text = "".join(piece.text for piece in pieces)
        if pieces and self._is_first:
            text, self._is_first = text.removeprefix("{"), False  # it was written with the name
        return [Piece("arguments", text, len(character))]

    def _read_tag(self, tag: str) -> Iterator[str]:
        marks = self._marks
        if self._state == "key" and tag == marks.key_end:
            found = marks.key.fullmatch(self._head)
            groups = {"key": self._head.strip()} if found is None else found.groupdict()
            yield from self._begin_value(groups["key"], groups.get("kind"))
            return
        if self._state == "value":
            if self._value is not None and self._value.contains_tag():
                yield self._value.feed(tag)
                return
            if self._value is not None:
                yield self._written(self._value.finish())
            self._value = None
            self._enter("body")
        if tag == marks.parameter:
            self._enter("key")
        elif tag != marks.parameter_end:
            self._enter("done")
            if self._json is None:
                yield "}"

    def _begin_value(self, key: str, kind: str | None) -> Iterator[str]:
        self._enter("value")
        if not key:  # a value without a name is left out
            return
        kinds = kinds_of(parameter_schema(self._parameters, key), self._parameters)
        if kind is not None:
            written = WRITTEN_KINDS.get(kind, frozenset({kind}))
            kinds = kinds & written or kinds or written
        properties = self._parameters.get("properties")
        is_wrapper = key in WRAPPERS and bool(properties) and key not in (properties or ())
        start = ("" if self._is_first else ", ", json.dumps(key, ensure_ascii=False) + ": ")
        self._value = _Value(*start, kinds, self._marks, is_wrapper=is_wrapper)
        yield self._written(self._value.begin())

    def _written(self, members: str) -> str:
        """Return new JSON of the arguments, and note that there is some."""
        self._is_first = self._is_first and not members
        return members


class _Value:
    """A writer of the JSON of one value, given its raw text.

    Strings are written while they are read, other values once they are complete.

    Args:
        separator: what comes before the key.
        key: the key, with a colon.
        kinds: the JSON types that the value may have.
        marks: the marks of the format.
        is_wrapper: whether the value, if it is an object, holds further arguments and is none
            itself.
    """

    def __init__(
        self, separator: str, key: str, kinds: frozenset[Kind], marks: Elements, *, is_wrapper: bool
    ) -> None:
        self._separator = separator
        self._start = separator + key
        self._kinds = kinds
        self._marks = marks
        self._is_wrapper = is_wrapper
        self._is_streamed = is_text(kinds) and not marks.has_cdata and not is_wrapper
        self._is_trimmed: bool | None = None if marks.is_trimmed else False
        self._raw = ""  # of a string: a line break that may be the last character
        self._strings = StringSearch() if is_bracketed(kinds) else None

    def begin(self) -> str:
        """Return the JSON before a string, with its key; "" for values that are written later."""
        return self._start + '"' if self._is_streamed else ""

    def feed(self, text: str) -> str:
        """Read more text of the value, and return the JSON that is certain now."""
        if self._strings is not None:
            self._strings.feed(text)
        self._raw += text
        if self._is_trimmed is None and self._raw:
            self._is_trimmed = self._raw.startswith("\n")
            self._raw = self._raw.removeprefix("\n")
        if not self._is_streamed:
            return ""
        keep = 1 if self._is_trimmed and self._raw.endswith("\n") else 0
        ready, self._raw = self._raw[: len(self._raw) - keep], self._raw[len(self._raw) - keep :]
        return quoted(ready)

    def contains_tag(self) -> bool:
        """Return whether a tag at this place belongs to the value and does not end it.

        That is so inside a CDATA section, and inside a string of an object or array.
        """
        raw = self._raw.lstrip()
        if self._marks.has_cdata and raw.startswith(CDATA[0]):
            return not raw.rstrip().endswith(CDATA[1])
        return self._strings is not None and self._strings.is_in_string

    def finish(self) -> str:
        """Return the JSON of the value that has not been returned yet."""
        if self._is_trimmed:
            self._raw = self._raw.removesuffix("\n")
        if self._is_streamed:
            return quoted(self._raw) + '"'
        text, kinds = self._raw, self._kinds
        if self._marks.has_cdata and text.strip().startswith(CDATA[0]):
            text = text.strip().removeprefix(CDATA[0]).removesuffix(CDATA[1])
            kinds = STRING if not kinds or "string" in kinds else kinds
        wrapped = typed(text, OBJECT) if self._is_wrapper else ""
        if wrapped.startswith("{"):
            members = wrapped[1:-1].strip()
            return self._separator + members if members else ""
        return self._start + typed(text, kinds)

    def cut(self) -> str:
        """Return what completes a value that the answer breaks off; "" unless it is a string."""
        return '"' if self._is_streamed else ""


class ElementsReader(CallReader):
    """A parser of answers whose calls have elements as arguments.

    Args:
        elements: the marks of the format.
        tools, opens, closes: as for `CallReader`.
    """

    def __init__(
        self,
        elements: Elements,
        tools: Tools,
        *,
        opens: tuple[str, ...] = (),
        closes: tuple[str, ...] = (),
        silent: tuple[str, ...] = (),
    ) -> None:
        starts = (elements.start,) if elements.start else ()
        super().__init__(tools, opens=opens, starts=starts, closes=closes, silent=silent)
        self._elements = elements

    def _new_call(self, begin: str) -> CallText | None:
        start = self._elements.start
        is_start = begin == start if start else re.match(r"[\w.-]", begin) is not None
        if is_start:
            return ElementsCall(self._elements, self._tools, self._closes)
        return super()._new_call(begin)
