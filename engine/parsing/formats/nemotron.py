"""The format of Nemotron Nano 2: an array in tags, `<TOOLCALL>[{"name": ..., ...}]`."""

from engine.parsing.call_reader import CallReader
from engine.parsing.calls import Tools
from engine.parsing.format import TOOLS, CallSyntax, Format

OPEN, CLOSE = "<TOOLCALL>", "</TOOLCALL>"


def recognises(template: str) -> bool:
    """Return whether a chat template contains `<TOOLCALL>`, which comes before calls."""
    return OPEN in template


def parser(tools: Tools, _before: str) -> CallReader:
    """Return a parser of one answer."""
    return CallReader(tools, opens=[OPEN], closes=[CLOSE])


SYNTAX = CallSyntax(
    open=f"{OPEN}[",
    begin='{"name": "%s", "arguments": ',
    end="}",
    separator=", ",
    close=f"]{CLOSE}",
    trigger=OPEN,
)
FORMAT = Format(TOOLS, recognises, parser, (OPEN, CLOSE), SYNTAX)
