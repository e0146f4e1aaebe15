"""The format of MiniMax M1: objects on lines of their own between `<tool_calls>` tags."""

from engine.parsing.call_reader import CallReader
from engine.parsing.calls import Tools
from engine.parsing.format import TOOLS, CallSyntax, Format

OPEN, CLOSE = "<tool_calls>", "</tool_calls>"


def recognises(template: str) -> bool:
    """Return whether a chat template writes JSON on the line after `<tool_calls>`."""
    return f"{OPEN}\\n" in template or f"{OPEN}\n{{" in template


def parser(tools: Tools, _before: str) -> CallReader:
    """Return a parser of one answer."""
    return CallReader(tools, opens=[OPEN], closes=[CLOSE])


SYNTAX = CallSyntax(
    open=f"{OPEN}\n",
    begin='{"name": "%s", "arguments": ',
    end="}\n",
    separator="",
    close=CLOSE,
    trigger=OPEN,
)
FORMAT = Format(TOOLS, recognises, parser, (OPEN, CLOSE), SYNTAX)
