"""The messages on the pipe between the front end and the engine process.

They are frozen dataclasses, which the pipe pickles: the engine is a child of the front end and
trusted. The front end sends the messages of `Inbound`, and the engine those of `Outbound`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from engine.kv_disk_stats import KVDiskStats
from engine.log_lines import LogLine
from engine.moves import LimitMemory, Replanned
from engine.pass_trace import PassTrace
from engine.spec import Numerics

# The sources of a token (`Origin.source`) that are not drafting methods.
TARGET = "target"  # no draft had proposed the token
PREDICTION = "prediction"  # the request itself had predicted the token
CONTINUED = "continued"  # the request gave the token, as one that an earlier answer had

NO_DRAFT = "none"  # the method that proposes nothing, which a request may ask for


@dataclass(frozen=True)
class ThinkingBudget:
    """The most tokens of an answer's thinking part, and the tokens that close it after them.

    Args:
        tokens: the most tokens between the marks. Closing tokens do not count, and neither do
            blanks in the first token after the opening mark.
        begin: the text that begins the thinking part; "" if the prompt ends inside of it, and no
            further one may begin.
        end: the text that ends it.
        closings: the tokens that close it the first time, the second time, and so on; the last
            ones also serve all further times. They spell `end`.
        repeats: whether further thinking parts may begin with `begin`, after text too. All of them
            share the budget.
        is_begun: whether the prompt ends inside a thinking part, although there is a `begin`.
    """

    tokens: int
    begin: str
    end: str
    closings: tuple[tuple[int, ...], ...]
    repeats: bool = False
    is_begun: bool = False


@dataclass(frozen=True)
class SamplingParams:
    """The rules by which tokens are chosen and a choice ends. The front end checks their ranges.

    `temperature` 0 is argmax. `top_k` 0, `top_p` 1, `min_p` 0, `repetition_penalty` 1 and zero
    penalties mean "off". `seed` is always set: the front end draws 64 random bits where the
    request has none. `logprobs` n asks for the log-probabilities of the chosen token and of the n
    likeliest, None for none.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    max_tokens: int | None = None  # None: limited by the context only
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None  # like `logprobs`, for the tokens of the prompt
    shown_tokens: tuple[int, ...] = ()  # special tokens that appear in the text
    grammar: str = ""  # a grammar of llguidance that the answer must match; "": none
    thinking: ThinkingBudget | None = None  # None: no limit

    @property
    def least_tokens(self) -> int:
        """The tokens that must fit after the prompt: 0 for a prompt that is only scored, else 1."""
        return 0 if self.max_tokens == 0 else 1


@dataclass(frozen=True)
class Speculation:
    """The drafting that a request asks for, which changes its speed and never its text."""

    method: str | None = None  # None: the model's own; or NO_DRAFT, or a `ModelInfo.draft_methods`
    max_rows: int | None = None  # limit of the rows of a draft tree, including the root


AUTO = Speculation()  # the settings of the model's file


@dataclass(frozen=True)
class AnswerFormat:
    """The way in which the answer to a chat is parsed, for the search for stop strings.

    Args:
        calls, reasoning: the names of the formats, for `engine.parsing.selection.formats_of`.
        tools: the schemas of the parameters of the tools that the answer may call, by name.
        before: the text that the answer continues.
    """

    calls: str
    reasoning: str
    tools: Mapping[str, Mapping[str, Any]]
    before: str


@dataclass(frozen=True)
class Stats:
    """The figures of one choice up to now, for usage and timings.

    They add up over the engines that have run the choice (see `Tail`); the time in which none ran
    it does not count.
    """

    prompt_tokens: int
    cached_tokens: int  # prompt tokens whose KV was reused
    completion_tokens: int
    passes: int
    drafted: int  # rows drafted for this choice
    accepted: int  # drafted rows that the target accepted
    prompt_ms: float  # from admission to the first token
    predicted_ms: float  # from the first token to the last
    prediction_accepted: int = 0  # tokens of the request's `prediction` that were emitted
    prediction_rejected: int = 0  # tokens of it that were checked and not emitted


@dataclass(frozen=True)
class Tail:
    """The tokens of a choice that an earlier engine has emitted, which the next one goes on from.

    Args:
        choice: the number of the choice.
        ids: all tokens of its answer so far; there may be none.
        stats: the figures up to them; None if they are not known.
        is_read: whether the front end has read the tokens. If not, the engine sends them as a
            replay first, with their text, and then they may also end the choice.
    """

    choice: int
    ids: tuple[int, ...]
    stats: Stats | None = None
    is_read: bool = True


@dataclass(frozen=True)
class Generate:
    """A request to generate n choices for one prompt. The noise of choice k is keyed by k.

    A request that an earlier engine has begun has a tail for each choice that has not finished, in
    `emitted`. Everything else is as in the first request: the answers go on as if one engine had
    made them, and the tokens of the tails are not sent again. A client may give the tails too.
    """

    request_id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    n: int = 1
    key: str = ""  # names the API key, for round robin between keys
    speculation: Speculation = AUTO
    prediction: tuple[int, ...] = ()  # tokens that the client expects, which are drafted
    answer_format: AnswerFormat | None = None  # None: stop strings count in the whole text
    emitted: tuple[Tail, ...] = ()  # empty: no choice has been begun
    is_continued: bool = False  # the client gave the first tokens; such answers are not audited
    traced_nodes: int = 0  # the most drafted nodes in the traces of its passes; 0: no traces
    http_id: str = ""  # of the HTTP request, which log lines name

    @property
    def num_unfinished(self) -> int:
        """The number of choices that will end."""
        return len(self.emitted) or self.n


@dataclass(frozen=True)
class Abort:
    """A notice that the client has left: the request ends before the next layer."""

    request_id: str


@dataclass(frozen=True)
class Shutdown:
    """A request to close the engine and end its process."""


@dataclass(frozen=True)
class ModelInfo:
    """The properties of a loaded model that the front end needs."""

    model_id: str
    vocab_size: int
    context_length: int
    capacity_tokens: int  # the longest prompt plus answer the KV pages can hold
    max_sequences: int
    eos_token_ids: tuple[int, ...]
    numerics: Numerics
    # Changes with all that may change an answer: weights, precision, numerics, versions, the kind
    # of device, and the bits that it computes. Engines with equal ones go on with each other's
    # answers.
    fingerprint: str
    tokenizer_path: str  # folder of the tokenizer and chat template
    plan: str  # one line that says where the weights are
    num_pages: int = 0  # of the KV pool
    num_states: int = 0  # of recurrent layers, that there is memory for
    link_gbps: float = 0.0  # measured bandwidth of the link, 1e9 bytes per second; 0: no link
    link_bits: float = 0.0  # of one weight on the link; 0: no link
    draft_methods: tuple[str, ...] = ()  # methods that a request may name, besides "auto"
    draft_method: str = NO_DRAFT  # the one that was chosen, or that the model's file names
    sampling: tuple[tuple[str, float], ...] = ()  # defaults in the model's generation_config.json
    files: str = ""  # changes with the model's files and with how its positions are scaled
    revision: str = ""  # changes with the sizes and change times of its weight files
    form: str = ""  # changes with how its weight files are used: text files, precision, positions
    arithmetic: str = ""  # changes with all of `fingerprint` but `files`
    tiers: tuple[tuple[str, int], ...] = ()  # the number of units of weights in each tier
    tier_bytes: tuple[tuple[str, int], ...] = ()  # their bytes, as they are kept there


@dataclass(frozen=True)
class LoadProgress:
    """The progress of a long step of the load. `total` is 0 where it is unknown."""

    what: str
    done: int
    total: int
    unit: Literal["bytes", "tokens", "steps"] = "bytes"


ReportProgress = Callable[[LoadProgress], None]


@dataclass(frozen=True)
class Ready:
    """A notice that the model is loaded and accepts requests."""

    info: ModelInfo


@dataclass(frozen=True)
class LoadFailed:
    """The reason why the model cannot be loaded, for the user. The process ends after it."""

    message: str


@dataclass(frozen=True)
class Heartbeat:
    """A sign of progress within a pass, sent at most once a second."""

    units: int  # units that have run since the start


@dataclass(frozen=True)
class PromptProgress:
    """A notice that the prompt of a request takes part in the pass that begins.

    It is sent for the first pass, and for later ones at most once a second.
    """

    request_id: str
    done: int  # tokens of the prompt whose KV is stored


@dataclass(frozen=True)
class TokenLogprob:
    """The log-probability of a token by the model itself, before temperature and penalties."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # (token, logprob), best first


@dataclass(frozen=True)
class Origin:
    """The origin of an emitted token: what proposed it, and in which pass it was emitted."""

    # "target" (bonus token), "grammar" (the only token that a grammar or a thinking budget allows),
    # "continued", or the name of the draft
    source: str
    depth: int  # level in the draft tree; 0 for a token that was not drafted
    pass_number: int  # number of the choice's pass, from 1


@dataclass(frozen=True)
class Tokens:
    """The tokens that one pass emitted for one choice; none follow a stop.

    `text` can be shown at once: a possible beginning of a stop string or of a UTF-8 character is
    held back, so that it may be shorter than the text of `ids`. The last message of a choice has
    `finish` ("stop" or "length"). `stats` has the figures of the choice up to this message.

    `lookahead` is what the answer's parser has to read after the last `text` of a choice that ends
    at a stop string: what follows decides whether the end of the text is content. It is not shown.

    With `is_replayed` these are the tokens of a tail, which the client has, with the text that they
    had made visible. They bring the reader to the state in which the next tokens find it.
    """

    request_id: str
    choice: int
    ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()  # sent once; None for the first token
    origins: tuple[Origin, ...] = ()  # one for each id
    finish: str | None = None
    stop_reason: str | int | None = None  # the stop string or stop token id that ended it
    lookahead: str = ""
    stats: Stats | None = None
    is_replayed: bool = False
    traces: tuple[PassTrace, ...] = ()  # of the pass, and of earlier ones that emitted nothing


@dataclass(frozen=True)
class Failed:
    """The failure of a request. `code` and `param` are those of the API's error object."""

    request_id: str
    message: str
    code: str
    param: str | None = None


@dataclass(frozen=True)
class StateStats:
    """The states of recurrent layers after a pass, and what became of stored ones since the last.

    Those of a separate draft model are left out, as its KV pages are.
    """

    sequences: int  # states of running sequences
    prefixes: int  # states of stored prefixes
    nbytes: int  # of all of these
    hits: int  # prompts that began with a stored state
    evictions: int  # stored states that were dropped


@dataclass(frozen=True)
class PassStats:
    """The figures of one pass, for the log and the metrics."""

    rows: int
    sequences: int
    accepted: int  # tokens emitted
    draft_ms: float  # drafting before the pass
    pass_ms: float
    link_gbps: float  # bytes that travelled, divided by the time of drafting and pass
    free_pages: int = 0
    waiting: int = 0
    prompt_rows: int = 0  # of `rows`
    drafted_by: tuple[tuple[str, int], ...] = ()  # source of drafted rows -> rows checked
    accepted_by: tuple[tuple[str, int], ...] = ()  # source -> rows that the target accepted
    ahead_ms: float = 0.0  # drafting while weights travelled, which is part of `pass_ms`
    copy_stall_ms: float = 0.0  # of the pass, spent waiting for weights
    host_ms: float = 0.0  # of the whole step, outside draft, layers and head
    link_bytes: int = 0
    link_ms: float = 0.0  # in which these bytes travelled; the link was idle in the rest
    undrafted: int = 0  # decoding sequences without a draft, because it would not pay
    states: StateStats | None = None  # None: there are no recurrent layers


@dataclass(frozen=True)
class Audited:
    """The result of an audit: one finished choice compared with plain decoding."""

    positions: int
    mismatches: int  # positions where another token would have been chosen


@dataclass(frozen=True)
class WeightsChecked:
    """The results of checks of the packed units on disk since the last message."""

    nbytes: int  # bytes whose checksums were compared again in idle time
    repaired: int  # damaged units that were packed again, in idle time or in a pass
    unrepaired: int  # damage that could not be repaired


Inbound = Generate | Abort | LimitMemory | Shutdown
Outbound = (
    LoadProgress
    | Ready
    | LoadFailed
    | Heartbeat
    | PromptProgress
    | Tokens
    | Failed
    | PassStats
    | Audited
    | WeightsChecked
    | Replanned
    | KVDiskStats
    | LogLine
)
