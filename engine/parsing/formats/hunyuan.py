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
SEPARATOR = "<tool_sep"  # the beginning of the tag after a tool's name
NAMES = ("tool_calls", "tool_call", "tool_sep", "arg_key", "arg_value", "think")


def recognises(template: str) -> bool:
    """Return whether a chat template contains both `:opensource` and `<tool_sep`."""
    return SUFFIX in template and SEPARATOR in template


def format_of(suffix: str) -> Format:
    """Return the format whose tags have this suffix."""
    tags = {slash + name: f"<{slash}{name}{suffix}>" for name in NAMES for slash in ("", "/")}
    pairs = {tags["think"]: tags["/think"]}
    elements = Elements(
        start=tags["tool_call"],
        head_end=tags["tool_sep"],
        end=tags["/tool_call"],
        parameter=tags["arg_key"],
        key_end=tags["arg_value"],
        parameter_end=tags["/arg_value"],
        key=re.compile(rf"\s*(?P<key>.*?)\s*{tags['/arg_key']}\s*", re.DOTALL),
    )
    opens, closes = (tags["tool_calls"],), (tags["/tool_calls"],)

    def parser(tools: Tools, before: str) -> Parser:
        return Chain(
            ThinkReader(pairs, before),
            lambda: ElementsReader(elements, tools, opens=opens, closes=closes),
        )

    def thought(before: str, _template: str) -> Thought | None:
        return thought_in(pairs, before, tags["think"])

    def parameter_begin(key: str, _kind: str) -> str:
        return f"{tags['arg_key']}{key}{tags['/arg_key']}\n{tags['arg_value']}"

    syntax = CallSyntax(
        open=f"{tags['tool_calls']}\n",
        begin=f"{tags['tool_call']}%s{tags['tool_sep']}\n",
        end=f"{tags['/tool_call']}\n",
        separator="",
        close=tags["/tool_calls"],
        trigger=tags["tool_calls"],
        parameters=ParameterSyntax(parameter_begin, end=f"{tags['/arg_value']}\n"),
        whole_begin='{"name": "%s", "arguments": ',
        whole_end="}\n",
    )
    return Format(BOTH, recognises, parser, tuple(tags.values()), syntax, thought)


FORMAT = format_of(SUFFIX)
