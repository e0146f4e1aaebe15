"""The bodies of POST /v1/messages and /v1/messages/count_tokens in Anthropic's format."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, WithJsonSchema, model_validator

from server.schemas.chat_messages import LeftOutPart
from server.schemas.continuing import UncontinuedBody
from server.schemas.documents import ResultDocument, SearchResult, UserDocument
from server.schemas.fields import (
    Body,
    GenerationBody,
    GivenTokenLimit,
    JsonObject,
    StopStrings,
    field_error,
    only_types,
    type_of,
)
from server.schemas.limits import MAX_MESSAGES, MAX_NAMES, MAX_TOOLS
from server.schemas.reasoning import Reasoning, ReasoningBody, ThinkingBudget

_OWN_BLOCKS = ("text", "thinking", "redacted_thinking", "tool_use")
_RESULT_BLOCKS = ("text", "document", "search_result", "tool_reference")


class TextBlock(Body):
    """A block of text in a turn."""

    type: Literal["text"]
    text: str


class ThinkingBlock(Body):
    """A block of the model's earlier reasoning."""

    type: Literal["thinking"]
    thinking: str


class RedactedThinkingBlock(Body):
    """Reasoning that another server has encrypted; it is ignored."""

    type: Literal["redacted_thinking"]


class HostedBlock(Body):
    """A call that a provider's own tool answered, or its result: read over."""

    type: Annotated[str, WithJsonSchema({"type": "string", "not": {"enum": list(_OWN_BLOCKS)}})]


class ToolUseBlock(Body):
    """A tool call that the model made earlier."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: JsonObject


def _text_or_blocks(value: object) -> str:
    return "blocks" if isinstance(value, list) else "text"


TextBlocks = Annotated[
    list[Annotated[TextBlock, only_types("Content blocks", "text")]],
    Field(max_length=MAX_MESSAGES, fail_fast=True),
]
Text = Annotated[
    Annotated[str, Tag("text")] | Annotated[TextBlocks, Tag("blocks")],
    Discriminator(_text_or_blocks),
]


class ToolReferenceBlock(Body):
    """A tool that a search for tools has found; from now on the request's `tools` has it."""

    type: Literal["tool_reference"]
    tool_name: str

    @property
    def text(self) -> str:
        return f"\n[The tool {self.tool_name} can be called now.]\n"


class LeftOutBlock(LeftOutPart):
    """A block of a tool's result that is no text: a line says that it was left out."""

    type: Annotated[str, WithJsonSchema({"type": "string", "not": {"enum": list(_RESULT_BLOCKS)}})]


def _kind_of_result(value: object) -> str:
    kind = type_of(value) or "text"
    return kind if kind in _RESULT_BLOCKS else "other"


ResultBlock = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[ToolReferenceBlock, Tag("tool_reference")]
    | Annotated[ResultDocument, Tag("document")]
    | Annotated[SearchResult, Tag("search_result")]
    | Annotated[LeftOutBlock, Tag("other")],
    Discriminator(_kind_of_result),
]
ResultBlocks = Annotated[list[ResultBlock], Field(max_length=MAX_MESSAGES, fail_fast=True)]


class ToolResultBlock(Body):
    """The result of a tool call."""

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
    Annotated[
        TextBlock | ToolResultBlock | UserDocument | SearchResult, Field(discriminator="type")
    ],
    only_types("Content blocks", "text", "tool_result", "document", "search_result"),
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
    """A turn of the user, with text and results of tool calls."""

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
    """An earlier answer of the model, or the beginning of one to continue."""

    role: Literal["assistant"]
    content: Annotated[
        Annotated[str, Tag("text")]
        | Annotated[
            list[AssistantBlock], Field(max_length=MAX_MESSAGES, fail_fast=True), Tag("blocks")
        ],
        Discriminator(_text_or_blocks),
    ]


class SystemTurn(Body):
    """Instructions of the application to the model."""

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
    """Which tools the model may or must call."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        if self.type == "tool" and self.name is None:
            message = "A tool choice of type 'tool' needs 'name'"
            raise field_error("name", message, "missing_required_parameter")
        return self


class Thinking(Body):
    """Whether the model reasons before it answers."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: ThinkingBudget = None


class OutputFormat(Body):
    """The JSON schema that an answer must match."""

    type: Literal["json_schema"]
    schema_: Annotated[Any, Field(alias="schema")]


class OutputConfig(Body):
    """The reasoning effort and the format of an answer."""

    effort: str | None = None
    format: OutputFormat | None = None


class Metadata(Body):
    """Data about a request for its sender; it is not used."""

    user_id: str | None = None


class CountTokensRequest(ReasoningBody, GenerationBody):
    """The body of a request that counts the tokens of a conversation."""

    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    system: Text | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    reasoning: Reasoning | None = None  # an extension
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None  # the earlier name of `output_config.format`
    mcp_servers: Annotated[list[Any], Field(max_length=MAX_NAMES)] | None = None  # left out
    chat_template_kwargs: JsonObject | None = None  # an extension

    @property
    def answer_format(self) -> OutputFormat | None:
        """Return the format that the answer must match."""
        config = self.output_config
        return config.format if config is not None and config.format else self.output_format


class MessagesRequest(UncontinuedBody, CountTokensRequest):
    """The body of a request that continues a conversation."""

    max_tokens: GivenTokenLimit
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    stop_sequences: StopStrings | None = None
    metadata: Metadata | None = None
