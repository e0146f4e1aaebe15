"""The format of Solar Open: a call is an id, a name and arguments, each after a mark.

An answer is reasoning after `<|think|>`, text after `<|content|>`, or calls after `<|tool_calls|>`,
each in a message of its own.
"""

import re
from dataclasses import replace

from engine.parsing.call_reader import CallReader
from engine.parsing.calls import TOOL_NAME, CallText, HeadedCall, Tools
from engine.parsing.format import BOTH, CallSyntax, Format, Thought, thought_in
from engine.parsing.parser import Chain, Parser
from engine.parsing.thoughts import ThinkReader

BEGIN, NAME = "<|tool_call:begin|>", "<|tool_call:name|>"
ARGUMENTS, END = "<|tool_call:args|>", "<|tool_call:end|>"
HEAD = re.compile(
    rf"[\w-]*{re.escape(NAME)}\s*(?P<name>{TOOL_NAME})\s*({re.escape(ARGUMENTS)})?\s*"
)
THINK, MESSAGE_END, MESSAGE = "<|think|>", "<|end|>", "<|begin|>assistant"
CALLS, CALLS_END, CONTENT = "<|tool_calls|>", "<|calls|>", "<|content|>"
PAIRS = {THINK: MESSAGE_END}


class SolarReader(CallReader):
    """A parser of calls that are an id, a name and arguments."""

    def _new_call(self, begin: str) -> CallText | None:
        return HeadedCall(HEAD, END) if begin == BEGIN else None


def recognises(template: str) -> bool:
    """Return whether a chat template contains `<|tool_call:begin|>`, which begins a call."""
    return BEGIN in template


def parser(tools: Tools, before: str) -> Parser:
    """Return a parser of one answer that continues `before`."""
    silent = (MESSAGE, MESSAGE_END, CALLS, CALLS_END, CONTENT)
    return Chain(
        ThinkReader(PAIRS, before),
        lambda: SolarReader(tools, starts=[BEGIN], closes=[END], silent=silent),
    )


def thought(before: str, _template: str) -> Thought | None:
    """Return the marks around reasoning; None if `before` already ends with the closing mark."""
    found = thought_in(PAIRS, before, THINK)
    close = f"{MESSAGE_END}{MESSAGE}"
    return None if found is None else replace(found, close=close, end=MESSAGE_END)


SYNTAX = CallSyntax(
    open=CALLS,
    begin=f"{BEGIN}call000000{NAME}%s{ARGUMENTS}",
    end=END,
    separator="",
    close="",  # the mark after calls ends the answer: it is an end-of-sequence token
    text_begin=CONTENT,
)
MARKS = (BEGIN, NAME, ARGUMENTS, END, THINK, MESSAGE_END, "<|begin|>", CALLS, CALLS_END, CONTENT)
FORMAT = Format(BOTH, recognises, parser, MARKS, SYNTAX, thought)
