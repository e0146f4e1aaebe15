"""The grammar of an answer: its calls, its text, and the thinking part before them.

Compiling a grammar is slow: call the functions that raise `ApiError` in a thread.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.parsing.format import CallSyntax
from engine.parsing.selection import Formats
from server.chat.grammars import (
    Check,
    Passage,
    allow_thinking,
    chat_grammar,
    checked,
    dropped_keywords,
    json_grammar,
    passages_grammar,
    prepend_tags,
)
from server.chat.json_schemas import prepared_schema
from server.chat.parameter_grammar import is_expressible
from server.chat.tools import ToolUse
from server.errors import ApiError
from server.schemas.chat import ChatRequest
from server.schemas.tools import Tool


def answer_grammar(
    request: ChatRequest,
    use: ToolUse,
    formats: Formats,
    tokens: Mapping[str, int],
    check: Check,
) -> str:
    """Return the grammar of what follows the thinking part; "" if anything may follow.

    Raise `ApiError` 400 for a grammar that does not compile.

    Args:
        request: the chat that is answered.
        use: the tools that the answer may call.
        formats: the formats of the answer, with a syntax for forced calls.
        tokens: the ids of the tokenizer's added tokens, by their spelling.
        check: the check of grammars for this model.
    """
    text = chat_grammar(request, check)
    if use.is_forced or (use.tools and text):
        grammar = calls_grammar(use, formats, tokens, text)
        _check(grammar, use, request.offered, check)
        return grammar
    syntax = formats.tools.syntax
    if text and syntax is not None and syntax.text_begin:
        return prepend_tags(syntax.text_begin, text, tokens)
    return text


def dropped_of_answer(request: ChatRequest, use: ToolUse) -> list[str]:
    """Return the keywords that `answer_grammar` drops from schemas."""
    dropped = dropped_keywords(request)
    if use.is_forced:
        for tool in use.tools:
            is_strict = bool(tool.function.strict)
            dropped += prepared_schema(use.schema(tool), is_strict=is_strict)[1]
    return dropped


def calls_grammar(use: ToolUse, formats: Formats, tokens: Mapping[str, int], text: str = "") -> str:
    """Return the grammar of an answer that is calls, or text where no call is required.

    `text` is the grammar of an answer without calls. If it is "", that answer is any text, and the
    formats that have a trigger also allow text before calls.
    """
    syntax = formats.tools.syntax
    assert syntax is not None, "calls are forced in formats that have a syntax"
    return passages_grammar(
        [_passage(tool, use.schema(tool), syntax) for tool in use.tools],
        at_least_one=use.is_required,
        several=use.is_parallel and syntax.separator is not None,
        free_text=not use.is_required and not text and bool(syntax.trigger),
        separator=syntax.separator or "",
        opening=syntax.open,
        closing=syntax.close,
        trigger=syntax.trigger,
        text=text,
        text_begin=syntax.text_begin,
        text_not_begin=syntax.text_not_begin,
        tokens=tokens,
    )


def _passage(tool: Tool, schema: Mapping[str, Any], syntax: CallSyntax) -> Passage:
    """Return a call of a tool, as one JSON object if the format cannot express its parameters."""
    schema, _ = prepared_schema(schema, is_strict=bool(tool.function.strict))
    begin, end, parameters = syntax.begin, syntax.end, syntax.parameters
    if parameters is not None and not is_expressible(schema, parameters):
        begin, end, parameters = syntax.whole_begin, syntax.whole_end, None
    return Passage(begin.replace("%s", tool.function.name), schema, end, parameters)


def _check(grammar: str, use: ToolUse, offered: Sequence[tuple[str, Tool]], check: Check) -> None:
    """Raise `ApiError` 400 if a grammar of calls does not compile, naming the schema at fault."""
    try:
        checked(grammar, "tools", check)
    except ApiError:
        used = {tool.function.name for tool in use.tools}  # comparing whole tools would be slow
        for path, tool in offered:
            if tool.function.name in used:
                schema, is_strict = use.schema(tool), bool(tool.function.strict)
                checked(json_grammar(schema, is_strict=is_strict), f"{path}.parameters", check)
        raise


def behind_thought(
    grammar: str, formats: Formats, before: str, template: str, tokens: Mapping[str, int]
) -> str:
    """Return the grammar of a whole answer, with a free thinking part before `grammar`.

    Args:
        grammar: the grammar of what follows the thinking part.
        formats: the formats of the answer; without reasoning there is no thinking part.
        before: the text that the answer continues.
        template: the text of the chat template.
        tokens: the ids of the tokenizer's added tokens, by their spelling.
    """
    thought = None if formats.reasoning is None else formats.reasoning.thought(before, template)
    if thought is None:
        return grammar
    return allow_thinking(grammar, thought.close, tokens, begin=thought.begin)
