"""What travels over the pipe between the front end and the engine process.

Frozen dataclasses, pickled by the pipe itself (it is our own child). Front end to engine:
`Generate`, `Abort`, `Shutdown`. Engine to front end: the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass

from engine.spec import Numerics

ReportProgress = Callable[[str, int, int], None]  # what, done, total (bytes, or units)

# The sources of a token (`Origin.source`) that are no drafting method.
TARGET = "target"  # no draft had proposed it
PREDICTION = "prediction"  # the request itself had predicted it

NO_DRAFT = "none"  # what a request says that wants no draft; also the method that proposes nothing


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen and when a choice ends. Ranges are checked by the front end.

    `temperature` 0 is argmax. `top_k` 0, `top_p` 1, `min_p` 0, `repetition_penalty` 1 and zero
    penalties mean "off". `seed` is always set: the front end draws 64 random bits where the
    request has none. `logprobs` None: not asked; n: the chosen token's and the n best.
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
    max_tokens: int | None = None  # None: until the context is full
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None  # as `logprobs`, of the prompt's own tokens
    shown_tokens: tuple[int, ...] = ()  # special tokens whose spelling is part of the text
    grammar: str = ""  # what the answer must match, as llguidance writes it; "": anything

    @property
    def least_tokens(self) -> int:
        """Tokens that there must be room for behind the prompt: none where it is only scored."""
        return 0 if self.max_tokens == 0 else 1


@dataclass(frozen=True)
class Speculation:
    """How a request wants to be drafted for; it changes its speed, never its text."""

    method: str | None = None  # None: the model's own; else NO_DRAFT, or one without draft time
    max_rows: int | None = None  # rows of its trees, the root among them


AUTO = Speculation()  # as the model's file says


@dataclass(frozen=True)
class Generate:
    """Serve one prompt with n choices; choice k's noise is keyed by k."""

    request_id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    n: int = 1
    key: str = ""  # whose request it is, for round robin
    speculation: Speculation = AUTO
    prediction: tuple[int, ...] = ()  # tokens the client expects; joins the draft tree


@dataclass(frozen=True)
class Abort:
    """The client left: stop the request at the next layer border."""

    request_id: str


@dataclass(frozen=True)
class Shutdown:
    """End the engine process in good order."""


@dataclass(frozen=True)
class ModelInfo:
    """What the front end needs to know of a loaded model."""

    model_id: str
    vocab_size: int
    context_length: int
    capacity_tokens: int  # the longest prompt plus answer the KV pages can hold
    max_sequences: int
    eos_token_ids: tuple[int, ...]
    numerics: Numerics
    fingerprint: str  # changes with the model's files, precision, numerics and engine version
    tokenizer_path: str  # folder of the tokenizer and chat template
    plan: str  # one line: what lives where
    num_pages: int = 0  # of the KV pool
    link_gbps: float = 0.0  # what the link was measured to carry, 1e9 bytes a second; 0: none
    draft_methods: tuple[str, ...] = ()  # what a request may ask for by name, beside "auto"


@dataclass(frozen=True)
class Progress:
    """A step of the load that takes long; `total` 0 where it is unknown."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class Ready:
    """The model is loaded and serves."""

    info: ModelInfo


@dataclass(frozen=True)
class LoadFailed:
    """The model cannot be loaded; the process ends after this. The message is for the user."""

    message: str


@dataclass(frozen=True)
class Heartbeat:
    """The engine makes progress: sent at most once a second while units go by."""

    units: int  # units walked since the start


@dataclass(frozen=True)
class Started:
    """A request takes part in the pass that begins now; told at least once before its tokens."""

    request_id: str


@dataclass(frozen=True)
class TokenLogprob:
    """The model's own log-probability (before temperature and penalties) of an emitted token."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # (token, logprob), best first


@dataclass(frozen=True)
class Origin:
    """Where an emitted token came from."""

    source: str  # "target" (a bonus token), "grammar" (the only one allowed), or a draft's name
    depth: int  # level in the draft tree; 0 for what was not drafted
    pass_number: int  # of the choice, from 1


@dataclass(frozen=True)
class Stats:
    """Figures of one finished choice, for usage and timings."""

    prompt_tokens: int
    cached_tokens: int  # prompt tokens whose KV was reused
    completion_tokens: int
    passes: int
    drafted: int  # rows drafted for this choice
    accepted: int  # drafted rows the target agreed with
    prompt_ms: float  # from admission to the first token
    predicted_ms: float  # from the first token to the last
    prediction_accepted: int = 0  # tokens of the request's `prediction` that were emitted
    prediction_rejected: int = 0  # and those checked in vain


@dataclass(frozen=True)
class Tokens:
    """What one pass emitted for one choice, decided up to the stop.

    `text` is safe to show: a possible prefix of a stop string or of a UTF-8 character is held
    back, so it may lag behind `ids`. The last message of a choice has `finish` ("stop",
    "length") and `stats`.
    """

    request_id: str
    choice: int
    ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()  # once, one a token; the first None
    origins: tuple[Origin, ...] = ()  # one an id
    finish: str | None = None
    stop_reason: str | int | None = None  # the stop string or stop token id that ended it
    stats: Stats | None = None


@dataclass(frozen=True)
class Failed:
    """A request that ends without an answer; `code` and `param` as in the API's error object."""

    request_id: str
    message: str
    code: str
    param: str | None = None


@dataclass(frozen=True)
class PassStats:
    """One pass in figures: the log's and the metrics' source."""

    rows: int
    sequences: int
    accepted: int  # tokens emitted
    draft_ms: float  # before the pass: not hidden
    pass_ms: float
    link_gbps: float  # bytes that travelled over the time of the pass
    free_pages: int = 0
    waiting: int = 0
    prompt_rows: int = 0  # of `rows`
    drafted_by: tuple[tuple[str, int], ...] = ()  # source of drafted rows -> rows checked
    accepted_by: tuple[tuple[str, int], ...] = ()  # source -> rows the target agreed with
    ahead_ms: float = 0.0  # drafted while weights travelled: inside `pass_ms`
    copy_stall_ms: float = 0.0  # of the pass, spent waiting for weights
    host_ms: float = 0.0  # of the whole step, outside draft, layers and head
    link_bytes: int = 0
    undrafted: int = 0  # decoding sequences that got no draft because it would not pay


@dataclass(frozen=True)
class Audited:
    """One finished choice checked against plain decoding (the audit)."""

    positions: int
    mismatches: int  # positions where another token would have been chosen


@dataclass(frozen=True)
class WeightsChecked:
    """What became known of the packed units that are read from disk, since the last message."""

    nbytes: int  # whose checksums were compared once more, in idle time
    repaired: int  # units that were damaged and have been packed again, in passes too
    unrepaired: int  # damage that could not be repaired


Inbound = Generate | Abort | Shutdown
Outbound = (
    Progress
    | Ready
    | LoadFailed
    | Heartbeat
    | Started
    | Tokens
    | Failed
    | PassStats
    | Audited
    | WeightsChecked
)
