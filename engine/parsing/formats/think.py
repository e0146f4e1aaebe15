"""The format of reasoning in tags at the start of an answer, such as `<think>...</think>`."""

from engine.parsing.calls import Tools
from engine.parsing.format import REASONING, Format, Thought, thought_in
from engine.parsing.thoughts import ThinkReader

PAIRS = {
    "<think>": "</think>",  # DeepSeek-R1, Qwen3, and most
    "[THINK]": "[/THINK]",  # Magistral
    "<seed:think>": "</seed:think>",  # Seed-OSS
    "<mm:think>": "</mm:think>",  # MiniMax M3
    "<|START_THINKING|>": "<|END_THINKING|>",  # Command A
    "<|inner_prefix|>": "<|inner_suffix|>",  # Apertus
}


def recognises(template: str) -> bool:
    """Return whether a chat template contains a tag of reasoning, such as `<think>`."""
    return any(tag in template for pair in PAIRS.items() for tag in pair)


def parser(_tools: Tools, before: str) -> ThinkReader:
    """Return a parser of one answer that continues `before`."""
    return ThinkReader(PAIRS, before)


def thought(before: str, template: str) -> Thought | None:
    """Return the tags around reasoning; None if `before` already ends with a closing tag."""
    written = [tag for tag in PAIRS if tag in template]
    return thought_in(PAIRS, before, next(iter(written), "<think>"))


MARKS = (*PAIRS, *PAIRS.values())
FORMAT = Format(REASONING, recognises, parser, MARKS, thought=thought)
