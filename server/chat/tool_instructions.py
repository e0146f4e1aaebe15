"""Tools written into the messages, for chat templates without tools. Pure."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from server.parsing.formats.hermes import SYNTAX

Message = dict[str, Any]


def tell_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Return the conversation with tool calls and tool messages written as text.

    If there are tools, the system message describes them and the form of a call.
    """
    written: list[Message] = []
    for are_results, group in groupby(messages, lambda message: message["role"] == "tool"):
        neighbours = list(group)
        written += (
            [_results_message(neighbours)] if are_results else map(_with_calls_as_text, neighbours)
        )
    if not tools:
        return written
    first = written.pop(0) if written and written[0]["role"] == "system" else {"content": ""}
    text = "\n\n".join(filter(None, [first["content"], _instructions(tools)]))
    return [{"role": "system", "content": text}, *written]


def _instructions(tools: Sequence[Mapping[str, Any]]) -> str:
    """Return the text from which a model learns how to call `tools`."""
    described = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    example = SYNTAX.begin.replace("%s", "NAME") + "{...}" + SYNTAX.end
    return (
        f"You may call these functions:\n{described}\n\n"
        f"To call one, answer with its name and its arguments as a JSON object:\n{example}"
    )


def _results_message(messages: Iterable[Message]) -> Message:
    texts = [f"<tool_response>\n{m['content']}\n</tool_response>" for m in messages]
    return {"role": "user", "content": "\n".join(texts)}


def _with_calls_as_text(message: Message) -> Message:
    calls = [_call_text(call["function"]) for call in message.get("tool_calls", ())]
    text = "\n".join(filter(None, [message["content"], *calls]))
    others = {key: value for key, value in message.items() if key != "tool_calls"}
    return others | {"content": text}


def _call_text(function: Mapping[str, Any]) -> str:
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return SYNTAX.begin.replace("%s", function["name"]) + text + SYNTAX.end
