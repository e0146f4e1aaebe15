"""The format of reasoning of DeepSeek R1's first templates, whose prompts do not open it.

The model always reasons, and usually writes the opening tag itself.
"""

from dataclasses import replace

from engine.parsing.calls import Tools
from engine.parsing.format import Thought
from engine.parsing.formats import think
from engine.parsing.thoughts import ThinkReader

OPEN, CLOSE = "<think>", "</think>"
PROMPT_ENDS = ("<｜Assistant｜>", "<｜tool▁outputs▁end｜>")


def recognises(template: str) -> bool:
    """Return whether a chat template has DeepSeek's marks and `</think>`, but no `<think>`."""
    return PROMPT_ENDS[0] in template and CLOSE in template and OPEN not in template


def parser(_tools: Tools, before: str) -> ThinkReader:
    """Return a parser of one answer, which begins with reasoning if `before` is a whole prompt."""
    opened = OPEN if before.rstrip().endswith(PROMPT_ENDS) else ""
    return ThinkReader(think.PAIRS, before, opened)


def thought(before: str, template: str) -> Thought | None:
    """Return the tags around reasoning; None if `before` already ends with the closing tag."""
    if before.rstrip().endswith(PROMPT_ENDS):
        return Thought("", CLOSE, opened=OPEN)
    return think.thought(before, template)


FORMAT = replace(think.FORMAT, recognises=recognises, parser=parser, thought=thought)
