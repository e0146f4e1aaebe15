"""What an answer must match: its calls, its text, and the thinking part before them.

Compiling grammars takes a while: call what raises `ApiError` in a thread.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from server.chat.grammars import (
    Tagged,
    after_thinking,
    behind,
    chat_grammar,
    checked,
    json_grammar,
    tagged,
)
from server.chat.parameter_grammar import is_expressible
from server.chat.tools import ToolUse
from server.errors import ApiError
from server.parsing.format import CallSyntax
from server.parsing.selection import Formats
from server.schemas.chat import ChatRequest
from server.schemas.tools import Tool


def answer_grammar(
    request: ChatRequest, use: ToolUse, formats: Formats, tokens: Mapping[str, int]
) -> str:
    """The grammar of what follows the thinking part, "" where anything may.

    `tokens` are the tokenizer's added tokens by spelling. Raises `ApiError` 400 for what does not
    compile.
    """
    text = chat_grammar(request)
    if use.is_forced or (use.tools and text):
        grammar = calls_grammar(use, formats, tokens, text)
        _check(grammar, use, request.tools or ())
        return grammar
    syntax = formats.tools.syntax
    if text and syntax is not None and syntax.text_begin:
        return behind(syntax.text_begin, text, tokens)
    return text


def calls_grammar(use: ToolUse, formats: Formats, tokens: Mapping[str, int], text: str = "") -> str:
    """Answers that are calls where one is required, else calls or text.

    `text` is the grammar of an answer without calls; with "", any text may come before them.
    """
    syntax = formats.tools.syntax
    assert syntax is not None, "calls are forced in formats that have a syntax"
    return tagged(
        [_passage(tool.function.name, use.schema(tool), syntax) for tool in use.tools],
        at_least_one=use.required,
        several=use.parallel and syntax.separator is not None,
        free_text=not use.required and not text and bool(syntax.trigger),
        separator=syntax.separator or "",
        opening=syntax.open,
        closing=syntax.close,
        trigger=syntax.trigger,
        text=text,
        text_begin=syntax.text_begin,
        text_not_begin=syntax.text_not_begin,
        tokens=tokens,
    )


def _passage(name: str, schema: Mapping[str, Any], syntax: CallSyntax) -> Tagged:
    """A call of a tool: as one JSON object where the format's parameters cannot express it."""
    begin, end, parameters = syntax.begin, syntax.end, syntax.parameters
    if parameters is not None and not is_expressible(schema, parameters):
        begin, end, parameters = syntax.whole_begin, syntax.whole_end, None
    return Tagged(begin.replace("%s", name), schema, end, parameters)


def _check(grammar: str, use: ToolUse, tools: Sequence[Tool]) -> None:
    """Raise `ApiError` 400 where a grammar of calls does not compile, at the schema to blame."""
    try:
        checked(grammar, "tools")
    except ApiError:
        for index, tool in enumerate(tools):
            if tool in use.tools:
                schema = json_grammar(use.schema(tool))
                checked(schema, f"tools.{index}.function.parameters")
        raise


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
