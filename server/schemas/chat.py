"""The body of POST /v1/chat/completions."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from server.schemas.fields import (
    Body,
    Content,
    GenerationBody,
    Int,
    JsonObject,
    fault,
    unsupported,
)
from server.schemas.structured import ResponseFormat, StructuredOutputs


class SystemMessage(Body):
    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(Body):
    role: Literal["user"]
    content: Content
    name: str | None = None


class CalledFunction(Body):
    name: str
    arguments: str


class ToolCall(Body):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Body):
    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1, fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and self.tool_calls is None and self.refusal is None:
            message = "An assistant message needs 'content' or 'tool_calls'"
            raise fault("content", message, "missing_required_parameter")
        return self


class ToolMessage(Body):
    role: Literal["tool"]
    content: Content
    tool_call_id: str


class FunctionMessage(Body):
    role: Literal["function"]
    content: Content | None
    name: str


ChatMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage,
    Field(discriminator="role"),
]


class Prediction(Body):
    """Text that the answer will mostly follow: it makes the answer faster, never another."""

    type: Literal["content"]
    content: Content


class ChatRequest(GenerationBody):
    """A conversation to continue."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Annotated[Int, Field(ge=1)] | None = None
    max_tokens: Annotated[Int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    prediction: Prediction | None = None
    structured_outputs: StructuredOutputs | None = None
    # extensions: how the template is rendered
    chat_template_kwargs: JsonObject | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    # known to OpenAI's clients, refused when set
    tools: list[JsonObject] | None = None
    tool_choice: str | JsonObject | None = None
    functions: list[JsonObject] | None = None
    function_call: str | JsonObject | None = None
    modalities: list[str] | None = None
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
    def _nothing_unsupported(self) -> Self:
        choice = None if self.tool_choice == "none" else self.tool_choice
        call = None if self.function_call == "none" else self.function_call
        for field, value in (
            ("tools", self.tools),
            ("tool_choice", choice),
            ("functions", self.functions),
            ("function_call", call),
            ("audio", self.audio),
        ):
            unsupported(field, value)
        if self.modalities not in (None, [], ["text"]):
            unsupported("modalities", self.modalities)
        return self

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens or self.max_completion_tokens
