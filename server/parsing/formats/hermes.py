"""Calls in tags, `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes, Qwen."""

from collections.abc import Collection

from server.parsing.calls import CallReader
from server.parsing.format import TOOLS, CallSyntax, Format

OPEN, CLOSE = "<tool_call>", "</tool_call>"
# others put something else than JSON between the same tags (Qwen3-Coder, GLM)
NOT_JSON = ("<function=", "<arg_key>")


def recognises(template: str) -> bool:
    return OPEN in template and not any(mark in template for mark in NOT_JSON)


def parser(names: Collection[str], _before: str) -> CallReader:
    return CallReader(names, opens=[OPEN], closes=[CLOSE])


SYNTAX = CallSyntax(
    begin=f'{OPEN}\n{{"name": "%s", "arguments": ',
    end=f"}}\n{CLOSE}",
    separator="\n",
    trigger=OPEN,
)
FORMAT = Format(TOOLS, recognises, parser, (OPEN, CLOSE), SYNTAX)
