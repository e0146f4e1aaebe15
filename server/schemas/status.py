"""The state of the server and its models, as GET /v1/status answers it, and what changes it."""

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict  # typing's own, before 3.12, has no schema in pydantic

from server.schemas.fields import OwnBody
from server.schemas.plans import Size

LONGEST_GRACE_S = 86_400

ModelState = Literal["loaded", "loading", "restarting", "unloading", "unloaded"]


class LoadStep(TypedDict):
    """A step of a load that is running."""

    what: str
    done: int
    total: int  # 0 where it is unknown
    unit: Literal["bytes", "tokens", "steps"]  # of `done` and `total`
    per_second: float  # over the last seconds; 0 while it is unknown
    seconds_left: float | None  # null while it is unknown


class ModelStatus(TypedDict):
    """A model of the registry. Most optional fields describe one that is in memory."""

    id: str
    aliases: list[str]
    default: bool  # whether requests that name no model get this one
    state: ModelState
    step: NotRequired[LoadStep]  # of a model that is being loaded
    error: NotRequired[str]  # why the latest load failed
    context: NotRequired[int]  # tokens
    tiers: NotRequired[dict[str, int]]  # the number of units of weights in each tier
    tier_bytes: NotRequired[dict[str, int]]  # their bytes
    draft: NotRequired[str]  # the drafting method
    plan: NotRequired[str]  # where the weights are, as text
    unloads_in: NotRequired[float]  # seconds, if no request comes (`idle_unload`)
    idle_unloaded_ago: NotRequired[float]  # seconds since `idle_unload` has unloaded it


class QueueStatus(TypedDict):
    """The numbers of requests, and of sequences that wait for a pass."""

    waiting_for_model: int  # requests; the server's own load of its first model is none
    waiting_for_pass: int  # sequences, as of the latest pass
    in_engine: int  # requests that the engine has, waiting or running


class Stalls(TypedDict):
    """Seconds in which the target did not compute, by cause."""

    copy: float  # it waited for weights
    draft: float  # it waited for the draft
    host: float  # it waited for the host


class PassTotals(TypedDict):
    """The sums over passes."""

    seconds: float  # the time that has passed; of all passes since the load, their own time
    passes: int
    tokens: int  # emitted
    link_bytes: int
    stall_seconds: Stalls


class RecentPasses(PassTotals):
    """The passes of the last seconds; the rates are zero if there were none."""

    tokens_per_second: float
    tokens_per_pass: float
    link_gbps: float


class RecurrentStates(TypedDict):
    """The states of recurrent layers, each of which belongs to a sequence or a stored prefix."""

    room: int  # the states that there is memory for
    sequences: int
    prefixes: int
    bytes_used: int
    hits: int  # prompts that began with a stored state, since the model was loaded
    evictions: int  # stored states that were dropped, since the model was loaded


class EngineStatus(TypedDict):
    """The figures of the loaded model's engine."""

    model: str
    recent: RecentPasses
    total: PassTotals  # since the model was loaded
    link_gbps: float  # of the latest pass
    link_limit_gbps: float  # the highest rate so far, at the load or later; 0: no link is used
    link_bits_per_weight: float  # in which a streamed weight travels; 0: none does
    kv_pages: int
    kv_pages_used: int
    states: RecurrentStates | None  # null: no layers are recurrent


class PeerStatus(TypedDict):
    """Another server of the same model, which requests of this one may run on."""

    url: str
    state: Literal["ready", "away"]
    note: str  # why it gets no requests, or no streams of other servers
    version: str | None
    model: str | None
    fingerprint: str | None
    round_trip_ms: float  # of a question to it
    requests: int  # that it has, of all its clients, as of its last report
    free_pages: int | None
    tokens: int  # that its passes have emitted since it has loaded the model
    tokens_per_second: float  # in its last seconds
    kv_pages: int
    kv_pages_used: int
    pages: int  # of texts of this server that it holds, as far as is known
    sent: int  # requests that were sent to it
    lost: int  # of them those that it lost, and that went on elsewhere
    running: int  # requests of this server that run there


class Together(TypedDict):
    """The sums over this server and its peers that are ready."""

    servers: int
    requests: int  # that their engines have, waiting or running
    tokens: int
    tokens_per_second: float
    kv_pages: int
    kv_pages_used: int
    streams_moved: int  # requests of this server that one of them lost, and another went on with


class ServerStatus(TypedDict):
    """The state of the whole server."""

    object: Literal["status"]
    version: str
    state: Literal["running", "stopping"]
    uptime_seconds: float
    models: list[ModelStatus]
    queue: QueueStatus
    engine: EngineStatus | None  # null: no model is loaded
    peers: list[PeerStatus]
    together: Together | None  # null: there are no peers


class LimitsRequest(OwnBody):
    """Limits of memory for a model that is in memory. null: the limit of the model's file alone."""

    device: Size | None = None  # as `memory.device`
    ram: Size | None = None  # as `memory.ram`


class UnloadRequest(OwnBody):
    """How long requests that hold a model may go on before it is unloaded."""

    # seconds; null: the setting `shutdown_timeout`
    grace: Annotated[float, Field(ge=0, le=LONGEST_GRACE_S)] | None = None
