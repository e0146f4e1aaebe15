"""The format of Qwen3-Coder, Qwen3.5, Nemotron 3 and Step 3.5: elements on lines of their own.

A call is `<tool_call>`, `<function=look_up>`, `<parameter=key>`, the value, `</parameter>`,
`</function>` and `</tool_call>`, each on a line of its own. The models may forget the first tag.
"""

from engine.parsing.calls import Tools
from engine.parsing.elements import Elements, ElementsReader
from engine.parsing.format import TOOLS, CallSyntax, Format, ParameterSyntax

OPEN, CLOSE = "<tool_call>", "</tool_call>"
ELEMENTS = Elements(
    start="<function=",
    head_end=">",
    end="</function>",
    parameter="<parameter=",
    key_end=">",
    parameter_end="</parameter>",
    is_trimmed=True,
    is_repaired=True,
)


def recognises(template: str) -> bool:
    """Return whether a chat template has `<tool_call>`, `<function=` and `<parameter=`."""
    return OPEN in template and "<function=" in template and "<parameter=" in template


def parser(tools: Tools, _before: str) -> ElementsReader:
    """Return a parser of one answer."""
    return ElementsReader(ELEMENTS, tools, opens=(OPEN,), closes=(CLOSE,))


def parameter_begin(key: str, _kind: str) -> str:
    """Return the opening tag of the argument `key`, on a line before its value."""
    return f"<parameter={key}>\n"


SYNTAX = CallSyntax(
    begin=f"{OPEN}\n<function=%s>\n",
    end=f"</function>\n{CLOSE}",
    separator="\n",
    trigger=OPEN,
    parameters=ParameterSyntax(
        parameter_begin,
        end="\n</parameter>\n",
        barred=("</parameter>", "<parameter=", "</function>"),
    ),
    whole_begin=f'{OPEN}\n{{"name": "%s", "arguments": ',
    whole_end=f"}}\n{CLOSE}",
)
FORMAT = Format(TOOLS, recognises, parser, (OPEN, CLOSE), SYNTAX)
