"""The messages of a conversation, one class for each role."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from server.schemas.fields import Body, Content, ContentOf, TextPart, field_error, only_types
from server.schemas.limits import MAX_MESSAGES


class SystemMessage(Body):
    """Instructions of the application to the model."""

    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(Body):
    """A message of the user to the model."""

    role: Literal["user"]
    content: Content
    name: str | None = None


class RefusalPart(Body):
    """The text with which the assistant refused to answer."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


AssistantPart = Annotated[
    Annotated[TextPart | RefusalPart, Field(discriminator="type")],
    only_types("Content parts", "text", "refusal"),
]


class CalledFunction(Body):
    """The name of a called function, and its arguments as JSON text."""

    name: str
    arguments: str


class ToolCall(Body):
    """A tool call that the assistant made earlier."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(Body):
    """An earlier answer of the model, or the beginning of one to continue."""

    role: Literal["assistant"]
    content: ContentOf[AssistantPart] | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # the name that some clients use for `reasoning_content`
    tool_calls: (
        Annotated[list[ToolCall], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
        | None
    ) = None
    function_call: CalledFunction | None = None  # OpenAI's older form of `tool_calls`

    @model_validator(mode="after")
    def _check_not_empty(self) -> Self:
        said = (self.content, self.refusal, self.tool_calls, self.function_call)
        if all(part is None for part in said):
            message = "An assistant message needs 'content' or 'tool_calls'"
            raise field_error("content", message, "missing_required_parameter")
        return self


class ToolMessage(Body):
    """The result of a tool call."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str


class FunctionMessage(Body):
    """The result of a call in OpenAI's older form, `function_call`."""

    role: Literal["function"]
    content: Content | None
    name: str


ChatMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage,
    Field(discriminator="role"),
]
