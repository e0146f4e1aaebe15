"""The declaration of a format of tool calls or reasoning, which each file of `formats/` makes.

Adding a file to `server/parsing/formats` adds a format. The format has the name of the file, and
the file's `FORMAT` declares the rest. A model's answers are read in the format that recognises its
chat template, or in the one that its YAML file names (`parsers: {tools: granite}`). This is a
complete file, `server/parsing/formats/granite.py`:

    # Granite writes an array after a tag: `<|tool_call|>[{"name": ..., "arguments": {...}}]`.

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

A format whose calls are not single JSON objects has a parser of its own: see `mistral.py` and
`harmony.py`.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

from server.parsing.parser import Parser

Part = Literal["tools", "reasoning"]


@dataclass(frozen=True)
class CallSyntax:
    """The syntax of calls that a grammar forces (`tool_choice: "required"`, `strict`).

    Args:
        begin: the text before the arguments, with `%s` for the name of the tool.
        end: the text after the arguments.
        separator: the text between two calls; None if an answer can have only one call.
        trigger: the part of `begin` after which text has to continue as a call; "" if an answer is
            either calls or text, which its beginning decides.
        text_begin: the tags before an answer that is text.
        text_not_begin: the characters with which an answer that is text cannot begin.
    """

    begin: str
    end: str
    separator: str | None
    trigger: str = ""
    text_begin: str = ""
    text_not_begin: str = ""


@dataclass(frozen=True)
class Thought:
    """The marks around the thinking part of an answer, which a grammar has to allow.

    Args:
        begin: the opening mark; "" if the prompt has already opened the thinking part.
        close: the closing mark.
    """

    begin: str
    close: str


@dataclass(frozen=True)
class Format:
    """The way in which models of one family mark tool calls, reasoning, or both.

    Args:
        reads: what the parser finds. A parser that finds both is the only one of an answer.
        recognises: returns whether the text of a chat template belongs to this family.
        parser: makes the parser of one answer, given the names of the tools that may be called and
            the text that the answer continues (the prompt, or the beginning of the answer).
        special_tokens: the marks that the parser looks for. Where a mark is a special token of the
            model, the answer's text shows it to the parser; it would be left out otherwise.
        syntax: the syntax of forced calls; None if they are forced in the syntax of `hermes`.
        thought: returns the marks around the thinking part of an answer, given the text that the
            answer continues and the chat template; None if no thinking part can follow.
        call_id: returns the id of a tool call in a form that the chat templates accept, given the
            id in the message.
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
