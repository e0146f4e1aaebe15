"""The format of Gemma 4: `<|tool_call>call:look_up{key:<|"|>tea<|"|>,n:3}<tool_call|>`.

Keys have no quotes, and strings are quoted by `<|"|>`. Reasoning is in a channel, `<|channel>
thought` to `<channel|>`.
"""

import re
from collections.abc import Iterator

from engine.parsing.call_reader import CallReader
from engine.parsing.calls import TOOL_NAME, ArgumentsText, CallText, HeadedCall, Tools
from engine.parsing.format import BOTH, CallSyntax, Format, ParameterSyntax, Thought, thought_in
from engine.parsing.json_text import RAW_QUOTE
from engine.parsing.parser import Chain, Parser, Piece, markup
from engine.parsing.tags import Tags
from engine.parsing.thoughts import ThinkReader

OPEN, CLOSE = "<|tool_call>", "<tool_call|>"
HEAD = re.compile(rf"(call\s*:)?\s*(?P<name>{TOOL_NAME})\s*")
CHANNEL, CHANNEL_END = "<|channel>", "<channel|>"
PAIRS = {f"{CHANNEL}thought": CHANNEL_END}


class GemmaCall(HeadedCall):
    """A reader of one call, which reads the quote `<|"|>` as a single symbol of the arguments."""

    def __init__(self) -> None:
        super().__init__(HEAD, CLOSE)
        self._symbols = Tags(RAW_QUOTE)
        self._is_certain = False

    def _new_arguments(self, name: str, width: int) -> ArgumentsText:
        return ArgumentsText(name, width, has_bare_keys=True)

    def feed(self, character: str) -> list[Piece]:
        if self._arguments is None:
            return super().feed(character)
        text, mark = self._symbols.feed(character)
        pieces: list[Piece] = []
        for symbol in [*text, mark] if mark else text:
            pieces += self._arguments.feed(symbol)
        if self._is_certain:
            return [Piece("arguments", "".join(piece.text for piece in pieces), 1)]
        self._is_certain = bool(pieces)
        return pieces


class GemmaReader(CallReader):
    """A parser of calls that are a name and an object whose keys have no quotes.

    Reasoning may also be between and after calls and text. Empty and unpaired marks of channels,
    which the model often writes, are not shown.
    """

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools, opens=[OPEN], closes=[CLOSE], silent=[CHANNEL, CHANNEL_END])
        self._channel: str | None = None  # what was read of a channel's name; None outside of it
        self._is_reasoning = False

    def _read_text(self, character: str) -> Iterator[Piece]:
        if self._channel is not None and character.isalpha():
            self._channel += character
            return
        yield from self._end_channel()
        yield from super()._read_text(character)

    def _read_tag(self, tag: str) -> Iterator[Piece]:
        yield from self._end_channel()
        yield from super()._read_tag(tag)
        if tag in (CHANNEL, CHANNEL_END):
            self._channel = "" if tag == CHANNEL else None
            self._is_reasoning = False

    def _end_channel(self) -> Iterator[Piece]:
        name, self._channel = self._channel, None
        if name is not None:
            self._is_reasoning = name == "thought"
            yield markup(name)

    def _show(self, text: str) -> Iterator[Piece]:
        for piece in super()._show(text):
            yield piece._replace(kind="reasoning") if self._is_reasoning else piece

    def _end(self) -> Iterator[Piece]:
        yield from self._end_channel()
        yield from super()._end()

    def _new_call(self, begin: str) -> CallText | None:
        return GemmaCall() if re.match(r"[^\W\d]", begin) else super()._new_call(begin)


def recognises(template: str) -> bool:
    """Return whether a chat template contains `<|tool_call>`, which begins a call."""
    return OPEN in template


def parser(tools: Tools, before: str) -> Parser:
    """Return a parser of one answer that continues `before`."""
    return Chain(
        ThinkReader(PAIRS, before),
        lambda: GemmaReader(tools),
    )


def thought(before: str, _template: str) -> Thought | None:
    """Return the marks around reasoning; None if `before` already ends with the closing mark."""
    return thought_in(PAIRS, before, f"{CHANNEL}thought")


def parameter_begin(key: str, kind: str) -> str:
    """Return the name of an argument and a colon; before a string, also the opening quote."""
    return f"{key}:" + (RAW_QUOTE if kind == "string" else "")


SYNTAX = CallSyntax(
    begin=f"{OPEN}call:%s{{",
    end=f"}}{CLOSE}",
    separator="",
    trigger=OPEN,
    parameters=ParameterSyntax(
        parameter_begin,
        end="",
        string_end=RAW_QUOTE,
        separator=",",
        keys=re.compile(r"[\w.$-]+", re.ASCII),
    ),
    whole_begin=f'{OPEN}{{"name": "%s", "arguments": ',
    whole_end=f"}}{CLOSE}",
)
MARKS = (OPEN, CLOSE, RAW_QUOTE, CHANNEL, CHANNEL_END)
FORMAT = Format(BOTH, recognises, parser, MARKS, SYNTAX, thought)
