"""The conversion of a request of the Responses API to a chat, without any I/O."""

from collections.abc import Iterator
from typing import Any

from server.doors.conversation import ConversationBuilder, chat_content
from server.doors.responses.tools import ToolNames, chat_tools
from server.doors.translation import Names, shared_fields
from server.schemas.fields import joined_text
from server.schemas.response_bodies import (
    AllowedTools,
    CallItem,
    CallOutputItem,
    CustomCallItem,
    FunctionChoice,
    HostedItem,
    Item,
    MessageItem,
    Reasoning,
    ReasoningItem,
    ResponseRequest,
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
    (r"tools\.(\d+(?:\.tools\.\d+)?)\.(function|custom)", r"tools.\1"),
    (r"tool_choice\.allowed_tools\.tools\.(\d+)\.(function|custom)", r"tool_choice.tools.\1"),
    (r"tool_choice\.(function|custom|allowed_tools)", "tool_choice"),
)


def chat_fields(body: ResponseRequest) -> dict[str, Any]:
    """Return the fields of the chat that answers `body`; a field that is None is absent."""
    text_format = body.text.format if body.text is not None else None
    names = ToolNames(body.tools or ())
    return shared_fields(body, SHARED) | {
        "messages": _messages(body, names),
        "skipped": list(_skipped(body)),
        "clamps_limit": True,
        "tools": chat_tools(body.tools or (), names) or None,
        "tool_choice": _tool_choice(body.tool_choice),
        "response_format": None if text_format is None else _response_format(text_format),
        **_reasoning(body),
        "max_completion_tokens": body.max_output_tokens,
        "logprobs": body.logprobs or None,
        "top_logprobs": body.top_logprobs if body.logprobs else None,
    }


# The fields that a chat has under the same name. The last ones are extensions of both APIs.
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
    "return_token_ids",
    "top_k",
    "min_p",
    "repetition_penalty",
    "ignore_eos",
    "min_tokens",
    "stop_token_ids",
    "chat_template_kwargs",
    "thinking",
)


def _reasoning(body: ResponseRequest) -> dict[str, Any]:
    """Return the fields about reasoning; those of other APIs count where `reasoning` has none."""
    own = body.reasoning or Reasoning()
    is_enabled = own.enabled if body.enable_thinking is None else body.enable_thinking
    return {
        "reasoning_effort": own.effort or body.reasoning_effort,
        "enable_thinking": is_enabled,
        "thinking_budget": body.smallest_budget(own.max_tokens),
    }


def _messages(body: ResponseRequest, names: ToolNames) -> list[dict[str, Any]]:
    conversation = ConversationBuilder()
    if body.instructions is not None:
        conversation.add_text("system", body.instructions)
    if isinstance(body.input, str):
        conversation.add_text("user", body.input)
    else:
        for item in body.input:
            _add_item(conversation, item, names)
    return conversation.messages


def _add_item(conversation: ConversationBuilder, item: Item, names: ToolNames) -> None:
    match item:
        case MessageItem():
            conversation.add_text(item.role, joined_text(item.content))
        case ReasoningItem():
            conversation.add_reasoning(joined_text(item.content or item.summary or ""))
        case CallItem():
            name = names.offered(item.namespace, item.name)
            conversation.add_call(item.call_id, name, item.arguments)
        case CustomCallItem():
            name = names.offered(item.namespace, item.name)
            conversation.add_custom_call(item.call_id, name, item.input)
        case CallOutputItem():
            conversation.add_result(item.call_id, chat_content(item.output))
        case HostedItem(output=str(output)) if output:
            conversation.add_text("assistant", f"[{item.type}]\n{output}")


def _skipped(body: ResponseRequest) -> Iterator[str]:
    """Yield the position and type of each item that cannot be converted to a part of a chat."""
    for index, item in enumerate(body.input):
        if isinstance(item, HostedItem) and not (isinstance(item.output, str) and item.output):
            yield f"input[{index}] {item.type}"


def _tool_choice(choice: ToolChoice | None) -> str | dict[str, Any] | None:
    match choice:
        case FunctionChoice():
            return _function(choice)
        case AllowedTools():
            tools = [_function(tool) for tool in choice.tools if isinstance(tool, FunctionChoice)]
            allowed = {"mode": choice.mode, "tools": tools}
            return {"type": "allowed_tools", "allowed_tools": allowed}
        case _:
            return choice


def _function(choice: FunctionChoice) -> dict[str, Any]:
    return {"type": choice.type, choice.type: {"name": choice.name}}


def _response_format(text: TextFormat) -> dict[str, Any]:
    if text.type != "json_schema":
        return {"type": text.type}
    schema = text.model_dump(exclude={"type"}, exclude_none=True, by_alias=True)
    return {"type": text.type, "json_schema": schema}
