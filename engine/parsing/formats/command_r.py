"""The format of Command R7B and A: `<|START_ACTION|>[{"tool_name": ..., "parameters": {...}}]`.

Reasoning is between `<|START_THINKING|>` and `<|END_THINKING|>`, and the answer may be marked too.
"""

from engine.parsing.call_reader import CallReader
from engine.parsing.calls import CallObject, CallText, Tools
from engine.parsing.format import BOTH, CallSyntax, Format, Thought, thought_in
from engine.parsing.parser import Chain, Parser
from engine.parsing.thoughts import ThinkReader

OPEN, CLOSE = "<|START_ACTION|>", "<|END_ACTION|>"
PAIRS = {"<|START_THINKING|>": "<|END_THINKING|>"}
TEXT = ("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>")


class CommandReader(CallReader):
    """A parser of calls whose objects hold the name of the tool under the key "tool_name"."""

    def _new_call(self, begin: str) -> CallText | None:
        if begin != "{":
            return None
        return CallObject(self._tools, name="tool_name", others=("tool_call_id",))


def recognises(template: str) -> bool:
    """Return whether a chat template contains `<|START_ACTION|>`, which comes before calls."""
    return OPEN in template


def parser(tools: Tools, before: str) -> Parser:
    """Return a parser of one answer that continues `before`."""
    return Chain(
        ThinkReader(PAIRS, before),
        lambda: CommandReader(tools, opens=[OPEN], closes=[CLOSE], silent=TEXT),
    )


def thought(before: str, _template: str) -> Thought | None:
    """Return the marks around reasoning; None if `before` already ends with the closing mark."""
    return thought_in(PAIRS, before, "<|START_THINKING|>")


SYNTAX = CallSyntax(
    open=f"{OPEN}[\n    ",
    begin='{"tool_call_id": "0", "tool_name": "%s", "parameters": ',
    end="}",
    separator=",\n    ",
    close=f"\n]{CLOSE}",
    trigger=OPEN,
)
MARKS = (OPEN, CLOSE, *PAIRS, *PAIRS.values(), *TEXT)
FORMAT = Format(BOTH, recognises, parser, MARKS, SYNTAX, thought)
