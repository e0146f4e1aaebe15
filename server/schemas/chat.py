"""The body of POST /v1/chat/completions."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from server.schemas.chat_messages import AssistantMessage, ChatMessage, LeftOutPart, ToolMessage
from server.schemas.fields import (
    Body,
    Content,
    GenerationBody,
    Int,
    JsonObject,
    fault,
    unsupported,
)
from server.schemas.limits import MAX_MESSAGES, MAX_NAMES, MAX_TOOLS
from server.schemas.structured import ResponseFormat, StructuredOutputs
from server.schemas.tools import (
    AllowedToolsChoice,
    CustomTool,
    HostedTool,
    NamedCustomTool,
    NamedTool,
    Tool,
    ToolChoice,
    Tools,
    walk_tools,
)


class Prediction(Body):
    """Text that the answer will mostly follow: it makes the answer faster, never another."""

    type: Literal["content"]
    content: Content


class ChatRequest(GenerationBody):
    """A conversation to continue."""

    messages: Annotated[
        list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    ]
    max_completion_tokens: Annotated[Int, Field(ge=1)] | None = None
    max_tokens: Annotated[Int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    structured_outputs: StructuredOutputs | None = None
    prediction: Prediction | None = None
    # extensions: how the template is rendered
    chat_template_kwargs: JsonObject | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    # known to OpenAI's clients, refused when set
    functions: Annotated[list[JsonObject], Field(max_length=MAX_TOOLS)] | None = None
    function_call: str | JsonObject | None = None
    modalities: Annotated[list[str], Field(max_length=MAX_NAMES)] | None = None
    audio: JsonObject | None = None

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise fault("max_tokens", "Give 'max_completion_tokens' or 'max_tokens', not both")
        formed = self.response_format is not None and self.response_format.type != "text"
        if formed and self.structured_outputs is not None:
            message = "Give 'response_format' or 'structured_outputs', not both"
            raise fault("structured_outputs", message)
        if self.top_logprobs is not None and not self.logprobs:
            raise fault("top_logprobs", "'top_logprobs' needs 'logprobs': true")
        return self

    @model_validator(mode="after")
    def _last_message_can_be_continued(self) -> Self:
        if not self.continue_final_message:
            return self
        if self.add_generation_prompt:
            message = "'continue_final_message' and 'add_generation_prompt' exclude each other"
            raise fault("add_generation_prompt", message)
        last = self.messages[-1]
        if last.role != "assistant" or last.content is None:
            message = "'continue_final_message' needs a last message of role assistant with content"
            raise fault("continue_final_message", message)
        return self

    @model_validator(mode="after")
    def _choice_is_among_the_tools(self) -> Self:
        choice = self.tool_choice
        if choice in (None, "none"):
            return self
        if not self.tools:
            raise fault("tool_choice", "'tool_choice' is only allowed when 'tools' are given")
        known = {tool.function.name for _, tool in self.offered}
        if choice != "auto" and not known:
            raise fault("tool_choice", "'tools' has no tool that this server can offer")
        chosen: list[tuple[str, NamedTool | NamedCustomTool]] = []
        if isinstance(choice, NamedTool | NamedCustomTool):
            chosen.append(("tool_choice", choice))
        elif isinstance(choice, AllowedToolsChoice):
            path = "tool_choice.allowed_tools.tools"
            chosen += [(f"{path}.{i}", tool) for i, tool in enumerate(choice.allowed_tools.tools)]
        for path, tool in chosen:
            if tool.name not in known:
                raise fault(f"{path}.{tool.type}.name", f"No tool has the name '{tool.name}'")
        return self

    @model_validator(mode="after")
    def _results_have_calls(self) -> Self:
        called: set[str] = set()
        for i, message in enumerate(self.messages):
            if isinstance(message, AssistantMessage):
                called.update(call.id for call in message.tool_calls or ())
            elif isinstance(message, ToolMessage) and message.tool_call_id not in called:
                text = "A tool message must answer a call in an assistant message before it"
                raise fault(f"messages.{i}.tool_call_id", text)
        return self

    @model_validator(mode="after")
    def _nothing_unsupported(self) -> Self:
        call = None if self.function_call == "none" else self.function_call
        for field, value in (
            ("functions", self.functions),
            ("function_call", call),
            ("audio", self.audio),
        ):
            unsupported(field, value)
        if self.modalities not in (None, [], ["text"]):
            unsupported("modalities", self.modalities)
        return self

    @property
    def offered(self) -> list[tuple[str, Tool]]:
        """Return the tools as functions that the model may be offered, with their paths."""
        return [
            (path, tool.as_function() if isinstance(tool, CustomTool) else tool)
            for path, tool in walk_tools(self.tools or ())
            if not isinstance(tool, HostedTool)
        ]

    @property
    def custom_names(self) -> frozenset[str]:
        """Return the names of the tools that take a text instead of arguments."""
        tools = walk_tools(self.tools or ())
        return frozenset(tool.custom.name for _, tool in tools if isinstance(tool, CustomTool))

    @property
    def left_out(self) -> list[str]:
        """Return what of the request the model is not given, by place and name."""
        found: list[str] = []
        for path, tool in walk_tools(self.tools or ()):
            place = re.sub(r"\.(\d+)", r"[\1]", path)
            if isinstance(tool, HostedTool):
                found.append(f"{place} {tool.type}")
            elif isinstance(tool, CustomTool) and tool.custom.syntax is not None:
                found.append(f"{place}.format")
        for message in self.messages:
            if isinstance(message, ToolMessage) and not isinstance(message.content, str):
                kinds = [part.type for part in message.content if isinstance(part, LeftOutPart)]
                found += [f"{kind} in a tool result" for kind in kinds]
        return found

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens or self.max_completion_tokens


class TranslatedChat(ChatRequest):
    """A chat that was made of a body of another API.

    Args:
        skipped: what of that body has no place in a chat.
    """

    skipped: list[str] = Field(default_factory=list)

    @property
    def left_out(self) -> list[str]:
        return [*super().left_out, *self.skipped]
