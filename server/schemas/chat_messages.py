"""The messages of a conversation, one class for each role."""

import json
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, WithJsonSchema

from server.schemas.fields import (
    Arguments,
    Body,
    Content,
    ContentOf,
    TextPart,
    joined_text,
    only_types,
    type_of,
)
from server.schemas.limits import MAX_MESSAGES
from server.schemas.tools import CUSTOM_INPUT


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


class ThinkingPart(Body):
    """What the assistant thought, as some servers put it between the parts of its content."""

    type: Literal["thinking"]
    thinking: ContentOf[TextPart]

    @property
    def text(self) -> str:
        """Return the part's share of the content, which is none."""
        return ""


class RedactedThinkingPart(Body):
    """Another server's secret, without a text to read."""

    type: Literal["redacted_thinking"]

    @property
    def text(self) -> str:
        return ""


AssistantPart = Annotated[
    Annotated[
        TextPart | RefusalPart | ThinkingPart | RedactedThinkingPart, Field(discriminator="type")
    ],
    only_types("Content parts", "text", "refusal", "thinking", "redacted_thinking"),
]


class CalledFunction(Body):
    """The name of a called function, and its arguments as JSON text."""

    name: str
    arguments: Arguments


class FunctionCall(Body):
    """A call of a function that the assistant made earlier."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class CalledCustomTool(Body):
    name: str
    input: str


class CustomCall(Body):
    """A call of a tool that takes a text."""

    id: str
    type: Literal["custom"]
    custom: CalledCustomTool

    @property
    def function(self) -> CalledFunction:
        """Return the call of the function that the model is offered for the tool."""
        arguments = json.dumps({CUSTOM_INPUT: self.custom.input}, ensure_ascii=False)
        return CalledFunction(name=self.custom.name, arguments=arguments)


def _kind_of_call(value: object) -> str:
    """Return the kind of a call: a function's may leave its type out."""
    return "custom" if type_of(value) == "custom" else "function"


ToolCall = Annotated[
    Annotated[FunctionCall, Tag("function")] | Annotated[CustomCall, Tag("custom")],
    Discriminator(_kind_of_call),
]


class AssistantMessage(Body):
    """An earlier answer of the model, or the beginning of one to continue."""

    role: Literal["assistant"]
    content: ContentOf[AssistantPart] | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # the name that some clients use for `reasoning_content`
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_MESSAGES, fail_fast=True)] | None = (
        None
    )
    function_call: CalledFunction | None = None  # OpenAI's older form of `tool_calls`

    @property
    def thoughts(self) -> str | None:
        """Return the reasoning, from wherever the message has it."""
        parts = () if self.content is None or isinstance(self.content, str) else self.content
        thoughts = [joined_text(p.thinking) for p in parts if isinstance(p, ThinkingPart)]
        return self.reasoning_content or self.reasoning or "".join(thoughts) or None

    @property
    def said(self) -> str:
        """Return the text of the message: its content, and its refusal if it has one beside it."""
        return "\n\n".join(filter(None, (joined_text(self.content), self.refusal)))


class LeftOutPart(Body):
    """A part of a tool's result that is no text: a line says that it was left out."""

    type: Annotated[str, WithJsonSchema({"type": "string", "not": {"const": "text"}})]

    @property
    def text(self) -> str:
        what = "An image" if "image" in self.type else f"A part of type '{self.type[:64]}'"
        return f"\n[{what} was left out here: this model takes text.]\n"


def _kind_of_result(value: object) -> str:
    return "text" if type_of(value) in (None, "text") else "other"


ResultPart = Annotated[
    Annotated[TextPart, Tag("text")] | Annotated[LeftOutPart, Tag("other")],
    Discriminator(_kind_of_result),
]


class ToolMessage(Body):
    """The result of a tool call."""

    role: Literal["tool"]
    content: ContentOf[ResultPart] | None
    tool_call_id: str


class FunctionMessage(Body):
    """The result of a call in OpenAI's older form, `function_call`."""

    role: Literal["function"]
    content: Content
    name: str


ChatMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage,
    Field(discriminator="role"),
]
