"""The format of Functionary 3.2: `>>>` and a recipient, `all` or a tool, before each part.

The prompt ends with the first `>>>`.
"""

import re
from collections.abc import Iterator

from engine.parsing.calls import TOOL_NAME, ArgumentsText, NotACall, Tools
from engine.parsing.format import BOTH, CallSyntax, Format
from engine.parsing.parser import BLANKS, Piece, Reader, content, markup
from engine.parsing.tags import Tags

MARK, ALL = ">>>", "all"
HEAD = re.compile(rf"({MARK})?(?P<recipient>{TOOL_NAME})\n")
HEAD_BEGUN = re.compile(rf"({MARK})?[\w.-]{{0,128}}")


class FunctionaryReader(Reader):
    """A parser of messages, each a head (a line with the recipient) and a body.

    Args:
        tools: the tools that may be called. Without any, heads other than `all` are shown as text.
        is_marked: whether the answer begins inside a head, since the prompt ends with `>>>`.
    """

    def __init__(self, tools: Tools, *, is_marked: bool) -> None:
        self._tools = tools
        self._tags = Tags(MARK)
        self._head = "" if is_marked else None  # what was read of a head; None outside of heads
        self._call: ArgumentsText | None = None
        self._uncertain = ""  # head and body of a call that is not certain yet

    def _read(self, character: str) -> Iterator[Piece]:
        if self._call is not None and not self._call.complete:
            yield from self._read_call(self._call, character)
            return
        text, tag = self._tags.feed(character)
        for each in text:
            yield from self._read_text(each)
        if tag:
            yield from self._show(self._head or "")
            self._call, self._head = None, tag

    def _read_text(self, character: str) -> Iterator[Piece]:
        if self._head is None:
            is_after_call = self._call is not None and character in BLANKS
            yield markup(character) if is_after_call else content(character)
            return
        self._head += character
        found = HEAD.fullmatch(self._head)
        if found is not None and found["recipient"] == ALL:
            yield markup(self._head)
            self._head = None
        elif found is not None and self._tools:
            self._call = ArgumentsText(found["recipient"], len(self._head))
            self._uncertain, self._head = self._head, None
        elif not HEAD_BEGUN.fullmatch(self._head):
            yield from self._show(self._head)

    def _read_call(self, call: ArgumentsText, character: str) -> Iterator[Piece]:
        try:
            pieces = call.feed(character)
        except NotACall:
            yield from self._leave_call(call)
            yield from self._read(character)
            return
        self._uncertain = "" if pieces else self._uncertain + (character if self._uncertain else "")
        yield from pieces

    def _leave_call(self, call: ArgumentsText) -> Iterator[Piece]:
        self._call, uncertain, self._uncertain = None, self._uncertain, ""
        if uncertain:
            yield content(uncertain)
        else:
            yield from call.end()

    def _show(self, text: str) -> Iterator[Piece]:
        self._head = None
        yield content(text)

    def _end(self) -> Iterator[Piece]:
        mark = self._tags.finish()
        yield markup(mark) if len(mark) > 1 else content(mark)
        if self._call is not None and not self._call.complete:
            yield markup(self._uncertain)
            if not self._uncertain:
                yield from self._call.end()
        head = self._head or ""
        recipients = (ALL, *self._tools)
        is_cut = any(name.startswith(head.removeprefix(MARK)) for name in recipients)
        yield markup(head) if is_cut else content(head)


def recognises(template: str) -> bool:
    """Return whether a chat template writes `>>>` and then the recipient of a message."""
    return f"{MARK}${{recipient}}" in template or f"{MARK}{ALL}" in template


def parser(tools: Tools, before: str) -> FunctionaryReader:
    """Return a parser of one answer that continues `before`."""
    return FunctionaryReader(tools, is_marked=before.endswith(MARK))


SYNTAX = CallSyntax(begin="%s\n", end="", separator=MARK, text_begin=f"{ALL}\n")
FORMAT = Format(BOTH, recognises, parser, (), SYNTAX)
