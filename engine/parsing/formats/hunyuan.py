"""The format of Hunyuan 3: GLM's elements inside one outer element, each tag with a suffix.

Its template builds the tags from a variable, so they cannot be found in its text.
"""

import re

from engine.parsing.calls import Tools
from engine.parsing.elements import Elements, ElementsReader
from engine.parsing.format import BOTH, CallSyntax, Format, ParameterSyntax, Thought, thought_in
from engine.parsing.parser import Chain, Parser
from engine.parsing.thoughts import ThinkReader

SUFFIX = ":opensource"


def tag(name: str) -> str:
    """Return the tag with this name and the suffix of all tags."""
    return f"<{name}{SUFFIX}>"


OPENS = (tag("tool_calls"), tag("tool_call"))
CLOSES = (tag("/tool_calls"), tag("/tool_call"))
ELEMENTS = Elements(
    start=OPENS[1],
    head_end=tag("tool_sep"),
    end=CLOSES[1],
    parameter=tag("arg_key"),
    key_end=tag("arg_value"),
    parameter_end=tag("/arg_value"),
    key=re.compile(rf"\s*(?P<key>.*?)\s*{tag('/arg_key')}\s*", re.DOTALL),
)
PAIRS = {tag("think"): tag("/think")}


def recognises(template: str) -> bool:
    """Return whether a chat template contains both `:opensource` and `<tool_sep`."""
    return SUFFIX in template and "<tool_sep" in template


def parser(tools: Tools, before: str) -> Parser:
    """Return a parser of one answer that continues `before`."""
    return Chain(
        ThinkReader(PAIRS, before),
        lambda: ElementsReader(ELEMENTS, tools, opens=OPENS[:1], closes=CLOSES[:1]),
    )


def thought(before: str, _template: str) -> Thought | None:
    """Return the marks around reasoning; None if `before` already ends with the closing mark."""
    return thought_in(PAIRS, before, tag("think"))


def parameter_begin(key: str, _kind: str) -> str:
    """Return the element with an argument's name, and the tag that opens its value."""
    return f"{tag('arg_key')}{key}{tag('/arg_key')}\n{tag('arg_value')}"


SYNTAX = CallSyntax(
    open=f"{OPENS[0]}\n",
    begin=f"{OPENS[1]}%s{tag('tool_sep')}\n",
    end=f"{CLOSES[1]}\n",
    separator="",
    close=CLOSES[0],
    trigger=OPENS[0],
    parameters=ParameterSyntax(parameter_begin, end=f"{tag('/arg_value')}\n"),
    whole_begin='{"name": "%s", "arguments": ',
    whole_end="}\n",
)
NAMES = ("tool_calls", "tool_call", "tool_sep", "arg_key", "arg_value", "think")
MARKS = tuple(tag(slash + name) for name in NAMES for slash in ("", "/"))
FORMAT = Format(BOTH, recognises, parser, MARKS, SYNTAX, thought)
