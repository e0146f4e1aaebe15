"""The format of Apertus: objects with names as keys, `<|tools_prefix|>[{"look_up": {...}}]`."""

from engine.parsing.call_reader import CallReader
from engine.parsing.calls import CallText, KeyedCall, Tools
from engine.parsing.format import TOOLS, CallSyntax, Format

OPEN, CLOSE = "<|tools_prefix|>", "<|tools_suffix|>"


class ApertusReader(CallReader):
    """A parser of calls that are objects with one member, whose key is the name of the tool."""

    def _new_call(self, begin: str) -> CallText | None:
        return KeyedCall() if begin == "{" else None


def recognises(template: str) -> bool:
    """Return whether a chat template contains `<|tools_prefix|>`, which comes before calls."""
    return OPEN in template


def parser(tools: Tools, _before: str) -> ApertusReader:
    """Return a parser of one answer."""
    return ApertusReader(tools, opens=[OPEN], closes=[CLOSE])


SYNTAX = CallSyntax(
    open=f"{OPEN}[",
    begin='{"%s": ',
    end="}",
    separator=", ",
    close=f"]{CLOSE}",
    trigger=OPEN,
)
FORMAT = Format(TOOLS, recognises, parser, (OPEN, CLOSE), SYNTAX)
