"""The format for all other models: a call is a JSON object, with or without tags around it.

The prompt describes the tools to these models (`server/conversation/tool_instructions.py`) and asks
for calls in the format `hermes`.
"""

from engine.parsing.call_reader import CallReader
from engine.parsing.calls import Tools
from engine.parsing.format import TOOLS, Format

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def parser(tools: Tools, _before: str) -> CallReader:
    """Return a parser of one answer, which may begin with a call that has no tag."""
    return CallReader(tools, opens=[OPEN], closes=[CLOSE], at_start=True, fenced=True)


FORMAT = Format(TOOLS, lambda _template: False, parser, special_tokens=(OPEN, CLOSE))
