"""Grammars of answers in which tool calls are forced. Pure."""

from collections.abc import Mapping, Sequence

from server.formats import Formats
from server.schemas.tools import Tool
from server.structured import Tagged, after_thinking, checked, in_form, is_fit, serialized, tagged
from server.tools import ToolUse


def calls_grammar(use: ToolUse, formats: Formats, tokens: Mapping[str, int]) -> str:
    """The grammar of what follows the thinking part.

    `tokens` are the tokenizer's added tokens by spelling. With a required call the answer is
    calls; else text may come before or instead of them.
    """
    syntax = formats.tools.syntax
    assert syntax is not None, "calls are forced in formats that have a syntax"
    return tagged(
        [
            Tagged(syntax.begin % tool.function.name, use.schema(tool), syntax.end)
            for tool in use.tools
        ],
        at_least_one=use.required,
        several=use.parallel and syntax.separator is not None,
        free_text=not use.required and bool(syntax.trigger),
        separator=syntax.separator or "",
        trigger=syntax.trigger,
        text_begin=syntax.text_begin,
        text_not_begin=syntax.text_not_begin,
        tokens=tokens,
    )


def check_schemas(grammar: str, use: ToolUse, tools: Sequence[Tool]) -> None:
    """Raise `ApiError` 400 where a grammar of calls cannot be followed, at the schema to blame.

    `tools` are all of the request.
    """
    if is_fit(grammar):
        return
    for index, tool in enumerate(tools):
        if tool in use.tools:
            schema = serialized(json_schema=in_form(use.schema(tool)))
            checked(schema, f"tools.{index}.function.parameters")
    checked(grammar, "tools")  # each of them can be, but not all at once


def behind_thought(
    grammar: str, formats: Formats, before: str, template: str, tokens: Mapping[str, int]
) -> str:
    """The grammar of a whole answer, which may have a free thinking part before what is forced.

    `before` is what the answer continues, `template` the text of the chat template.
    """
    thought = None if formats.reasoning is None else formats.reasoning.thought(before, template)
    if thought is None:
        return grammar
    return after_thinking(grammar, thought.close, tokens, begin=thought.begin)
