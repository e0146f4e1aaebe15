"""The objects that the OpenAI API answers with, as typed dictionaries."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict  # typing's own, before 3.12, has no schema in pydantic


class Source(TypedDict):
    """When an answer was begun and by which model; the same in a whole answer and in its chunks."""

    created: int
    model: str
    system_fingerprint: str


class PromptTokensDetails(TypedDict):
    """How many prompt tokens were taken from the prefix cache."""

    cached_tokens: int


class CompletionTokensDetails(TypedDict):
    """How many emitted tokens were reasoning, and how many tokens of a prediction were right."""

    reasoning_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(TypedDict):
    """The token counts of a request, over all its choices.

    A chunk that has the usage so far lacks the details of the completion, unless it is the last
    one, and those of the prompt until it is known how much of the prompt was in the cache.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: NotRequired[PromptTokensDetails]
    completion_tokens_details: NotRequired[CompletionTokensDetails]


class Timings(TypedDict):
    """llama.cpp's timing fields and figures of speculation, over all choices of a request."""

    cache_n: int  # prompt tokens whose KV was reused
    prompt_n: int  # prompt tokens computed
    prompt_ms: float
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float
    draft_n: int  # drafted rows
    draft_n_accepted: int
    passes: int
    tokens_per_pass: float  # emitted tokens per pass, all choices together
    seed: int  # a request with the same seed gets the same answer
    resumed: int  # how often the answer went on after a restart of the engine


class Costs(TypedDict):
    """The usage and timings of an answer, in a whole answer and in the last chunk of a stream."""

    usage: NotRequired[Usage | None]
    timings: NotRequired[Timings]


class TopLogprob(TypedDict):
    """A token with its log-probability and its UTF-8 bytes."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob):
    """The log-probability of an emitted token and of the likeliest tokens at its position."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    """The log-probabilities of the tokens of a choice's content."""

    content: list[ChatLogprob]
    refusal: None


class CallFunction(TypedDict):
    """The function that a tool call names, and its arguments."""

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
    """The part of a called function that one delta brings."""

    name: NotRequired[str]
    arguments: str


class CallCustomDelta(TypedDict):
    name: NotRequired[str]
    input: str


class CallDelta(TypedDict):
    """A piece of a tool call: the first has id, type and name, the others bring arguments."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function", "custom"]]
    function: NotRequired[CallFunctionDelta]
    custom: NotRequired[CallCustomDelta]


# Defined by a call, because the key `pass` is a keyword of Python.
TokenOrigin = TypedDict(
    "TokenOrigin",
    {
        "token": str,  # the text of the token
        "source": str,  # "target", "grammar", or the name of the draft that proposed the token
        "depth": int,  # level in the draft tree; 0 for a token that was not drafted
        "pass": int,  # number of the choice's pass that emitted the token, from 1
    },
)


class DraftNode(TypedDict):
    """A drafted token in the tree of a pass."""

    parent: int  # its index among the pass's nodes; -1: the token before the tree
    id: int
    token: str  # the text of the token
    source: str  # the name of the draft that proposed it, or "grammar"
    score: float  # log-probability of the path down to it, by the draft
    accepted: bool  # whether the answer has it


AnswerPass = TypedDict(
    "AnswerPass",
    {
        "pass": int,  # number of the choice's pass, from 1
        "tokens": int,  # emitted for the choice; 0 while its prompt is computed
        "own_rows": int,  # of the choice: tokens of its prompt, or its last token and the drafted
        "rows": int,  # of all requests of the pass
        "sequences": int,  # choices of all requests that ran in the pass
        "pass_ms": float,
        "draft_ms": float,  # drafting before the pass
        "copy_stall_ms": float,  # of the pass, spent waiting for weights
        "link_bytes": int,  # weights that travelled, for all requests
        "nodes": list[DraftNode],  # parents first
        "nodes_left_out": int,  # rejected ones that are not among `nodes`
        "passes_left_out": int,  # passes of the prompt before this one that are not reported
    },
)


class Delta(TypedDict, total=False):
    """What one chunk adds to a choice's message."""

    role: Literal["assistant"]
    content: str | None  # null in the first delta where a call is forced
    reasoning_content: str
    tool_calls: list[CallDelta]
    function_call: CallFunctionDelta  # where the request has `functions`


class TokenIds(TypedDict, total=False):
    """The ids of the prompt and of the answer's tokens, when asked for: an extension."""

    prompt_token_ids: list[int]  # in the first event of a stream
    token_ids: list[int]  # in an event, the tokens since the last one that has them


class ChatChunkChoice(TypedDict):
    """One choice in a chunk of a streamed chat."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: NotRequired[str | int]  # the stop string or stop token that ended it
    provenance: NotRequired[list[TokenOrigin]]  # an extension, when asked for
    passes: NotRequired[list[AnswerPass]]  # with the provenance "tree"
    token_ids: NotRequired[list[int]]  # an extension, when asked for


class ChatChunk(Source, Costs):
    """One event of a streamed chat."""

    id: str
    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    prompt_token_ids: NotRequired[list[int]]  # in the first chunk, when asked for


class Message(TypedDict):
    """The message that a chat completion answers with."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[Call]]
    function_call: NotRequired[CallFunction]  # where the request has `functions`


class ChatChoice(TypedDict):
    """One choice of a whole chat completion."""

    index: int
    message: Message
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: NotRequired[str | int]
    provenance: NotRequired[list[TokenOrigin]]  # an extension, when asked for
    passes: NotRequired[list[AnswerPass]]  # with the provenance "tree"
    token_ids: NotRequired[list[int]]  # an extension, when asked for


class ChatCompletion(Source, Costs):
    """The whole answer to a chat request."""

    id: str
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    prompt_token_ids: NotRequired[list[int]]  # an extension, when asked for


class TextLogprobs(TypedDict):
    """Four lists of equal length, with one entry for each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(TypedDict):
    """One choice of a text completion or of its chunk."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: str | None
    provenance: NotRequired[list[TokenOrigin]]  # an extension, when asked for
    passes: NotRequired[list[AnswerPass]]  # with the provenance "tree"
    prompt_token_ids: NotRequired[list[int]]  # in the first chunk of the choice
    token_ids: NotRequired[list[int]]  # an extension, when asked for


class TextCompletion(Source, Costs):
    """A whole text completion, or one event of a streamed one."""

    id: str
    object: Literal["text_completion"]
    choices: list[TextChoice]


Capability = Literal["completion", "chat", "tools", "thinking", "structured_outputs"]


class SamplingDefaults(TypedDict, total=False):
    """The values of the parameters that a request leaves out. A model has those that are known."""

    temperature: float
    top_p: float
    top_k: int  # 0: all tokens
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    max_tokens: int | None  # of a chat's answer; null: as many as the context has room for
    thinking_budget: int | None  # tokens of reasoning; null: any number


class Model(TypedDict):
    """A model of the registry, as GET /v1/models describes it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    aliases: list[str]
    state: Literal["loaded", "unloaded"]
    max_model_len: NotRequired[int]  # tokens of the context, of the loaded model
    capabilities: NotRequired[list[Capability]]  # of the loaded model
    sampling: SamplingDefaults  # all of the loaded model; of others those of their files


class ModelList(TypedDict):
    """All models of the registry."""

    object: Literal["list"]
    data: list[Model]


class Version(TypedDict):
    version: str


class Status(TypedDict):
    """The state of the server in one word."""

    status: str
