"""The answers of POST /v1/responses, as typed dictionaries."""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from server.schemas.answers import ChatLogprob, TokenIds

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(TypedDict):
    """The text of an output message."""

    type: Literal["output_text"]
    text: str
    annotations: list[str]  # always empty
    logprobs: list[ChatLogprob]


class ReasoningText(TypedDict):
    """The text of an output item with reasoning."""

    type: Literal["reasoning_text"]
    text: str


class OutputMessage(TypedDict):
    """An output item with a message to the user."""

    id: str
    type: Literal["message"]
    status: Status
    role: Literal["assistant"]
    content: list[OutputText]


class OutputReasoning(TypedDict):
    """An output item with the model's reasoning."""

    id: str
    type: Literal["reasoning"]
    status: Status
    summary: list[str]  # always empty
    content: list[ReasoningText]


class OutputCall(TypedDict):
    """An output item with one function call."""

    id: str
    type: Literal["function_call"]
    status: Status
    call_id: str
    name: str
    namespace: NotRequired[str]
    arguments: str


class OutputCustomCall(TypedDict):
    id: str
    type: Literal["custom_tool_call"]
    status: Status
    call_id: str
    name: str
    namespace: NotRequired[str]
    input: str


OutputItem = OutputMessage | OutputReasoning | OutputCall | OutputCustomCall


class InputTokensDetails(TypedDict):
    """How many input tokens came from the prefix cache."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(TypedDict):
    """How many output tokens were reasoning."""

    reasoning_tokens: int


class ResponseUsage(TypedDict):
    """The token counts of a response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(TypedDict):
    """Why a response failed: a machine-readable code and a sentence."""

    code: str
    message: str


class IncompleteDetails(TypedDict):
    """Why a response ended before it was complete."""

    reason: str


class Settings(TypedDict):
    """The settings that an answer was made with; unsupported ones have a fixed value."""

    instructions: str | None
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    text: dict[str, Any]
    reasoning: dict[str, Any]
    max_output_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_logprobs: int
    metadata: dict[str, str]
    user: str | None
    truncation: Literal["disabled"]
    background: Literal[False]
    store: Literal[False]
    previous_response_id: None
    service_tier: Literal["default"]


class Response(Settings):
    """A whole response, with its settings, its output items and its usage."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Status
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    model: str
    output: list[OutputItem]
    usage: ResponseUsage | None


class WholeResponse(Response, TokenIds):
    """The whole answer to a request for a response."""


class ResponseEvent(TokenIds):
    """One event of a streamed answer; the other fields follow from its type."""

    type: str
    sequence_number: int
    response: NotRequired[Response]
