"""Tools in the words of the messages, for chat templates that know of none. Pure."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from server.parsing.formats.hermes import SYNTAX

Message = dict[str, Any]


def tell_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The same conversation without tool calls and tool messages: both become text.

    The system message tells of the tools, and how a call is written.
    """
    told: list[Message] = []
    for are_results, group in groupby(messages, lambda message: message["role"] == "tool"):
        run = list(group)
        told += [_results(run)] if are_results else map(_with_calls, run)
    if not tools:
        return told
    first = told.pop(0) if told and told[0]["role"] == "system" else {"content": ""}
    text = "\n\n".join(filter(None, [first["content"], instructions(tools)]))
    return [{"role": "system", "content": text}, *told]


def instructions(tools: Sequence[Mapping[str, Any]]) -> str:
    """What a model must know to call a tool."""
    described = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    example = SYNTAX.begin.replace("%s", "NAME") + "{...}" + SYNTAX.end
    return (
        f"You may call these functions:\n{described}\n\n"
        f"To call one, answer with its name and its arguments as a JSON object:\n{example}"
    )


def _results(messages: Iterable[Message]) -> Message:
    texts = [f"<tool_response>\n{m['content']}\n</tool_response>" for m in messages]
    return {"role": "user", "content": "\n".join(texts)}


def _with_calls(message: Message) -> Message:
    calls = [_call(call["function"]) for call in message.get("tool_calls", ())]
    text = "\n".join(filter(None, [message["content"], *calls]))
    others = {key: value for key, value in message.items() if key != "tool_calls"}
    return others | {"content": text}


def _call(function: Mapping[str, Any]) -> str:
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return SYNTAX.begin.replace("%s", function["name"]) + text + SYNTAX.end
