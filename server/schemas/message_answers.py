"""The answers of POST /v1/messages in Anthropic's format, as typed dictionaries."""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from server.schemas.answers import TokenIds


class TextContent(TypedDict):
    """A block of the answer's text."""

    type: Literal["text"]
    text: str
    citations: None


class ThinkingContent(TypedDict):
    """A block of the model's reasoning."""

    type: Literal["thinking"]
    thinking: str
    signature: Literal[""]  # empty: a client may send the text back, and it is not verified


class ToolUseContent(TypedDict):
    """A block with one tool call."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


MessageContent = TextContent | ThinkingContent | ToolUseContent


class MessageUsage(TypedDict):
    """Token counts. The prompt has `input_tokens` (computed) plus `cache_read_input_tokens`."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int


class MessageAnswer(TokenIds):
    """The whole answer to a request for a message."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[MessageContent]
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessageUsage


class MessageEvent(TokenIds):
    """One event of a streamed answer; the other fields follow from its type."""

    type: str
    index: NotRequired[int]
    message: NotRequired[MessageAnswer]
    status: NotRequired[str]  # of a ping: what the request waits for


class CountedTokens(TypedDict):
    """The number of tokens of a request's prompt."""

    input_tokens: int


class MessageErrorObject(TypedDict):
    """What went wrong, in Anthropic's format."""

    type: str
    message: str


class MessageErrorBody(TypedDict):
    """The body of a failed request's answer."""

    type: Literal["error"]
    error: MessageErrorObject
    request_id: str
