"""The format of Granite 3: an array after a tag, `<|tool_call|>[{"name": ..., "arguments": ...}]`.

Reasoning is in `<think>` tags, and the answer after it in `<response>` tags; in Granite 3.2 each
follows a sentence instead.
"""

from collections.abc import Iterator

from engine.parsing.call_reader import CallReader
from engine.parsing.calls import Tools
from engine.parsing.format import BOTH, CallSyntax, Format, Thought, thought_in
from engine.parsing.parser import Chain, Parser, Piece, markup
from engine.parsing.thoughts import ThinkReader

TAG = "<|tool_call|>"
WORD, WORD_END = "<tool_call>", "</tool_call>"  # some of the models write the tag as plain text
RESPONSE, RESPONSE_END = "<response>", "</response>"
PAIRS = {
    "<think>": "</think>",
    "Here is my thought process:": "Here is my response:",  # Granite 3.2
    "Here's my thought process:": "Here's my response:",
}


class GraniteReader(CallReader):
    """A parser of calls that also leaves out the tags around the answer (`<response>`)."""

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools, opens=[TAG, WORD], closes=[WORD_END, RESPONSE, RESPONSE_END])
        self._is_at_start = True
        self._in_response = False

    def _read_tag(self, tag: str) -> Iterator[Piece]:
        begins = tag == RESPONSE and self._is_at_start
        if begins or (tag == RESPONSE_END and self._in_response):
            yield markup(self._held + tag)
            self._held, self._in_response = "", begins
            self._is_at_start = False
        else:
            yield from super()._read_tag(tag)

    def _show(self, text: str) -> Iterator[Piece]:
        self._is_at_start = False
        yield from super()._show(text)


def recognises(template: str) -> bool:
    """Return whether a chat template has Granite's role marks and `<|tool_call|>`."""
    return TAG in template and "<|start_of_role|>" in template


def parser(tools: Tools, before: str) -> Parser:
    """Return a parser of one answer that continues `before`."""
    return Chain(ThinkReader(PAIRS, before), lambda: GraniteReader(tools))


def thought(before: str, template: str) -> Thought | None:
    """Return the marks around reasoning; None if `before` already ends with the closing mark."""
    written = (opened for opened in PAIRS if opened in template)
    return thought_in(PAIRS, before, next(written, "<think>"))


SYNTAX = CallSyntax(
    open=f"{TAG}[",
    begin='{"name": "%s", "arguments": ',
    end="}",
    separator=", ",
    close="]",
    trigger=TAG,
)
FORMAT = Format(BOTH, recognises, parser, (TAG, *PAIRS, *PAIRS.values()), SYNTAX, thought)
