"""What POST /v1/messages answers, as typed dictionaries: Anthropic's shapes."""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict


class TextContent(TypedDict):
    type: Literal["text"]
    text: str
    citations: None


class ThinkingContent(TypedDict):
    type: Literal["thinking"]
    thinking: str
    signature: Literal[""]  # nothing to verify: the text is taken back as it is


class ToolUseContent(TypedDict):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


MessageContent = TextContent | ThinkingContent | ToolUseContent


class MessageUsage(TypedDict):
    """Prompt tokens are `input_tokens` (computed) plus `cache_read_input_tokens`."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int


class MessageAnswer(TypedDict):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[MessageContent]
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessageUsage


class MessageEvent(TypedDict):
    """One event of a streamed answer; the other fields follow from its type."""

    type: str
    index: NotRequired[int]
    message: NotRequired[MessageAnswer]


class CountedTokens(TypedDict):
    input_tokens: int


class MessageErrorObject(TypedDict):
    type: str
    message: str


class MessageErrorBody(TypedDict):
    type: Literal["error"]
    error: MessageErrorObject
    request_id: str
