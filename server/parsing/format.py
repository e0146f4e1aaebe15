"""What a file of `server/parsing/formats` states about its format of tool calls or reasoning.

Adding a file adds a format: its name is the file's, and its `FORMAT` says the rest. A model's
answers are read in the format that recognises its chat template, or in the one that its YAML file
names (`parsers: {tools: granite}`). This is a complete one, `server/parsing/formats/granite.py`:

    # Calls in an array behind a tag, `<|tool_call|>[{"name": ..., "arguments": {...}}]`: Granite.

    from collections.abc import Collection

    from server.parsing.calls import CallReader
    from server.parsing.format import TOOLS, CallSyntax, Format

    TAG = "<|tool_call|>"


    def recognises(template: str) -> bool:
        return TAG in template


    def parser(names: Collection[str], before: str) -> CallReader:
        return CallReader(names, opens=[TAG], between="[,]")


    SYNTAX = CallSyntax(
        begin=f'{TAG}[{{"name": "%s", "arguments": ', end="}]", separator=None, trigger=TAG
    )
    FORMAT = Format(TOOLS, recognises, parser, special_tokens=(TAG,), syntax=SYNTAX)

Where a call is not one JSON object, the format has a reader of its own: see `mistral.py` and
`harmony.py`.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

from server.parsing.parser import Parser

Part = Literal["tools", "reasoning"]


@dataclass(frozen=True)
class CallSyntax:
    """How calls are written where a grammar forces them (`tool_choice: "required"`, `strict`).

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
