"""The conversion of a request of the Messages API to a chat, without any I/O."""

import json
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from server.doors.conversation import ConversationBuilder, chat_content
from server.doors.translation import Names, shared_fields
from server.schemas.documents import ResultDocument, SearchResult, UserDocument
from server.schemas.fields import joined_text
from server.schemas.message_bodies import (
    CountTokensRequest,
    HostedBlock,
    HostedTool,
    MessagesRequest,
    MessageTool,
    RedactedThinkingBlock,
    TextBlock,
    Thinking,
    ThinkingBlock,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
    Turn,
)

NAMES: Names = (
    (r"messages(\..*)?", "messages"),
    ("max_completion_tokens", "max_tokens"),
    ("stop", "stop_sequences"),
    ("reasoning_effort", "output_config.effort"),
    (r"response_format\.json_schema", "output_config.format"),
    ("response_format", "output_config.format"),
    (r"tools\.(\d+)\.function\.parameters", r"tools.\1.input_schema"),
    (r"tools\.(\d+)\.function", r"tools.\1"),
    (r"tool_choice\.function", "tool_choice"),
)


def chat_fields(body: CountTokensRequest) -> dict[str, Any]:
    """Return the fields of the chat that answers `body`; a field that is None is absent."""
    messages = _messages(body)
    last = messages[-1] if messages else {"role": ""}
    choice = body.tool_choice
    fields = shared_fields(body, SHARED) | {
        "messages": messages,
        "stream_options": _STREAM_OPTIONS if body.stream else None,
        "skipped": list(_skipped(body)),
        "clamps_limit": True,
        # If the last turn is the assistant's, its text or thinking is the beginning of the answer;
        # if it is empty, the answer begins after the turn before.
        "continue_final_message": last["role"] == "assistant" and "tool_calls" not in last,
        "tools": [_tool(tool) for tool in body.tools or ()] or None,
        "tool_choice": None if choice is None else _tool_choice(choice),
        "parallel_tool_calls": False if choice and choice.disable_parallel_tool_use else None,
        **_reasoning(body),
        "chat_template_kwargs": {**_thinking(body), **(body.chat_template_kwargs or {})} or None,
    }
    if body.answer_format is not None:
        schema = {"name": "answer", "schema": body.answer_format.schema_, "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    if isinstance(body, MessagesRequest):
        fields["max_completion_tokens"] = body.max_tokens
        fields["stop"] = body.stop_sequences
    return fields


# The first event of a stream has the tokens of the prompt.
_STREAM_OPTIONS = {"include_usage": True, "continuous_usage_stats": True}

# The fields that a chat has under the same name. The last ones are extensions of both APIs.
SHARED = (
    "model",
    "stream",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "min_p",
    "speculation",
    "return_token_ids",
)


def _messages(body: CountTokensRequest) -> list[dict[str, Any]]:
    conversation = ConversationBuilder()
    if body.system is not None:
        conversation.add_text("system", joined_text(body.system))
    for turn in body.messages:
        _add_turn(conversation, turn)
    return conversation.messages


def _add_turn(conversation: ConversationBuilder, turn: Turn) -> None:
    if isinstance(turn.content, str):
        conversation.add_text(turn.role, turn.content)
        return
    if not turn.content:
        conversation.add_text(turn.role, "")
    for are_texts, run in groupby(turn.content, key=lambda block: isinstance(block, TextBlock)):
        if are_texts:  # neighbouring text blocks are joined to one text
            text = "".join(block.text for block in run if isinstance(block, TextBlock))
            conversation.add_text(turn.role, text)
            continue
        for block in run:
            match block:
                case ThinkingBlock():
                    conversation.add_reasoning(block.thinking)
                case RedactedThinkingBlock():
                    conversation.add_reasoning("")
                case ToolUseBlock():
                    arguments = json.dumps(block.input, ensure_ascii=False)
                    conversation.add_call(block.id, block.name, arguments)
                case UserDocument() | SearchResult():
                    conversation.add_text(turn.role, block.text.strip())
                case ToolResultBlock():
                    conversation.add_result(block.tool_use_id, chat_content(block.content or ""))


def _skipped(body: CountTokensRequest) -> Iterator[str]:
    """Yield what a chat has no place for: MCP servers, and blocks by their position and type.

    Images in results are not among them: the chat itself reports these.
    """
    if body.mcp_servers:
        yield "mcp_servers"
    for turn_index, turn in enumerate(body.messages):
        for index, block in enumerate(turn.content):
            place = f"messages[{turn_index}].content[{index}]"
            if isinstance(block, HostedBlock):
                yield f"{place} {block.type}"
            elif isinstance(block, ToolResultBlock):
                for part_index, part in enumerate(block.content or ()):
                    if isinstance(part, ResultDocument):
                        yield from (f"{place}.content[{part_index}] {o}" for o in part.left_out)


def _tool(tool: MessageTool | HostedTool) -> dict[str, Any]:
    if isinstance(tool, HostedTool):
        return {"type": tool.type, "name": tool.name}
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _tool_choice(choice: ToolChoice) -> str | dict[str, Any] | None:
    match choice.type:
        case "any":
            return "required"
        case "tool":
            return {"type": "function", "function": {"name": choice.name}}
        case _:
            return choice.type


def _reasoning(body: CountTokensRequest) -> dict[str, Any]:
    """Return the fields about reasoning; those of other APIs count beside Anthropic's own ones.

    There is no budget if `thinking` turns reasoning off.
    """
    effort = None if body.output_config is None else body.output_config.effort
    thinking = body.thinking or Thinking(type="adaptive")
    is_limited = thinking.type != "disabled"
    return {
        "reasoning_effort": effort or body.reasoning_effort,
        "enable_thinking": body.enable_thinking,
        "reasoning": body.reasoning if is_limited else None,
        "thinking_budget": body.smallest_budget(thinking.budget_tokens) if is_limited else None,
    }


def _thinking(body: CountTokensRequest) -> dict[str, bool]:
    """Return the template arguments that turn reasoning on or off in common chat templates.

    There are none for "adaptive", which leaves the choice to the template.
    """
    if body.thinking is None or body.thinking.type not in ("enabled", "disabled"):
        return {}
    is_enabled = body.thinking.type == "enabled" and body.thinking.budget_tokens != 0
    return {"enable_thinking": is_enabled, "thinking": is_enabled}
