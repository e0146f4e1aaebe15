"""The format of MiniCPM5: `<function name="look_up"><param name="key">value</param></function>`.

A value with line breaks, `<` or `&` is in a CDATA section.
"""

import re

from engine.parsing.calls import Tools
from engine.parsing.elements import Elements, ElementsReader, attribute
from engine.parsing.format import TOOLS, CallSyntax, Format, ParameterSyntax

ELEMENTS = Elements(
    start="<function name=",
    head_end=">",
    end="</function>",
    parameter="<param",
    key_end=">",
    parameter_end="</param>",
    name=re.compile(r"""["']?(?P<name>[\w.-]+)["']?\s*"""),
    key=re.compile(attribute("name", "key") + r"\s*"),
    has_cdata=True,
)


def recognises(template: str) -> bool:
    """Return whether a chat template contains `<function name=` and `<param name=`."""
    return "<function name=" in template and "<param name=" in template


def parser(tools: Tools, _before: str) -> ElementsReader:
    """Return a parser of one answer."""
    return ElementsReader(ELEMENTS, tools)


def parameter_begin(key: str, kind: str) -> str:
    """Return the opening tag of an argument; for a string, also the start of a CDATA section."""
    return f'<param name="{key}">' + ("<![CDATA[" if kind == "string" else "")


SYNTAX = CallSyntax(
    begin='<function name="%s">',
    end="</function>",
    separator="\n",
    trigger="<function name=",
    parameters=ParameterSyntax(
        parameter_begin, end="</param>", string_end="]]></param>", barred=("]]>",)
    ),
    whole_begin='<function name="%s">',
    whole_end="</function>",
)
FORMAT = Format(TOOLS, recognises, parser, (), SYNTAX)
