"""The format of Apriel: `<tool_calls>[{"name": ..., "arguments": ...}]`, and reasoning in words.

The reasoning begins with "Here are my reasoning steps:", with which some prompts end. The answer
comes after `[BEGIN FINAL RESPONSE]`.
"""

from engine.parsing.call_reader import CallReader
from engine.parsing.calls import Tools
from engine.parsing.format import BOTH, CallSyntax, Format, Thought, thought_in
from engine.parsing.parser import Chain, Parser
from engine.parsing.thoughts import ThinkReader

OPEN, CLOSE = "<tool_calls>", "</tool_calls>"
STEPS, RESPONSE = "Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"
ENDS = ("[END FINAL RESPONSE]", "<|end|>")
PAIRS = {STEPS: RESPONSE}


def recognises(template: str) -> bool:
    """Return whether a chat template contains `[BEGIN FINAL RESPONSE]`, which ends reasoning."""
    return RESPONSE in template


def parser(tools: Tools, before: str) -> Parser:
    """Return a parser of one answer that continues `before`."""
    silent = (RESPONSE, *ENDS)
    return Chain(
        ThinkReader(PAIRS, before),
        lambda: CallReader(tools, opens=[OPEN], closes=[CLOSE], silent=silent),
    )


def thought(before: str, _template: str) -> Thought | None:
    """Return the marks around reasoning; None if `before` already ends with the closing mark."""
    return thought_in(PAIRS, before, STEPS)


SYNTAX = CallSyntax(
    open=f"{OPEN}[",
    begin='{"name": "%s", "arguments": ',
    end="}",
    separator=", ",
    close=f"]{CLOSE}",
    trigger=OPEN,
)
FORMAT = Format(BOTH, recognises, parser, (OPEN, CLOSE, RESPONSE, *ENDS), SYNTAX, thought)
