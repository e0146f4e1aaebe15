"""What a file of `server/parsers` says of its format."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

from server.parsing.pieces import Parser

Part = Literal["tools", "reasoning"]


@dataclass(frozen=True)
class Format:
    """How models of one family mark tool calls, reasoning, or both.

    Args:
        reads: what its parser finds; one that finds both is the only parser of an answer.
        recognises: whether the text of a chat template is of this family.
        parser: makes the parser of one answer, from the names of the tools that may be called and
            the text which the answer continues (the prompt, or the beginning of the answer).
        special_tokens: the marks it looks for, where they are special tokens of the model: they
            are part of the answer's text then, which they would not be otherwise.
    """

    reads: frozenset[Part]
    recognises: Callable[[str], bool]
    parser: Callable[[Collection[str], str], Parser]
    special_tokens: tuple[str, ...] = ()


TOOLS: frozenset[Part] = frozenset({"tools"})
REASONING: frozenset[Part] = frozenset({"reasoning"})
BOTH = TOOLS | REASONING
