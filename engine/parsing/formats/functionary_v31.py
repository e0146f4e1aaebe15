"""The format of Functionary 3.1: `<function=look_up>{"key": "tea"}</function>`."""

from engine.parsing.calls import Tools
from engine.parsing.elements import ElementsReader
from engine.parsing.format import TOOLS, CallSyntax, Format
from engine.parsing.formats.qwen3_coder import ELEMENTS


def recognises(template: str) -> bool:
    """Return whether a chat template contains `<function=`, but no `<parameter=`."""
    return "<function=" in template and "<parameter=" not in template


def parser(tools: Tools, _before: str) -> ElementsReader:
    """Return a parser of one answer."""
    return ElementsReader(ELEMENTS, tools)


SYNTAX = CallSyntax(begin="<function=%s>", end="</function>", separator="", trigger="<function=")
FORMAT = Format(TOOLS, recognises, parser, (), SYNTAX)
