"""The format of MiniMax M3: `<invoke name="look_up">`, and an element for each argument.

Every tag comes after a mark. An object has an element for each key, an array has `<item>` elements.
"""

import json
import re
from dataclasses import dataclass, field

from engine.parsing.call_reader import CallReader
from engine.parsing.calls import CallText, NotACall, Tools
from engine.parsing.elements import LONGEST_HEAD, attribute, is_bracketed
from engine.parsing.format import TOOLS, CallSyntax, Format, ParameterSyntax
from engine.parsing.json_text import StringSearch
from engine.parsing.parser import Piece
from engine.parsing.tags import Tags
from engine.parsing.values import Schema, kinds_of, parameter_schema, typed

MARK = "]<]minimax[>["
OPEN, CLOSE = f"{MARK}<tool_call>", f"{MARK}</tool_call>"
INVOKE, ITEM = "<invoke", "item"
NAME = re.compile(attribute("name", "name") + r"\s*")
MAX_DEPTH = 64  # of elements in each other


@dataclass
class Element:
    """An element that is being read: its name, its text, and the elements in it."""

    name: str
    text: str = ""
    children: list["Element"] = field(default_factory=list)

    def add(self, text: str) -> None:
        """Append more of the text between the tags."""
        self.text += text

    def written(self, schema: Schema, parameters: Schema) -> str:
        """Return the element's value as JSON, with the types that its own `schema` gives."""
        kinds = kinds_of(schema, parameters)
        if not self.children:
            if not self.text.strip() and kinds in ({"object"}, {"array"}):
                return "{}" if kinds == {"object"} else "[]"
            return typed(self.text, kinds)
        is_list = all(child.name == ITEM for child in self.children)
        if is_list and ("array" in kinds or "object" not in kinds):
            items = schema.get("items")
            inner = items if isinstance(items, dict) else {}
            values = [child.written(inner, parameters) for child in self.children]
            return f"[{', '.join(values)}]"
        members: dict[str, list[str]] = {}
        for child in self.children:
            value = child.written(parameter_schema(schema, child.name), parameters)
            members.setdefault(child.name, []).append(value)
        written = (
            f"{json.dumps(name, ensure_ascii=False)}: "
            + (values[0] if len(values) == 1 else f"[{', '.join(values)}]")
            for name, values in members.items()
        )
        return f"{{{', '.join(written)}}}"


class MiniMaxCall:
    """A reader of one call, which begins at the name of the tool."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._tags = Tags(f"{MARK}<")
        self._head: str | None = ""  # what was read inside a tag; None outside of tags
        self._num_read = 0
        self._parameters: Schema | None = None  # of the tool, once its name is read
        self._open: list[Element] = []
        self._strings: StringSearch | None = None  # of a parameter that is written as JSON
        self._num_written = 0
        self.complete = False

    def feed(self, character: str) -> list[Piece]:
        if self._parameters is None:
            return self._read_name(character)
        if self._head is None:
            text, tag = self._tags.feed(character)
            self._add(text)
            if tag and self._strings is not None and self._strings.is_in_string:
                self._add(tag)
            elif tag:
                self._head = ""
            return [Piece("arguments", "", 1)]
        if character != ">":
            self._head += character
            if len(self._head) > LONGEST_HEAD:
                raise NotACall
            return [Piece("arguments", "", 1)]
        name, self._head = self._head.strip(), None
        return [Piece("arguments", self._read_tag(name, self._parameters), 1)]

    def end(self) -> list[Piece]:
        return [] if self.complete else [Piece("arguments", "}", 0)]

    def _add(self, text: str) -> None:
        """Add text between tags to the element that is being read."""
        if self._open:
            self._open[-1].add(text)
        if self._strings is not None:
            self._strings.feed(text)

    def _read_name(self, character: str) -> list[Piece]:
        assert self._head is not None, "a call begins inside of a tag"
        self._num_read += 1
        if character != ">":
            self._head += character
            if len(self._head) > LONGEST_HEAD:
                raise NotACall
            return []
        found = NAME.fullmatch(self._head)
        if found is None or not found["name"]:
            raise NotACall
        self._parameters, self._head = self._tools.get(found["name"], {}), None
        return [Piece("call", found["name"], self._num_read), Piece("arguments", "{", 0)]

    def _read_tag(self, name: str, parameters: Schema) -> str:
        """Open or close an element, and return the JSON of an argument that is complete now."""
        if not name.startswith("/"):
            self._open.append(Element(name))
            if len(self._open) > MAX_DEPTH:
                raise NotACall
            is_json = len(self._open) == 1 and is_bracketed(
                kinds_of(parameter_schema(parameters, name), parameters)
            )
            self._strings = StringSearch() if is_json else None
            return ""
        if not self._open:
            self.complete = True
            return "}"
        element, self._strings = self._open.pop(), None
        if self._open:
            self._open[-1].children.append(element)
            return ""
        value = element.written(parameter_schema(parameters, element.name), parameters)
        separator, self._num_written = ", " if self._num_written else "", self._num_written + 1
        return f"{separator}{json.dumps(element.name, ensure_ascii=False)}: {value}"


class MiniMaxReader(CallReader):
    """A parser of calls whose arguments are nested elements."""

    def _new_call(self, begin: str) -> CallText | None:
        if begin == f"{MARK}{INVOKE}":
            return MiniMaxCall(self._tools)
        return super()._new_call(begin)


def recognises(template: str) -> bool:
    """Return whether a chat template contains `]<]minimax[>[`, the mark before each tag."""
    return MARK in template


def parser(tools: Tools, _before: str) -> MiniMaxReader:
    """Return a parser of one answer."""
    return MiniMaxReader(tools, opens=[OPEN], starts=[f"{MARK}{INVOKE}"], closes=[CLOSE])


def parameter_begin(key: str, _kind: str) -> str:
    """Return the opening tag of the argument `key`, which comes before its value."""
    return f"{MARK}<{key}>"


SYNTAX = CallSyntax(
    open=f"{OPEN}\n",
    begin=f'{MARK}{INVOKE} name="%s">',
    end=f"{MARK}</invoke>\n",
    separator="",
    close=CLOSE,
    trigger=MARK,
    parameters=ParameterSyntax(
        parameter_begin,
        end=f"{MARK}</{{key}}>",
        keys=re.compile(r"[^<>\"'\s/]+"),
        barred=(MARK,),
    ),
    whole_begin='{"name": "%s", "arguments": ',
    whole_end="}\n",
)
FORMAT = Format(TOOLS, recognises, parser, (MARK,), SYNTAX)
