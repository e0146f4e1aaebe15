"""The format of Phi-4-mini and FireFunction: an array of calls after a tag or after `functools`."""

from engine.parsing.call_reader import CallReader
from engine.parsing.calls import Tools
from engine.parsing.format import TOOLS, CallSyntax, Format

OPEN, CLOSE = "<|tool_call|>", "<|/tool_call|>"
WORD = "functools"


def recognises(template: str) -> bool:
    """Return whether a chat template contains `<|/tool|>`, or asks for `functools[...]`."""
    return "<|/tool|>" in template or f"{WORD}[" in template


def parser(tools: Tools, _before: str) -> CallReader:
    """Return a parser of one answer."""
    return CallReader(tools, opens=[OPEN, WORD], closes=[CLOSE])


SYNTAX = CallSyntax(
    open=f"{WORD}[",
    begin='{"name": "%s", "arguments": ',
    end="}",
    separator=", ",
    close="]",
    trigger=f"{WORD}[",
)
FORMAT = Format(TOOLS, recognises, parser, (OPEN, CLOSE), SYNTAX)
