"""The format of Hermes and Qwen: calls in tags, `<tool_call>{"name": ..., ...}</tool_call>`."""

from collections.abc import Collection

from server.parsing.calls import CallReader
from server.parsing.format import TOOLS, CallSyntax, Format

OPEN, CLOSE = "<tool_call>", "</tool_call>"
# other models write something else than JSON between the same tags (Qwen3-Coder, GLM)
NOT_JSON = ("<function=", "<arg_key>")


def recognises(template: str) -> bool:
    """Return whether a chat template writes calls as JSON between the tags."""
    return OPEN in template and not any(mark in template for mark in NOT_JSON)


def parser(names: Collection[str], _before: str) -> CallReader:
    """Return a parser of one answer."""
    return CallReader(names, opens=[OPEN], closes=[CLOSE])


SYNTAX = CallSyntax(
    begin=f'{OPEN}\n{{"name": "%s", "arguments": ',
    end=f"}}\n{CLOSE}",
    separator="\n",
    trigger=OPEN,
)
FORMAT = Format(TOOLS, recognises, parser, (OPEN, CLOSE), SYNTAX)
