"""The JSON messages that two servers exchange about a request; the receiver validates each.

A server that sends a request to a peer reads lines of JSON: `Progress`, `Tokens`, and at the end
`Ended` or `Failure`. An empty line is a sign of life. A peer is trusted to run the model, but
nothing that it sends may harm the server that reads it, and the reverse.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from cluster.report import Figures, Load, PageChange
from cluster.served_model import ServedModel
from engine.errors import EngineDied, EngineError, PassFailed, QueueFull, RequestError
from engine.messages import Generate, SamplingParams, Tokens

PROTOCOL = 1
SIGN_OF_LIFE = b"\n"
SIGN_SECONDS = 1.0  # between two signs of life
LONGEST_LINE = 16 << 20  # bytes; the log-probabilities of a long prompt take some
LONGEST_STOPS = 1024
MOST_CHOICES = 128
MOST_LOGPROBS = 20


@dataclass(frozen=True)
class Progress:
    """How many tokens of the prompt the peer has stored."""

    prompt: Annotated[int, Field(ge=0)]
    kind: Literal["progress"] = "progress"


@dataclass(frozen=True)
class Emitted:
    """Tokens of the answer."""

    tokens: Tokens
    kind: Literal["tokens"] = "tokens"


@dataclass(frozen=True)
class Ended:
    """The end of an answer whose choices have all finished."""

    kind: Literal["end"] = "end"


@dataclass(frozen=True)
class Failure:
    """The error that ends an answer."""

    error: Literal["request", "pass", "queue", "died"]
    message: Annotated[str, Field(max_length=4000)]
    code: str | None = None
    param: str | None = None
    kind: Literal["failure"] = "failure"

    @classmethod
    def of(cls, error: EngineError) -> "Failure":
        """Return the message that reports an error to the other server."""
        match error:
            case RequestError():
                return cls("request", str(error), error.code, error.param)
            case PassFailed():
                return cls("pass", str(error), error.code)
            case QueueFull():
                return cls("queue", str(error))
            case EngineDied():
                return cls("died", str(error), error.code)
        return cls("died", str(error), "engine_error")

    def exception(self) -> EngineError:
        """Return the error that this message reports."""
        match self.error:
            case "request":
                return RequestError(self.message, self.code, self.param)
            case "pass":
                return PassFailed(self.message, self.code or "weights_unreadable")
            case "queue":
                return QueueFull(self.message)
        return EngineDied(self.message, self.code or "engine_died")


Frame = Annotated[Progress | Emitted | Ended | Failure, Field(discriminator="kind")]


@dataclass(frozen=True)
class Ask:
    """A request of one server to another: what to generate, and with which model."""

    files: str  # `ModelInfo.files` of the model
    fingerprint: str  # the one that the stream must have
    message: Generate


@dataclass(frozen=True)
class Report:
    """What a peer says of itself."""

    version: Annotated[str, Field(max_length=100)]
    instance: Annotated[str, Field(max_length=100)]  # changes when its pages are void
    number: int  # of its latest change of pages, to be asked for the next time
    model: ServedModel | None
    load: Load | None
    added: Annotated[list[str], Field(max_length=500_000)]  # names of pages, in hex
    dropped: Annotated[list[str], Field(max_length=500_000)]
    is_whole: bool
    figures: Figures = field(default_factory=Figures)
    protocol: int = PROTOCOL

    @property
    def change(self) -> PageChange:
        """The change of its pages. Raise `ValueError` for names that are none."""
        added, dropped = map(bytes.fromhex, self.added), map(bytes.fromhex, self.dropped)
        return PageChange(list(added), list(dropped), self.is_whole)


_WITH_INFINITIES = ConfigDict(ser_json_inf_nan="constants")
frames: TypeAdapter[Progress | Emitted | Ended | Failure] = TypeAdapter(
    Frame, config=_WITH_INFINITIES
)
asks: TypeAdapter[Ask] = TypeAdapter(Ask)
reports: TypeAdapter[Report] = TypeAdapter(Report)

# (field of `SamplingParams`, least, most)
_RANGES = (
    ("temperature", 0.0, 100.0),
    ("top_p", 0.0, 1.0),
    ("top_k", 0, 1 << 31),
    ("min_p", 0.0, 1.0),
    ("repetition_penalty", 1e-6, 100.0),
    ("presence_penalty", -100.0, 100.0),
    ("frequency_penalty", -100.0, 100.0),
    ("seed", 0, (1 << 64) - 1),
    ("min_tokens", 0, 1 << 31),
)


def line_of(frame: Progress | Emitted | Ended | Failure) -> bytes:
    """Return a frame as a line."""
    return frames.dump_json(frame) + b"\n"


def read_ask(raw: bytes) -> Ask:
    """Return a request of another server. Raise `RequestError` for one that no server sends."""
    try:
        ask = asks.validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RequestError(f"{where}: {first['msg']}.", "invalid_value", where) from error
    _check_params(ask.message.params)
    message = ask.message
    choices = [tail.choice for tail in message.emitted]
    if message.n > MOST_CHOICES or any(not 0 <= own < message.n for own in choices):
        raise RequestError("The choices are wrong.", "invalid_value", "message.n")
    if len(set(choices)) < len(choices) or message.traced_nodes < 0:
        raise RequestError("A choice has two tails.", "invalid_value", "message.emitted")
    return ask


def _check_params(params: SamplingParams) -> None:
    """Raise `RequestError` for a parameter outside of its range."""
    for name, least, most in _RANGES:
        value = getattr(params, name)
        if not least <= value <= most:
            raise RequestError(f"{name} is {value}.", "invalid_value", f"params.{name}")
    if any(not math.isfinite(bias) for _, bias in params.logit_bias):
        raise RequestError("A bias is no number.", "invalid_value", "params.logit_bias")
    for name in ("logprobs", "prompt_logprobs"):
        if not 0 <= (getattr(params, name) or 0) <= MOST_LOGPROBS:
            raise RequestError(f"{name} is too high.", "invalid_value", f"params.{name}")
    if len(params.stop) > LONGEST_STOPS or "" in params.stop:
        raise RequestError("The stop strings are wrong.", "invalid_value", "params.stop")
