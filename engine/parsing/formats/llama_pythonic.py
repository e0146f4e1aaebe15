"""The format of Llama 3.2 and 4 with a template of their own: `[look_up(key="tea"), now()]`."""

import re

from engine.parsing.calls import Tools
from engine.parsing.format import TOOLS, CallSyntax, Format
from engine.parsing.pythonic import PARAMETERS, PythonicReader

MARKS = ("<|python_start|>", "<|python_end|>")
ASKED = re.compile(r"\[func_name1?\(")


def recognises(template: str) -> bool:
    """Return whether a chat template asks for a list of calls in Python's syntax."""
    return ASKED.search(template) is not None


def parser(tools: Tools, _before: str) -> PythonicReader:
    """Return a parser of one answer, which may begin with calls that have no tag."""
    return PythonicReader(tools, opens=MARKS[:1], closes=MARKS[1:], at_start=True)


SYNTAX = CallSyntax(
    open="[",
    begin="%s(",
    end=")",
    separator=", ",
    close="]",
    text_not_begin="{[< \t\r\n",
    parameters=PARAMETERS,
    whole_begin='{"name": "%s", "arguments": ',
    whole_end="}",
)
FORMAT = Format(TOOLS, recognises, parser, MARKS, SYNTAX)
