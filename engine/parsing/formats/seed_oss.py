"""The format of Seed-OSS: `<function=look_up>` with `<parameter=key>value</parameter>` in tags."""

from dataclasses import replace

from engine.parsing.calls import Tools
from engine.parsing.elements import ElementsReader
from engine.parsing.format import TOOLS, CallSyntax, Format, ParameterSyntax
from engine.parsing.formats import qwen3_coder

OPEN, CLOSE = "<seed:tool_call>", "</seed:tool_call>"
ELEMENTS = replace(qwen3_coder.ELEMENTS, is_trimmed=False)


def recognises(template: str) -> bool:
    """Return whether a chat template contains `<seed:tool_call>`, which comes before calls."""
    return OPEN in template


def parser(tools: Tools, _before: str) -> ElementsReader:
    """Return a parser of one answer."""
    return ElementsReader(ELEMENTS, tools, opens=(OPEN,), closes=(CLOSE,))


def parameter_begin(key: str, _kind: str) -> str:
    """Return the opening tag of the argument `key`, which comes before its value."""
    return f"<parameter={key}>"


SYNTAX = CallSyntax(
    begin=f"{OPEN}\n<function=%s>\n",
    end=f"</function>\n{CLOSE}",
    separator="\n",
    trigger=OPEN,
    parameters=ParameterSyntax(
        parameter_begin,
        end="</parameter>\n",
        barred=("</parameter>", "<parameter=", "</function>"),
    ),
    whole_begin=f'{OPEN}\n{{"name": "%s", "arguments": ',
    whole_end=f"}}\n{CLOSE}",
)
FORMAT = Format(TOOLS, recognises, parser, (OPEN, CLOSE), SYNTAX)
