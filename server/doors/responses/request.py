"""From the Responses API's request to a chat's. Pure."""

from typing import Any

from server.doors.translation import Names, shared_fields
from server.doors.turns import Turns
from server.schemas.fields import joined_text
from server.schemas.response_bodies import (
    AllowedTools,
    CallItem,
    CallOutputItem,
    FunctionChoice,
    Item,
    MessageItem,
    ReasoningItem,
    ResponseRequest,
    ResponseTool,
    TextFormat,
    ToolChoice,
)

NAMES: Names = (
    (r"messages(\..*)?", "input"),
    ("max_completion_tokens", "max_output_tokens"),
    ("max_tokens", "max_output_tokens"),
    ("reasoning_effort", "reasoning.effort"),
    (r"response_format\.json_schema", "text.format"),
    ("response_format", "text.format"),
    (r"tools\.(\d+)\.function", r"tools.\1"),
    (r"tool_choice\.allowed_tools\.tools\.(\d+)\.function", r"tool_choice.tools.\1"),
    (r"tool_choice\.(function|allowed_tools)", "tool_choice"),
)


def chat_fields(body: ResponseRequest) -> dict[str, Any]:
    """The body of the chat that answers `body`; null is absent."""
    text_format = body.text.format if body.text is not None else None
    return shared_fields(body, SHARED) | {
        "messages": _messages(body),
        "tools": [_tool(tool) for tool in body.tools or ()] or None,
        "tool_choice": _tool_choice(body.tool_choice),
        "response_format": None if text_format is None else _response_format(text_format),
        "reasoning_effort": body.reasoning.effort if body.reasoning is not None else None,
        "max_completion_tokens": body.max_output_tokens,
        "logprobs": body.logprobs or None,
        "top_logprobs": body.top_logprobs if body.logprobs else None,
    }


# what both bodies have in the same words; the last lines are extensions
SHARED = (
    "model",
    "stream",
    "temperature",
    "top_p",
    "parallel_tool_calls",
    "stop",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "speculation",
    "top_k",
    "min_p",
    "repetition_penalty",
    "ignore_eos",
    "min_tokens",
    "stop_token_ids",
    "chat_template_kwargs",
)


def _messages(body: ResponseRequest) -> list[dict[str, Any]]:
    turns = Turns()
    if body.instructions is not None:
        turns.say("system", body.instructions)
    if isinstance(body.input, str):
        turns.say("user", body.input)
    else:
        for item in body.input:
            _add(turns, item)
    return turns.messages


def _add(turns: Turns, item: Item) -> None:
    match item:
        case MessageItem():
            turns.say(item.role, joined_text(item.content))
        case ReasoningItem():
            turns.think(joined_text(item.content or item.summary or ""))
        case CallItem():
            turns.call(item.call_id, item.name, item.arguments)
        case CallOutputItem():
            turns.result(item.call_id, joined_text(item.output))


def _tool(tool: ResponseTool) -> dict[str, Any]:
    return {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}


def _tool_choice(choice: ToolChoice | None) -> str | dict[str, Any] | None:
    match choice:
        case FunctionChoice():
            return _function(choice)
        case AllowedTools():
            tools = [_function(tool) for tool in choice.tools]
            allowed = {"mode": choice.mode, "tools": tools}
            return {"type": "allowed_tools", "allowed_tools": allowed}
        case "auto":  # which a chat is without tools, but may not be told
            return None
        case _:
            return choice


def _function(choice: FunctionChoice) -> dict[str, Any]:
    return {"type": "function", "function": {"name": choice.name}}


def _response_format(text: TextFormat) -> dict[str, Any]:
    if text.type != "json_schema":
        return {"type": text.type}
    schema = text.model_dump(exclude={"type"}, exclude_none=True, by_alias=True)
    return {"type": text.type, "json_schema": schema}
