"""The declaration of a format of tool calls or reasoning, which each file of `formats/` makes.

Adding a file to `engine/parsing/formats` adds a format. The format has the name of the file, and
the file's `FORMAT` declares the rest. A model's answers are read in the format that recognises its
chat template, or in the one that its YAML file names (`parsers: {tools: marked}`). This is a
complete file, `engine/parsing/formats/marked.py`:

    # An array after a mark: `<|calls|>[{"name": ..., "arguments": {...}}]`.

    from engine.parsing.call_reader import CallReader
    from engine.parsing.calls import Tools
    from engine.parsing.format import TOOLS, CallSyntax, Format

    MARK = "<|calls|>"


    def recognises(template: str) -> bool:
        return MARK in template


    def parser(tools: Tools, before: str) -> CallReader:
        return CallReader(tools, opens=[MARK])


    SYNTAX = CallSyntax(
        open=f"{MARK}[",
        begin='{"name": "%s", "arguments": ',
        end="}",
        separator=", ",
        close="]",
        trigger=MARK,
    )
    FORMAT = Format(TOOLS, recognises, parser, special_tokens=(MARK,), syntax=SYNTAX)

Where calls are not JSON objects, there are readers of a name and its arguments (`kimi_k2.py`), of
elements such as `<parameter=key>value</parameter>` (`qwen3_coder.py`), and of Python's syntax
(`lfm2.py`).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from engine.parsing.calls import Tools
from engine.parsing.parser import Parser
from engine.parsing.thoughts import Pairs, begun_thought, find_open_tag

Part = Literal["tools", "reasoning"]


@dataclass(frozen=True)
class ParameterSyntax:
    """The syntax of the arguments of a forced call, where they are not one JSON object.

    Args:
        begin: returns the text before a value, given the key and the JSON type of the value.
        end: the text after a value; of a string, if they differ, `string_end`.
        separator: the text between two arguments.
        keys: matches the keys that can be written.
        is_raw: whether a string is written as it is, up to its end, and not as JSON.
        barred: what a raw string cannot contain, besides its end.
    """

    begin: Callable[[str, str], str]
    end: str
    string_end: str | None = None
    separator: str = ""
    keys: re.Pattern[str] = re.compile(r"[^<>\"'\s]+")
    is_raw: bool = True
    barred: tuple[str, ...] = ()


@dataclass(frozen=True)
class CallSyntax:
    """The syntax of calls that a grammar forces (`tool_choice: "required"`, `strict`).

    Args:
        begin: the text before the arguments of a call, with `%s` for the name of the tool.
        end: the text after the arguments.
        separator: the text between two calls; None if an answer can have only one call.
        open: the text before all calls, once.
        close: the text after all calls, once.
        trigger: the part of `open` or `begin` after which text has to continue as a call; "" if an
            answer is either calls or text, which its beginning decides.
        text_begin: the tags before an answer that is text.
        text_not_begin: the characters with which an answer that is text cannot begin.
        parameters: the syntax of the arguments; None if they are a JSON object.
        whole_begin, whole_end: the text around a call that is one JSON object with the name in it,
            for a tool whose schema `parameters` cannot express.
    """

    begin: str
    end: str
    separator: str | None
    open: str = ""
    close: str = ""
    trigger: str = ""
    text_begin: str = ""
    text_not_begin: str = ""
    parameters: ParameterSyntax | None = None
    whole_begin: str = ""
    whole_end: str = ""


@dataclass(frozen=True)
class Thought:
    """The marks around the thinking part of an answer, which a grammar has to allow.

    Args:
        begin: the opening mark; "" if the prompt has already opened the thinking part.
        close: the closing mark, with what must follow it in any case.
        end: the part of `close` that ends the thinking part; "" for all of it.
        repeats: whether an answer may have several thinking parts, and text before them.
        opened: the opening mark of a thinking part that has already begun; "" if none has.
        begun: what the answer that is continued already has of the thinking part.
    """

    begin: str
    close: str
    end: str = ""
    repeats: bool = False
    opened: str = ""
    begun: str = ""


def thought_in(pairs: Pairs, before: str, tag: str) -> Thought | None:
    """Return the marks around the reasoning of an answer that is read with `ThinkReader`.

    They are those that `before`, which the answer continues, has left open, or else `tag` and its
    closing tag; None if `before` ends with reasoning.
    """
    if before.rstrip().endswith(tuple(pairs.values())):
        return None
    opened = find_open_tag(pairs, before)
    if not opened:
        return Thought(tag, pairs[tag])
    return Thought("", pairs[opened], opened=opened, begun=begun_thought(opened, before))


@dataclass(frozen=True)
class Format:
    """The way in which models of one family mark tool calls, reasoning, or both.

    Args:
        reads: what the parser finds. A parser that finds both is the only one of an answer.
        recognises: returns whether the text of a chat template belongs to this family.
        parser: makes the parser of one answer, given the tools that may be called, with the schemas
            of their parameters, and the text that the answer continues (the prompt, or the
            beginning of the answer).
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
    parser: Callable[[Tools, str], Parser]
    special_tokens: tuple[str, ...] = ()
    syntax: CallSyntax | None = None
    thought: Callable[[str, str], Thought | None] = lambda _before, _template: None
    call_id: Callable[[str], str] = lambda given: given


TOOLS: frozenset[Part] = frozenset({"tools"})
REASONING: frozenset[Part] = frozenset({"reasoning"})
BOTH = TOOLS | REASONING
