"""Where no other format fits: a call as a JSON object, bare or in tags."""

from collections.abc import Collection

from server.parsing.calls import CallReader
from server.parsing.format import TOOLS, Format

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def parser(names: Collection[str], _before: str) -> CallReader:
    return CallReader(names, opens=[OPEN], closes=[CLOSE], at_start=True)


FORMAT = Format(TOOLS, lambda _template: False, parser, special_tokens=(OPEN, CLOSE))
