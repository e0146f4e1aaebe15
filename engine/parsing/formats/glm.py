"""The format of GLM-4.5 to 4.7, Ling 3, Laguna and Spark: `<arg_key>` and `<arg_value>` elements.

A call is `<tool_call>`, the name, a key and a value for each argument, and `</tool_call>`.
"""

import re

from engine.parsing.calls import Tools
from engine.parsing.elements import Elements, ElementsReader
from engine.parsing.format import TOOLS, CallSyntax, Format, ParameterSyntax

OPEN, CLOSE = "<tool_call>", "</tool_call>"
ELEMENTS = Elements(
    start="",
    head_end="",
    end=CLOSE,
    parameter="<arg_key>",
    key_end="<arg_value>",
    parameter_end="</arg_value>",
    key=re.compile(r"\s*(?P<key>.*?)\s*</arg_key>\s*", re.DOTALL),
)


def recognises(template: str) -> bool:
    """Return whether a chat template contains `<arg_key>`, but not Hunyuan's `<tool_sep`."""
    return "<arg_key>" in template and "<tool_sep" not in template


def parser(tools: Tools, _before: str) -> ElementsReader:
    """Return a parser of one answer."""
    return ElementsReader(ELEMENTS, tools, opens=(OPEN,), closes=(CLOSE,))


def parameter_begin(key: str, _kind: str) -> str:
    """Return the element with an argument's name, and the tag that opens its value."""
    return f"<arg_key>{key}</arg_key>\n<arg_value>"


SYNTAX = CallSyntax(
    begin=f"{OPEN}%s\n",
    end=CLOSE,
    separator="\n",
    trigger=OPEN,
    parameters=ParameterSyntax(parameter_begin, end="</arg_value>\n"),
    whole_begin=f'{OPEN}{{"name": "%s", "arguments": ',
    whole_end=f"}}{CLOSE}",
)
MARKS = (OPEN, CLOSE, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
FORMAT = Format(TOOLS, recognises, parser, MARKS, SYNTAX)
