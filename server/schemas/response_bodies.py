"""The body of POST /v1/responses and of /v1/responses/input_tokens."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_validator,
)

from server.schemas.fields import (
    Body,
    GenerationBody,
    Int,
    JsonObject,
    field_error,
    only_types,
    refuse_if_set,
)
from server.schemas.limits import MAX_MESSAGES, MAX_NAMES, MAX_TOOLS


class ItemPart(Body):
    """A piece of text of an item: a part of a message, of reasoning or of a refusal."""

    type: Literal["input_text", "output_text", "text", "reasoning_text", "summary_text", "refusal"]
    text: Annotated[str, Field(validation_alias=AliasChoices("text", "refusal"))]


_PART_TYPES = ("input_text", "output_text", "text", "reasoning_text", "summary_text", "refusal")
Part = Annotated[ItemPart, only_types("Content parts", *_PART_TYPES)]
Parts = Annotated[list[Part], Field(max_length=MAX_MESSAGES, fail_fast=True)]


def _text_or_parts(value: object) -> str:
    return "parts" if isinstance(value, list) else "text"


ItemContent = Annotated[
    Annotated[str, Tag("text")] | Annotated[Parts, Tag("parts")], Discriminator(_text_or_parts)
]


MAY_BE_ABSENT = {"anyOf": [{"const": "message"}, {"type": "null"}]}


class MessageItem(Body):
    """An item with a message of one role."""

    type: Annotated[Literal["message"], WithJsonSchema(MAY_BE_ABSENT)] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: ItemContent


class CallItem(Body):
    """An item with a function call that the model made earlier."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class CallOutputItem(Body):
    """An item with the result of a function call."""

    type: Literal["function_call_output"]
    call_id: str
    output: ItemContent


class ReasoningItem(Body):
    """An item with the model's earlier reasoning."""

    type: Literal["reasoning"]
    summary: Parts | None = None
    content: Parts | None = None


def _add_message_type(value: object) -> object:
    """Return an item of a role without a type as a message: messages may leave their type out."""
    if isinstance(value, dict) and value.get("type") is None and "role" in value:
        return {**value, "type": "message"}
    return value


Item = Annotated[
    Annotated[MessageItem | CallItem | CallOutputItem | ReasoningItem, Field(discriminator="type")],
    only_types("Items", "message", "function_call", "function_call_output", "reasoning"),
    BeforeValidator(_add_message_type),
]
Items = Annotated[list[Item], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
Input = Annotated[
    Annotated[str, Tag("text")] | Annotated[Items, Tag("items")],
    Discriminator(lambda value: "items" if isinstance(value, list) else "text"),
]


class ResponseTool(Body):
    """A function the model may call."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


Tool = Annotated[ResponseTool, only_types("Tools", "function")]


class FunctionChoice(Body):
    """The choice of one function by its name."""

    type: Literal["function"]
    name: str


class AllowedTools(Body):
    """The tools that the model may call, and whether it must call one."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[
        list[Annotated[FunctionChoice, only_types("Tools", "function")]],
        Field(min_length=1, max_length=MAX_TOOLS),
    ]


def _mode_or_choice(value: object) -> str:
    return "choice" if isinstance(value, dict) else "mode"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("mode")]
    | Annotated[
        Annotated[FunctionChoice | AllowedTools, Field(discriminator="type")],
        only_types("Tool choices", "function", "allowed_tools"),
        Tag("choice"),
    ],
    Discriminator(_mode_or_choice),
]


class TextFormat(Body):
    """The form that the text must have. The fields of a JSON schema format are beside its type."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Annotated[Any, Field(alias="schema")] = None
    strict: bool | None = None


class TextConfig(Body):
    """Options for the text of an answer."""

    format: TextFormat | None = None


class Reasoning(Body):
    """Options for the model's reasoning."""

    effort: str | None = None


class ResponseRequest(GenerationBody):
    """The body of a request that continues a conversation, which it holds whole.

    The server stores nothing of it.
    """

    input: Input
    instructions: str | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    max_output_tokens: Annotated[Int, Field(ge=1)] | None = None
    top_logprobs: Annotated[Int, Field(ge=0, le=20)] | None = None
    include: Annotated[list[str], Field(max_length=MAX_NAMES)] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=MAX_NAMES)] | None = None
    user: str | None = None
    chat_template_kwargs: JsonObject | None = None  # an extension
    # known to OpenAI's clients, refused when set
    previous_response_id: str | None = None
    conversation: str | JsonObject | None = None
    prompt: JsonObject | None = None
    background: bool | None = None

    @model_validator(mode="after")
    def _refuse_unsupported(self) -> Self:
        for field, value in (
            ("previous_response_id", self.previous_response_id),
            ("conversation", self.conversation),
        ):
            if value is not None:
                message = f"'{field}' is not supported: nothing is stored; send all items as input"
                raise field_error(field, message, "unsupported_parameter")
        refuse_if_set("prompt", self.prompt)
        refuse_if_set("background", self.background or None)
        refuse_if_set("n", None if self.n == 1 else self.n)
        return self

    @property
    def logprobs(self) -> bool:
        """Whether the answer has log-probabilities of its tokens."""
        return bool(self.top_logprobs) or "message.output_text.logprobs" in (self.include or ())
