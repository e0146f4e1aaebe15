"""The format for all other models: a call is a JSON object, with or without tags around it."""

from collections.abc import Collection

from server.parsing.calls import CallReader
from server.parsing.format import TOOLS, Format

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def parser(names: Collection[str], _before: str) -> CallReader:
    """Return a parser of one answer, which may begin with a call that has no tag."""
    return CallReader(names, opens=[OPEN], closes=[CLOSE], at_start=True)


FORMAT = Format(TOOLS, lambda _template: False, parser, special_tokens=(OPEN, CLOSE))
