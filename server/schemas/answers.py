"""What goes out: the objects of the OpenAI API, as typed dictionaries."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict  # typing's own, before 3.12, has no schema in pydantic


class Source(TypedDict):
    """When an answer was begun, and by which model; the whole and all its chunks say it."""

    created: int
    model: str
    system_fingerprint: str


class PromptTokensDetails(TypedDict):
    cached_tokens: int


class CompletionTokensDetails(TypedDict):
    reasoning_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class Timings(TypedDict):
    """llama.cpp's fields, and what speculation did. Choices of one request are taken together."""

    cache_n: int  # prompt tokens whose KV was reused
    prompt_n: int  # prompt tokens computed
    prompt_ms: float
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float
    draft_n: int  # rows drafted
    draft_n_accepted: int
    passes: int
    tokens_per_pass: float  # emitted by a pass, all choices together
    seed: int  # send it again to get the same answer


class Costs(TypedDict):
    """What an answer cost, in its last chunk and in the whole."""

    usage: NotRequired[Usage | None]
    timings: NotRequired[Timings]


class TopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    content: list[ChatLogprob]
    refusal: None


class CallFunction(TypedDict):
    name: str
    arguments: str  # JSON


class CallCustom(TypedDict):
    name: str
    input: str


class Call(TypedDict):
    """A tool call of a whole answer: of a function, or of a custom tool."""

    id: str
    type: Literal["function", "custom"]
    function: NotRequired[CallFunction]
    custom: NotRequired[CallCustom]


class CallFunctionDelta(TypedDict):
    name: NotRequired[str]
    arguments: str


class CallCustomDelta(TypedDict):
    name: NotRequired[str]
    input: str


class CallDelta(TypedDict):
    """A call's first delta has its id, type, name and empty arguments; the others more of them."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function", "custom"]]
    function: NotRequired[CallFunctionDelta]
    custom: NotRequired[CallCustomDelta]


# A functional definition: `pass` is a keyword.
TokenOrigin = TypedDict(
    "TokenOrigin",
    {
        "token": str,  # its piece of the text
        "source": str,  # "target", "grammar", or the draft it came from
        "depth": int,  # in the draft tree; 0: not drafted
        "pass": int,  # of the choice, from 1
    },
)


class Delta(TypedDict, total=False):
    role: Literal["assistant"]
    content: str
    reasoning_content: str
    tool_calls: list[CallDelta]
    function_call: CallFunctionDelta  # where the request has `functions`


class ChatChunkChoice(TypedDict):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: NotRequired[str | int]  # the stop string or stop token that ended it
    provenance: NotRequired[list[TokenOrigin]]  # an extension, when asked for


class ChatChunk(Source, Costs):
    """One event of a streamed chat."""

    id: str
    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]


class Message(TypedDict):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[Call]]
    function_call: NotRequired[CallFunction]  # where the request has `functions`


class ChatChoice(TypedDict):
    index: int
    message: Message
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: NotRequired[str | int]
    provenance: NotRequired[list[TokenOrigin]]  # an extension, when asked for


class ChatCompletion(Source, Costs):
    id: str
    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class TextLogprobs(TypedDict):
    """Four lists of equal length, one entry a token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(TypedDict):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: str | None
    provenance: NotRequired[list[TokenOrigin]]  # an extension, when asked for


class TextCompletion(Source, Costs):
    """A completion, and one event of a streamed one."""

    id: str
    object: Literal["text_completion"]
    choices: list[TextChoice]


class Model(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    aliases: list[str]


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[Model]


class Status(TypedDict):
    status: str
