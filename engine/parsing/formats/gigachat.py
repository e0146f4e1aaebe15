"""The format of GigaChat 3: one JSON object after a mark, or in a message of its own role."""

from engine.parsing.call_reader import CallReader
from engine.parsing.calls import Tools
from engine.parsing.format import TOOLS, CallSyntax, Format

MARK, ROLE, MESSAGE = "<|function_call|>", "<|role_sep|>", "<|message_sep|>"
HEAD = f"function call{ROLE}"


def recognises(template: str) -> bool:
    """Return whether a chat template marks calls by `<|function_call|>` or by their own role."""
    return MARK in template or (ROLE in template and "'function call'" in template)


def parser(tools: Tools, _before: str) -> CallReader:
    """Return a parser of one answer."""
    return CallReader(tools, opens=[MARK, HEAD], silent=[MESSAGE])


SYNTAX = CallSyntax(
    begin=f'{MARK}{{"name": "%s", "arguments": ', end="}", separator=None, trigger=MARK
)
FORMAT = Format(TOOLS, recognises, parser, (MARK, ROLE, MESSAGE), SYNTAX)
