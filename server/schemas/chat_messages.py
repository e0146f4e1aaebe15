"""The messages of a conversation."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from server.schemas.fields import Body, Content, ContentOf, TextPart, fault, only
from server.schemas.limits import MAX_MESSAGES


class SystemMessage(Body):
    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(Body):
    role: Literal["user"]
    content: Content
    name: str | None = None


class RefusalPart(Body):
    """What the assistant said instead of an answer."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


AssistantPart = Annotated[
    Annotated[TextPart | RefusalPart, Field(discriminator="type")],
    only("Content parts", "text", "refusal"),
]


class CalledFunction(Body):
    name: str
    arguments: str


class ToolCall(Body):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(Body):
    role: Literal["assistant"]
    content: ContentOf[AssistantPart] | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # another name of it
    tool_calls: (
        Annotated[list[ToolCall], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
        | None
    ) = None
    function_call: CalledFunction | None = None  # what tool_calls was before

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        said = (self.content, self.refusal, self.tool_calls, self.function_call)
        if all(part is None for part in said):
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
