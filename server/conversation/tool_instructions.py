"""Tools, calls and results as text, for chat templates that do not support them. Pure functions."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from engine.parsing.format import CallSyntax
from server.conversation.features import Message


def tell_tools(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], syntax: CallSyntax
) -> list[Message]:
    """Return the conversation with the tools and the format of calls in its system message."""
    if not tools:
        return list(messages)
    has_system = bool(messages) and messages[0]["role"] == "system"
    system = messages[0] if has_system else {"role": "system", "content": None}
    text = "\n\n".join(filter(None, [system["content"], _instructions(tools, syntax)]))
    return [{**system, "content": text}, *messages[has_system:]]


def tell_calls(messages: Sequence[Message], syntax: CallSyntax) -> list[Message]:
    """Return the conversation with calls and results written as text in ordinary messages."""
    written: list[Message] = []
    for are_results, group in groupby(messages, lambda message: message["role"] == "tool"):
        if are_results:
            written.append(_results_message(group))
        else:
            written += (_with_calls_as_text(message, syntax) for message in group)
    return written


def _instructions(tools: Sequence[Mapping[str, Any]], syntax: CallSyntax) -> str:
    """Return the text that explains to a model how to call `tools`."""
    described = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    return (
        f"You may call these functions:\n{described}\n\n"
        "To call one, answer with its name and its arguments as a JSON object:\n"
        f"{_written('NAME', '{...}', syntax)}"
    )


def _results_message(messages: Iterable[Message]) -> Message:
    texts = [f"<tool_response>\n{m['content'] or ''}\n</tool_response>" for m in messages]
    return {"role": "user", "content": "\n".join(texts)}


def _with_calls_as_text(message: Message, syntax: CallSyntax) -> Message:
    if "tool_calls" not in message:
        return message
    calls = [_call_text(call["function"], syntax) for call in message["tool_calls"]]
    text = "\n".join(filter(None, [message["content"], *calls]))
    others = {key: value for key, value in message.items() if key != "tool_calls"}
    return others | {"content": text}


def _call_text(function: Mapping[str, Any], syntax: CallSyntax) -> str:
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return _written(function["name"], text, syntax)


def _written(name: str, arguments: str, syntax: CallSyntax) -> str:
    """Return the text of a call whose arguments are JSON, a form that every parser accepts."""
    begin, end = syntax.begin, syntax.end
    if syntax.parameters is not None:
        begin, end = syntax.whole_begin, syntax.whole_end
    return f"{syntax.open}{begin.replace('%s', name)}{arguments}{end}{syntax.close}"
