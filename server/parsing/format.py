"""What a file of `server/parsing/formats` says of its format."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

from server.parsing.parser import Parser

Part = Literal["tools", "reasoning"]


@dataclass(frozen=True)
class CallSyntax:
    """How calls are written, where they are forced.

    Args:
        begin: what comes before the arguments, with `%s` for the tool's name.
        end: what comes behind them.
        separator: what stands between two calls; None: there is one at most.
        trigger: the part of `begin` that makes a call of what was text; "": an answer is calls
            or text, and which of them is seen from its beginning.
        text_begin: the tags before an answer that is text.
        text_not_begin: the characters with which an answer does not begin that is text.
    """

    begin: str
    end: str
    separator: str | None
    trigger: str = ""
    text_begin: str = ""
    text_not_begin: str = ""


@dataclass(frozen=True)
class Thought:
    """The thinking part of an answer, for grammars: `begin` "" where the prompt has begun it."""

    begin: str
    close: str


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
        syntax: of calls that are forced; None: they are forced in the syntax of `hermes`.
        thought: the thinking part of an answer, from the text it continues and the chat template;
            None where there is none (any more).
        call_id: an id that its templates take, for the one a message has.
    """

    reads: frozenset[Part]
    recognises: Callable[[str], bool]
    parser: Callable[[Collection[str], str], Parser]
    special_tokens: tuple[str, ...] = ()
    syntax: CallSyntax | None = None
    thought: Callable[[str, str], Thought | None] = lambda _before, _template: None
    call_id: Callable[[str], str] = lambda given: given


TOOLS: frozenset[Part] = frozenset({"tools"})
REASONING: frozenset[Part] = frozenset({"reasoning"})
BOTH = TOOLS | REASONING
