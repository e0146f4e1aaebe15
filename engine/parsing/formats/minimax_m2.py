"""The format of MiniMax M2: `<invoke name="look_up">` with `<parameter name="key">` in tags."""

import re

from engine.parsing.calls import Tools
from engine.parsing.elements import Elements, ElementsReader, attribute
from engine.parsing.format import TOOLS, CallSyntax, Format, ParameterSyntax

OPEN, CLOSE = "<minimax:tool_call>", "</minimax:tool_call>"
ELEMENTS = Elements(
    start="<invoke",
    head_end=">",
    end="</invoke>",
    parameter="<parameter",
    key_end=">",
    parameter_end="</parameter>",
    name=re.compile(attribute("name", "name") + r"\s*"),
    key=re.compile(attribute("name", "key") + r"\s*"),
)


def recognises(template: str) -> bool:
    """Return whether a chat template contains `<minimax:tool_call>`, which comes before calls."""
    return OPEN in template


def parser(tools: Tools, _before: str) -> ElementsReader:
    """Return a parser of one answer."""
    return ElementsReader(ELEMENTS, tools, opens=(OPEN,), closes=(CLOSE,))


def parameter_begin(key: str, _kind: str) -> str:
    """Return the opening tag of the argument `key`, which comes before its value."""
    return f'<parameter name="{key}">'


SYNTAX = CallSyntax(
    open=f"{OPEN}\n",
    begin='<invoke name="%s">\n',
    end="</invoke>\n",
    separator="",
    close=CLOSE,
    trigger=OPEN,
    parameters=ParameterSyntax(parameter_begin, end="</parameter>\n"),
    whole_begin='{"name": "%s", "arguments": ',
    whole_end="}\n",
)
FORMAT = Format(TOOLS, recognises, parser, (OPEN, CLOSE), SYNTAX)
