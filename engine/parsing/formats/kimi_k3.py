"""The format of Kimi K3: `<|open|>call tool="look_up"<|sep|>` with arguments that name their types.

Reasoning, the answer and the calls are each between an opening and a closing mark.
"""

import re

from engine.parsing.calls import Tools
from engine.parsing.elements import Elements, ElementsReader, attribute
from engine.parsing.format import BOTH, CallSyntax, Format, ParameterSyntax, Thought, thought_in
from engine.parsing.parser import Chain, Parser
from engine.parsing.thoughts import ThinkReader

OPEN, CLOSE, SEP, END = "<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"
ELEMENTS = Elements(
    start=f"{OPEN}call",
    head_end=SEP,
    end=f"{CLOSE}call{SEP}",
    parameter=f"{OPEN}argument",
    key_end=SEP,
    parameter_end=f"{CLOSE}argument{SEP}",
    name=re.compile(attribute("tool", "name") + r".*", re.DOTALL),
    key=re.compile(attribute("key", "key") + f"({attribute('type', 'kind')})?" + r"\s*"),
)
PAIRS = {f"{OPEN}think{SEP}": f"{CLOSE}think{SEP}"}
RESPONSE = (f"{OPEN}response{SEP}", f"{CLOSE}response{SEP}")
OTHERS = (*RESPONSE, f"{CLOSE}message{SEP}", END)


def recognises(template: str) -> bool:
    """Return whether a chat template contains `<|open|>`, `<|close|>` and `<|sep|>`."""
    return OPEN in template and CLOSE in template and SEP in template


def parser(tools: Tools, before: str) -> Parser:
    """Return a parser of one answer that continues `before`."""
    calls = (f"{OPEN}tools{SEP}", f"{CLOSE}tools{SEP}")
    return Chain(
        ThinkReader(PAIRS, before),
        lambda: ElementsReader(ELEMENTS, tools, opens=calls[:1], closes=calls[1:], silent=OTHERS),
    )


def thought(before: str, _template: str) -> Thought | None:
    """Return the marks around reasoning; None if `before` ends after it or opens the response."""
    if before.endswith(RESPONSE[0]):
        return None
    return thought_in(PAIRS, before, f"{OPEN}think{SEP}")


def parameter_begin(key: str, kind: str) -> str:
    """Return the opening mark of an argument, with its name and the JSON type of its value."""
    return f'{OPEN}argument key="{key}" type="{kind}"{SEP}'


SYNTAX = CallSyntax(
    open=f"{OPEN}tools{SEP}",
    begin=f'{OPEN}call tool="%s" index="1"{SEP}',
    end=f"{CLOSE}call{SEP}",
    separator="",
    close=f"{CLOSE}tools{SEP}",
    trigger=f"{OPEN}tools{SEP}",
    text_begin=RESPONSE[0],
    parameters=ParameterSyntax(parameter_begin, end=f"{CLOSE}argument{SEP}"),
    whole_begin='{"name": "%s", "arguments": ',
    whole_end="}",
)
FORMAT = Format(BOTH, recognises, parser, (OPEN, CLOSE, SEP, END), SYNTAX, thought)
