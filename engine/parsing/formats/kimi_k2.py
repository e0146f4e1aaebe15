"""The format of Kimi K2: `<|tool_call_begin|>functions.look_up:0<|tool_call_argument_begin|>{...}`.

The number after the name counts calls; all calls of an answer are in one section.
"""

import re

from engine.parsing.call_reader import CallReader
from engine.parsing.calls import TOOL_NAME, CallText, HeadedCall, Tools
from engine.parsing.format import TOOLS, CallSyntax, Format

SECTION, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
BEGIN, ARGUMENTS, END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
HEAD = re.compile(
    rf"\s*(functions\.)?(?P<name>{TOOL_NAME}?)\s*(:\s*\d+\s*)?({re.escape(ARGUMENTS)})?\s*"
)


class KimiReader(CallReader):
    """A parser of calls that are a name, a mark and arguments."""

    def _new_call(self, begin: str) -> CallText | None:
        return HeadedCall(HEAD, END) if begin == BEGIN else None


def recognises(template: str) -> bool:
    """Return whether a chat template contains `<|tool_call_begin|>`."""
    return BEGIN in template


def parser(tools: Tools, _before: str) -> KimiReader:
    """Return a parser of one answer."""
    silent = [ARGUMENTS, END, SECTION_END]
    return KimiReader(tools, opens=[SECTION], starts=[BEGIN], silent=silent)


SYNTAX = CallSyntax(
    open=SECTION,
    begin=f"{BEGIN}functions.%s:0{ARGUMENTS}",
    end=END,
    separator="",
    close=SECTION_END,
    trigger=SECTION,
)
FORMAT = Format(TOOLS, recognises, parser, (SECTION, SECTION_END, BEGIN, ARGUMENTS, END), SYNTAX)
