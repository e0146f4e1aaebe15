"""The format of Hermes and Qwen: calls in tags, `<tool_call>{"name": ..., "arguments": {...}}`."""

from engine.parsing.call_reader import CallReader
from engine.parsing.calls import Tools
from engine.parsing.format import TOOLS, CallSyntax, Format

OPEN, CLOSE = "<tool_call>", "</tool_call>"
# Qwen3-Coder, GLM and MiniMax M3 put something else than JSON between the same tags. Apriel's
# template asks for these tags, but the model writes others.
NOT_JSON = ("<function=", "<arg_key>", "minimax[>[", "<tool_calls>")


def recognises(template: str) -> bool:
    """Return whether a chat template has `<tool_call>`, and no mark of `NOT_JSON`."""
    return OPEN in template and not any(mark in template for mark in NOT_JSON)


def parser(tools: Tools, _before: str) -> CallReader:
    """Return a parser of one answer. Qwen2.5-Coder often writes a block of JSON without tags."""
    return CallReader(tools, opens=[OPEN], closes=[CLOSE], fenced=True)


SYNTAX = CallSyntax(
    begin=f'{OPEN}\n{{"name": "%s", "arguments": ',
    end=f"}}\n{CLOSE}",
    separator="\n",
    trigger=OPEN,
)
FORMAT = Format(TOOLS, recognises, parser, (OPEN, CLOSE), SYNTAX)
