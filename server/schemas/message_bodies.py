"""The bodies of POST /v1/messages and /v1/messages/count_tokens: Anthropic's shapes."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, WithJsonSchema, model_validator

from server.schemas.chat_messages import ResultPart
from server.schemas.fields import (
    Body,
    GenerationBody,
    GivenTokenLimit,
    Int,
    JsonObject,
    StopStrings,
    fault,
    only,
    type_of,
)
from server.schemas.limits import MAX_MESSAGES, MAX_TOOLS

_OWN_BLOCKS = ("text", "thinking", "redacted_thinking", "tool_use")


class TextBlock(Body):
    type: Literal["text"]
    text: str


class ThinkingBlock(Body):
    type: Literal["thinking"]
    thinking: str


class RedactedThinkingBlock(Body):
    """Another server's secret: read over."""

    type: Literal["redacted_thinking"]


class HostedBlock(Body):
    """A call that a provider's own tool answered, or its result: read over."""

    type: Annotated[str, WithJsonSchema({"type": "string", "not": {"enum": list(_OWN_BLOCKS)}})]


class ToolUseBlock(Body):
    type: Literal["tool_use"]
    id: str
    name: str
    input: JsonObject


def _text_or_blocks(value: object) -> str:
    return "blocks" if isinstance(value, list) else "text"


TextBlocks = Annotated[
    list[Annotated[TextBlock, only("Content blocks", "text")]],
    Field(max_length=MAX_MESSAGES, fail_fast=True),
]
Text = Annotated[
    Annotated[str, Tag("text")] | Annotated[TextBlocks, Tag("blocks")],
    Discriminator(_text_or_blocks),
]


ResultBlocks = Annotated[list[ResultPart], Field(max_length=MAX_MESSAGES, fail_fast=True)]


class ToolResultBlock(Body):
    type: Literal["tool_result"]
    tool_use_id: str
    content: (
        Annotated[
            Annotated[str, Tag("text")] | Annotated[ResultBlocks, Tag("blocks")],
            Discriminator(_text_or_blocks),
        ]
        | None
    ) = None


UserBlock = Annotated[
    Annotated[TextBlock | ToolResultBlock, Field(discriminator="type")],
    only("Content blocks", "text", "tool_result"),
]


def _kind_of_block(value: object) -> str:
    """Return the kind of an assistant's block: one of its own, or one of a hosted tool."""
    kind = type_of(value) or "text"
    return kind if kind in _OWN_BLOCKS else "hosted"


AssistantBlock = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[ThinkingBlock, Tag("thinking")]
    | Annotated[RedactedThinkingBlock, Tag("redacted_thinking")]
    | Annotated[ToolUseBlock, Tag("tool_use")]
    | Annotated[HostedBlock, Tag("hosted")],
    Discriminator(_kind_of_block),
]


class UserTurn(Body):
    role: Literal["user"]
    content: Annotated[
        Annotated[str, Tag("text")]
        | Annotated[
            list[UserBlock],
            Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True),
            Tag("blocks"),
        ],
        Discriminator(_text_or_blocks),
    ]


class AssistantTurn(Body):
    role: Literal["assistant"]
    content: Annotated[
        Annotated[str, Tag("text")]
        | Annotated[
            list[AssistantBlock], Field(max_length=MAX_MESSAGES, fail_fast=True), Tag("blocks")
        ],
        Discriminator(_text_or_blocks),
    ]


class SystemTurn(Body):
    role: Literal["system"]
    content: Text


Turn = Annotated[UserTurn | AssistantTurn | SystemTurn, Field(discriminator="role")]


class MessageTool(Body):
    """A function the model may call."""

    type: Literal["custom"] | None = None
    name: str
    description: str | None = None
    input_schema: JsonObject
    strict: bool | None = None


class HostedTool(Body):
    """A tool that only the provider's own servers can run: it is left out."""

    type: Annotated[str, WithJsonSchema({"type": "string", "not": {"const": "custom"}})]
    name: str | None = None


def _kind_of_tool(value: object) -> str:
    return "custom" if type_of(value) in (None, "custom") else "hosted"


Tool = Annotated[
    Annotated[MessageTool, Tag("custom")] | Annotated[HostedTool, Tag("hosted")],
    Discriminator(_kind_of_tool),
]


class ToolChoice(Body):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _is_named(self) -> Self:
        if self.type == "tool" and self.name is None:
            message = "A tool choice of type 'tool' needs 'name'"
            raise fault("name", message, "missing_required_parameter")
        return self


class Thinking(Body):
    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Annotated[Int, Field(ge=1)] | None = None  # cannot be kept: read over


class OutputFormat(Body):
    type: Literal["json_schema"]
    schema_: Annotated[Any, Field(alias="schema")]


class OutputConfig(Body):
    effort: str | None = None
    format: OutputFormat | None = None


class Metadata(Body):
    user_id: str | None = None


class CountTokensRequest(GenerationBody):
    """A conversation, as it would be continued."""

    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    system: Text | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: JsonObject | None = None  # an extension


class MessagesRequest(CountTokensRequest):
    """A conversation to continue."""

    max_tokens: GivenTokenLimit
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    stop_sequences: StopStrings | None = None
    metadata: Metadata | None = None
