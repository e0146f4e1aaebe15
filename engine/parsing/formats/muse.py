"""The format of Muse: messages with recipients, and `<atem:invoke name="look_up">` elements.

A message to `self` is reasoning, one to `user` is the answer, and one to a tool is a call of it.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

from engine.parsing.calls import Tools
from engine.parsing.elements import Elements, ElementsReader, attribute
from engine.parsing.format import BOTH, CallSyntax, Format, ParameterSyntax, Thought, thought_in
from engine.parsing.parser import Chain, Parser, Piece, markup
from engine.parsing.thoughts import ThinkReader

OPEN, CLOSE = "<atem:function_calls>", "</atem:function_calls>"
TO_USER = "to=user"
START, MESSAGE, ENDS = "<|start|>assistant", "<|message|>", ("<|eom|>", "<|eot|>")
ELEMENTS = Elements(
    start="<atem:invoke",
    head_end=">",
    end="</atem:invoke>",
    parameter="<atem:parameter",
    key_end=">",
    parameter_end="</atem:parameter>",
    name=re.compile(attribute("name", "name") + r"\s*"),
    key=re.compile(attribute("name", "key") + r"\s*"),
)
TO_SELF = f"to=self{MESSAGE}"
PAIRS = {TO_SELF: ENDS[0]}
HEAD_BEGUN = re.compile(r"\s*(t|to|to=[\w.*-]*)?\s*")


class MuseReader(ElementsReader):
    """A parser of messages with heads such as ` to=user<|message|>`, which are not shown."""

    def __init__(self, tools: Tools) -> None:
        silent = (START, MESSAGE, *ENDS)
        super().__init__(ELEMENTS, tools, opens=(OPEN,), closes=(CLOSE,), silent=silent)
        self._head: str | None = ""  # what was read of a head; None outside of heads
        self._is_final = False  # whether the message is to the user: it has no calls

    def _read_text(self, character: str) -> Iterator[Piece]:
        if self._head is None:
            yield from super()._read_text(character)
            return
        self._head += character
        if not HEAD_BEGUN.fullmatch(self._head):
            text, self._head = self._head, None
            for each in text:
                yield from super()._read_text(each)

    def _read_tag(self, tag: str) -> Iterator[Piece]:
        head, self._head = self._head, None
        if head is not None:
            yield markup(head)
            self._is_final = head.strip() == TO_USER
        if tag == START:
            self._head = ""
        if self._is_final and tag in (OPEN, ELEMENTS.start, CLOSE):
            yield from self._show(tag)
        else:
            yield from super()._read_tag(tag)

    def _end(self) -> Iterator[Piece]:
        head, self._head = self._head or "", None
        yield markup(head)
        self._open = self._open or head  # what follows is cut off, too
        yield from super()._end()


def recognises(template: str) -> bool:
    """Return whether a chat template contains `<atem:`, with which the tags of calls begin."""
    return "<atem:" in template


def parser(tools: Tools, before: str) -> Parser:
    """Return a parser of one answer that continues `before`."""
    return Chain(ThinkReader(PAIRS, before), lambda: MuseReader(tools))


def thought(before: str, _template: str) -> Thought | None:
    """Return the marks around reasoning; None if `before` already ends with the closing mark."""
    found = thought_in(PAIRS, before, TO_SELF)
    if found is None:
        return None
    begin = found.begin and f" {found.begin}"  # a blank is between the role and the recipient
    return replace(found, begin=begin, close=f"{ENDS[0]}{START}", end=ENDS[0])


def parameter_begin(key: str, _kind: str) -> str:
    """Return the opening tag of the argument `key`, which comes before its value."""
    return f'<atem:parameter name="{key}">'


SYNTAX = CallSyntax(
    begin=f' to=%s{MESSAGE}{OPEN}\n<atem:invoke name="%s">\n',
    end=f"</atem:invoke>\n{CLOSE}",
    separator=f"{ENDS[0]}{START}",
    text_begin=f" {TO_USER}{MESSAGE}",
    parameters=ParameterSyntax(parameter_begin, end="</atem:parameter>\n"),
    whole_begin=f' to=%s{MESSAGE}{OPEN}\n{{"name": "%s", "arguments": ',
    whole_end=f"}}\n{CLOSE}",
)
MARKS = ("<|start|>", MESSAGE, *ENDS)
FORMAT = Format(BOTH, recognises, parser, MARKS, SYNTAX, thought)
