"""The body of POST /v1/chat/completions."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from server.schemas.chat_messages import AssistantMessage, ChatMessage, ToolMessage
from server.schemas.fields import (
    Body,
    Content,
    GenerationBody,
    Int,
    JsonObject,
    field_error,
    refuse_if_set,
)
from server.schemas.limits import MAX_MESSAGES, MAX_NAMES, MAX_TOOLS
from server.schemas.structured import ResponseFormat, StructuredOutputs
from server.schemas.tools import AllowedToolsChoice, NamedTool, ToolChoice, Tools


class Prediction(Body):
    """Text that the answer will mostly follow. It speeds the answer up and never changes it."""

    type: Literal["content"]
    content: Content


class ChatRequest(GenerationBody):
    """The body of a request that continues a conversation."""

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
    def _check_fields_agree(self) -> Self:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise field_error(
                "max_tokens", "Give 'max_completion_tokens' or 'max_tokens', not both"
            )
        formed = self.response_format is not None and self.response_format.type != "text"
        if formed and self.structured_outputs is not None:
            message = "Give 'response_format' or 'structured_outputs', not both"
            raise field_error("structured_outputs", message)
        if self.top_logprobs is not None and not self.logprobs:
            raise field_error("top_logprobs", "'top_logprobs' needs 'logprobs': true")
        return self

    @model_validator(mode="after")
    def _check_continued_message(self) -> Self:
        if not self.continue_final_message:
            return self
        if self.add_generation_prompt:
            message = "Give 'continue_final_message' or 'add_generation_prompt', not both"
            raise field_error("add_generation_prompt", message)
        last = self.messages[-1]
        if last.role != "assistant" or last.content is None:
            message = "'continue_final_message' needs a last message of role assistant with content"
            raise field_error("continue_final_message", message)
        return self

    @model_validator(mode="after")
    def _check_tool_choice(self) -> Self:
        choice = self.tool_choice
        if choice in (None, "none"):
            return self
        if not self.tools:
            raise field_error("tool_choice", "'tool_choice' is only allowed when 'tools' are given")
        known = {tool.function.name for tool in self.tools}
        if isinstance(choice, NamedTool) and choice.function.name not in known:
            message = f"No tool has the name '{choice.function.name}'"
            raise field_error("tool_choice.function.name", message)
        if isinstance(choice, AllowedToolsChoice):
            for i, tool in enumerate(choice.allowed_tools.tools):
                if tool.function.name not in known:
                    field = f"tool_choice.allowed_tools.tools.{i}.function.name"
                    raise field_error(field, f"No tool has the name '{tool.function.name}'")
        return self

    @model_validator(mode="after")
    def _check_tool_results(self) -> Self:
        called: set[str] = set()
        for i, message in enumerate(self.messages):
            if isinstance(message, AssistantMessage):
                called.update(call.id for call in message.tool_calls or ())
            elif isinstance(message, ToolMessage) and message.tool_call_id not in called:
                text = "A tool message must answer a call in an assistant message before it"
                raise field_error(f"messages.{i}.tool_call_id", text)
        return self

    @model_validator(mode="after")
    def _refuse_unsupported(self) -> Self:
        call = None if self.function_call == "none" else self.function_call
        for field, value in (
            ("functions", self.functions),
            ("function_call", call),
            ("audio", self.audio),
        ):
            refuse_if_set(field, value)
        if self.modalities not in (None, [], ["text"]):
            refuse_if_set("modalities", self.modalities)
        return self

    @property
    def token_limit(self) -> int | None:
        """The largest number of tokens to emit; None for no limit but the context."""
        return self.max_tokens or self.max_completion_tokens
