"""The format of LFM2: calls in Python's syntax, `<|tool_call_start|>[look_up(key="tea")]`."""

from engine.parsing.calls import Tools
from engine.parsing.format import TOOLS, CallSyntax, Format
from engine.parsing.pythonic import PARAMETERS, PythonicReader

OPEN, CLOSE = "<|tool_call_start|>", "<|tool_call_end|>"
LIST = "List of tools: ["  # the instruct models' templates write no calls


def recognises(template: str) -> bool:
    """Return whether a chat template marks calls, or lists the tools, as LFM2's do."""
    return OPEN in template or LIST in template or "<|tool_list_start|>" in template


def parser(tools: Tools, _before: str) -> PythonicReader:
    """Return a parser of one answer."""
    return PythonicReader(tools, opens=[OPEN], closes=[CLOSE])


SYNTAX = CallSyntax(
    open=f"{OPEN}[",
    begin="%s(",
    end=")",
    separator=", ",
    close=f"]{CLOSE}",
    trigger=OPEN,
    parameters=PARAMETERS,
    whole_begin='{"name": "%s", "arguments": ',
    whole_end="}",
)
FORMAT = Format(TOOLS, recognises, parser, (OPEN, CLOSE), SYNTAX)
