"""Tools written into the messages, for chat templates without tools. Pure."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from server.parsing.format import CallSyntax

Message = dict[str, Any]


def tell_tools(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], syntax: CallSyntax
) -> list[Message]:
    """Return the conversation with tool calls and tool messages written as text.

    If there are tools, the system message describes them and the form of a call, which is the
    `syntax` that the answer's parser reads.
    """
    written: list[Message] = []
    for are_results, group in groupby(messages, lambda message: message["role"] == "tool"):
        neighbours = list(group)
        written += (
            [_results_message(neighbours)]
            if are_results
            else [_with_calls_as_text(message, syntax) for message in neighbours]
        )
    if not tools:
        return written
    first = written.pop(0) if written and written[0]["role"] == "system" else {"content": ""}
    text = "\n\n".join(filter(None, [first["content"], _instructions(tools, syntax)]))
    return [{"role": "system", "content": text}, *written]


def _instructions(tools: Sequence[Mapping[str, Any]], syntax: CallSyntax) -> str:
    """Return the text from which a model learns how to call `tools`."""
    described = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    example = _call_text("NAME", "{...}", syntax)
    return (
        f"You may call these functions:\n{described}\n\n"
        f"To call one, answer with its name and its arguments as a JSON object:\n{example}"
    )


def _results_message(messages: Iterable[Message]) -> Message:
    texts = [f"<tool_response>\n{m['content']}\n</tool_response>" for m in messages]
    return {"role": "user", "content": "\n".join(texts)}


def _with_calls_as_text(message: Message, syntax: CallSyntax) -> Message:
    functions = [call["function"] for call in message.get("tool_calls", ())]
    calls = [_call_text(f["name"], _json_text(f["arguments"]), syntax) for f in functions]
    text = "\n".join(filter(None, [message["content"], *calls]))
    others = {key: value for key, value in message.items() if key != "tool_calls"}
    return others | {"content": text}


def _json_text(arguments: Any) -> str:
    """Return the arguments of a call as JSON; text is taken to be JSON already."""
    if isinstance(arguments, str):
        return arguments
    return json.dumps(arguments, ensure_ascii=False)


def _call_text(name: str, arguments: str, syntax: CallSyntax) -> str:
    """Return a call with its arguments as JSON, which every format reads."""
    begin, end = syntax.begin, syntax.end
    if syntax.parameters is not None:
        begin, end = syntax.whole_begin, syntax.whole_end
    return f"{syntax.open}{begin.replace('%s', name)}{arguments}{end}{syntax.close}"
