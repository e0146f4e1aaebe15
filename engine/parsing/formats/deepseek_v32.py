"""The format of DeepSeek V3.2 and V4: elements whose tags begin with `｜DSML｜`.

V3.2 writes all calls into one element, `<｜DSML｜function_calls>`. The tag of a parameter says
whether it is a string.
"""

import re

from engine.parsing.calls import Tools
from engine.parsing.elements import Elements, ElementsReader, attribute
from engine.parsing.format import TOOLS, CallSyntax, Format, ParameterSyntax

MARK = "｜DSML｜"
OPENS = (f"<{MARK}function_calls>", f"<{MARK}tool_calls>")
CLOSES = (f"</{MARK}function_calls>", f"</{MARK}tool_calls>")
ELEMENTS = Elements(
    start=f"<{MARK}invoke",
    head_end=">",
    end=f"</{MARK}invoke>",
    parameter=f"<{MARK}parameter",
    key_end=">",
    parameter_end=f"</{MARK}parameter>",
    name=re.compile(attribute("name", "name") + r"\s*"),
    key=re.compile(attribute("name", "key") + f"({attribute('string', 'kind')})?" + r"\s*"),
)


def recognises(template: str) -> bool:
    """Return whether a chat template has `｜DSML｜` tags and a `function_calls` element."""
    return MARK in template and "function_calls>" in template


def parser(tools: Tools, _before: str) -> ElementsReader:
    """Return a parser of one answer."""
    return ElementsReader(ELEMENTS, tools, opens=OPENS, closes=CLOSES)


def parameter_begin(key: str, kind: str) -> str:
    """Return the opening tag of an argument, which says whether its value is a string."""
    return f'<{MARK}parameter name="{key}" string="{str(kind == "string").lower()}">'


def syntax_of(section: int) -> CallSyntax:
    """Return the syntax of forced calls inside the element that `OPENS[section]` opens."""
    return CallSyntax(
        open=f"{OPENS[section]}\n",
        begin=f'<{MARK}invoke name="%s">\n',
        end=f"</{MARK}invoke>\n",
        separator="",
        close=CLOSES[section],
        trigger=OPENS[section],
        parameters=ParameterSyntax(parameter_begin, end=f"</{MARK}parameter>\n"),
        whole_begin='{"name": "%s", "arguments": ',
        whole_end="}\n",
    )


FORMAT = Format(TOOLS, recognises, parser, (MARK,), syntax_of(0))
