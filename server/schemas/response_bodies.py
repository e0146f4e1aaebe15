"""The body of POST /v1/responses and of /v1/responses/input_tokens."""

from collections.abc import Set
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Discriminator,
    Field,
    ModelWrapValidatorHandler,
    Tag,
    WithJsonSchema,
    model_validator,
)

from server.schemas.chat_messages import LeftOutPart
from server.schemas.continuing import UncontinuedBody
from server.schemas.fields import (
    Arguments,
    Body,
    GenerationBody,
    Int,
    JsonObject,
    TokenLimit,
    field_error,
    only_types,
    refuse_if_set,
    type_of,
)
from server.schemas.limits import MAX_MESSAGES, MAX_NAMES, MAX_TOOLS
from server.schemas.reasoning import ReasoningBody, ThinkingBudget, ThinkingSwitch
from server.schemas.tools import Custom, HostedTool, kind_in_namespace, kind_of_tool


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
    namespace: str | None = None
    arguments: Arguments


class CustomCallItem(Body):
    type: Literal["custom_tool_call"]
    call_id: str
    name: str
    namespace: str | None = None
    input: str


def _kind_of_result(value: object) -> str:
    return "text" if type_of(value) in (None, *_PART_TYPES) else "other"


ResultPart = Annotated[
    Annotated[ItemPart, Tag("text")] | Annotated[LeftOutPart, Tag("other")],
    Discriminator(_kind_of_result),
]
ResultParts = Annotated[list[ResultPart], Field(max_length=MAX_MESSAGES, fail_fast=True)]


class CallOutputItem(Body):
    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    output: Annotated[
        Annotated[str, Tag("text")] | Annotated[ResultParts, Tag("parts")],
        Discriminator(_text_or_parts),
    ]


class ReasoningItem(Body):
    """An item with the model's earlier reasoning."""

    type: Literal["reasoning"]
    summary: Parts | None = None
    content: Parts | None = None


class ResponseTool(Body):
    """A function the model may call."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class CustomTool(Custom):
    """A tool that takes any text."""

    type: Literal["custom"]


SimpleTool = Annotated[
    Annotated[ResponseTool, Tag("function")]
    | Annotated[CustomTool, Tag("custom")]
    | Annotated[HostedTool, Tag("hosted")],
    Discriminator(kind_in_namespace),
]


class NamespaceTool(Body):
    """Tools under a common name; each is offered by itself."""

    type: Literal["namespace"]
    name: str
    tools: Annotated[list[SimpleTool], Field(max_length=MAX_TOOLS, fail_fast=True)]


Tool = Annotated[
    Annotated[ResponseTool, Tag("function")]
    | Annotated[CustomTool, Tag("custom")]
    | Annotated[NamespaceTool, Tag("namespace")]
    | Annotated[HostedTool, Tag("hosted")],
    Discriminator(kind_of_tool),
]


class ToolsItem(Body):
    """An item whose tools are offered together with the tools of the request."""

    type: Literal["additional_tools", "tool_search_output"]
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None


_ITEM_TYPES = (
    "message",
    "function_call",
    "function_call_output",
    "custom_tool_call",
    "custom_tool_call_output",
    "reasoning",
    "additional_tools",
    "tool_search_output",
)
_NOT_HOSTED = {"type": "string", "not": {"enum": [*_ITEM_TYPES, "item_reference"]}}


class HostedItem(Body):
    """A call of a provider's own tool, or its result. What it says as text is kept."""

    type: Annotated[str, WithJsonSchema(_NOT_HOSTED)]
    output: Any = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.type == "item_reference":
            message = "Nothing is stored, so no item can be referred to; send the item itself"
            raise field_error("type", message, "unsupported_content")
        return self


def _kind_of_item(value: object) -> str:
    """Return the kind of an item; without a type it is a call, which then lacks its type."""
    kind = type_of(value) or "function_call"
    return kind if kind in _ITEM_TYPES else "hosted"


def _message_if_untyped(value: object) -> object:
    """A message may leave its type out."""
    if isinstance(value, dict) and value.get("type") is None and "role" in value:
        return {**value, "type": "message"}
    return value


Item = Annotated[
    Annotated[
        Annotated[MessageItem, Tag("message")]
        | Annotated[CallItem, Tag("function_call")]
        | Annotated[CallOutputItem, Tag("function_call_output")]
        | Annotated[CustomCallItem, Tag("custom_tool_call")]
        | Annotated[CallOutputItem, Tag("custom_tool_call_output")]
        | Annotated[ReasoningItem, Tag("reasoning")]
        | Annotated[ToolsItem, Tag("additional_tools")]
        | Annotated[ToolsItem, Tag("tool_search_output")]
        | Annotated[HostedItem, Tag("hosted")],
        Discriminator(_kind_of_item),
    ],
    BeforeValidator(_message_if_untyped),
]
Items = Annotated[list[Item], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
Input = Annotated[
    Annotated[str, Tag("text")] | Annotated[Items, Tag("items")],
    Discriminator(lambda value: "items" if isinstance(value, list) else "text"),
]


def _keys(tool: Tool) -> set[tuple[str | None, str]]:
    """Return the namespace and name of each tool in `tool`."""
    if isinstance(tool, NamespaceTool):
        return {(tool.name, _name(inner)) for inner in tool.tools}
    return {(None, _name(tool))}


def _name(tool: ResponseTool | CustomTool | HostedTool) -> str:
    return (tool.name or tool.type) if isinstance(tool, HostedTool) else tool.name


def _without(tool: Tool, known: Set[tuple[str | None, str]]) -> Tool | None:
    """Return what of `tool` is not in `known`; None if nothing is left."""
    if isinstance(tool, NamespaceTool):
        new = [inner for inner in tool.tools if (tool.name, _name(inner)) not in known]
        return tool.model_copy(update={"tools": new}) if new else None
    return None if _keys(tool) <= known else tool


class FunctionChoice(Body):
    type: Literal["function", "custom"]
    name: str


class HostedChoice(Body):
    """A tool that is left out, among those that are allowed."""

    type: Annotated[
        str, WithJsonSchema({"type": "string", "not": {"enum": ["function", "custom"]}})
    ]


def _kind_of_choice(value: object) -> str:
    return "offered" if type_of(value) in (None, "function", "custom") else "hosted"


AllowedTool = Annotated[
    Annotated[FunctionChoice, Tag("offered")] | Annotated[HostedChoice, Tag("hosted")],
    Discriminator(_kind_of_choice),
]


class AllowedTools(Body):
    """The tools that the model may call, and whether it must call one."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedTool], Field(min_length=1, max_length=MAX_TOOLS)]


def _mode_or_choice(value: object) -> str:
    return "choice" if isinstance(value, dict) else "mode"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("mode")]
    | Annotated[
        Annotated[FunctionChoice | AllowedTools, Field(discriminator="type")],
        only_types("Tool choices", "function", "custom", "allowed_tools"),
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
    # extensions
    enabled: bool | None = None
    max_tokens: ThinkingBudget = None


class ResponseRequest(ReasoningBody, UncontinuedBody, GenerationBody):
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
    thinking: ThinkingSwitch | None = None  # an extension
    max_output_tokens: TokenLimit = None
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

    @model_validator(mode="wrap")
    @classmethod
    def _add_tools_of_items(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Add the tools of items to `tools`. One that is there already is not added again."""
        body = handler(value)
        tools = list(body.tools or ())
        known = {key for tool in tools for key in _keys(tool)}
        for item in () if isinstance(body.input, str) else body.input:
            if isinstance(item, ToolsItem):
                found = item.tools or ()
                tools += filter(None, (_without(tool, known) for tool in found))
                known.update(key for tool in found for key in _keys(tool))
        return body.model_copy(update={"tools": tools}) if tools else body

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
