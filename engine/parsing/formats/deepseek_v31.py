"""The format of DeepSeek V3.1: marks around a name and the arguments of each call.

The reader also takes what V3 and R1 write (`deepseek_v3.py`).
"""

import re

from engine.parsing.call_reader import CallReader
from engine.parsing.calls import TOOL_NAME, CallText, HeadedCall, Tools
from engine.parsing.format import TOOLS, CallSyntax, Format

SECTION, SECTION_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
BEGIN, SEPARATOR, END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
HEAD = re.compile(
    rf"\s*(function\s*{SEPARATOR})?\s*(?P<name>{TOOL_NAME})\s*({SEPARATOR})?\s*(```json)?\s*"
)


class DeepSeekReader(CallReader):
    """A parser of calls that begin with `BEGIN` and the name of the tool."""

    def _new_call(self, begin: str) -> CallText | None:
        is_unmarked = self._open == SECTION and re.match(r"[\w.-]", begin)  # models forget `BEGIN`
        return HeadedCall(HEAD, END) if begin == BEGIN or is_unmarked else None

    def _leftovers(self) -> str:
        return "]}`"


def recognises(template: str) -> bool:
    """Return whether a chat template has V3's marks of calls, but no ```json blocks."""
    return BEGIN in template and "```json" not in template


def parser(tools: Tools, _before: str) -> DeepSeekReader:
    """Return a parser of one answer."""
    return DeepSeekReader(tools, opens=[SECTION], starts=[BEGIN], silent=[END, SECTION_END])


SYNTAX = CallSyntax(
    open=SECTION,
    begin=f"{BEGIN}%s{SEPARATOR}",
    end=END,
    separator="",
    close=SECTION_END,
    trigger=SECTION,
)
MARKS = (SECTION, SECTION_END, BEGIN, SEPARATOR, END)
FORMAT = Format(TOOLS, recognises, parser, MARKS, SYNTAX)
