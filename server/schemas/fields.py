"""Field types of requests: strict JSON types, ranges, and null for absent."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from server.schemas.limits import (
    MAX_BIASES,
    MAX_MESSAGES,
    MAX_STOP_IDS,
    MAX_STOP_LENGTH,
    MAX_STOPS,
    MAX_VALUES,
)


class Body(BaseModel):
    """Strict types; unknown fields are ignored, as clients of many servers expect."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


def fault(field: str, message: str, code: str = "invalid_value") -> PydanticCustomError:
    """A mistake at `field`, found by a check of several fields; to be raised."""
    return PydanticCustomError(code, "{message}", {"message": message, "field": field})


def type_of(value: object) -> str | None:
    """Return the `type` of an object of the body, or of what it was turned into."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return kind if isinstance(kind, str) else None


def only(what: str, *kinds: str) -> BeforeValidator:
    """Refuse objects of another `type` than `kinds` in words; what has none is left to others."""

    def known(value: object) -> object:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind not in kinds:
            names = ", ".join(f"'{kind}'" for kind in kinds)
            message = f"{what} of type '{kind}' are not supported by this server, only {names}"
            raise fault("type", message, "unsupported_content")
        return value

    return BeforeValidator(known)


def unsupported(field: str, value: object) -> None:
    """Refuse a known field that cannot be honoured, when it is set."""
    if value not in (None, [], {}):
        raise fault(field, f"'{field}' is not supported by this server", "unsupported_parameter")


LARGEST_INT = 2**64 - 1  # the largest seed: whatever is larger would only be long in messages


def _whole(value: object) -> object:
    """JSON has one kind of number: 1.0 is an integer, true is not."""
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(whole, int) and abs(whole) > LARGEST_INT:
        raise PydanticCustomError("invalid_value", "The number has more than 64 bits")
    return whole


Int = Annotated[int, BeforeValidator(_whole)]
Seed = Annotated[Int, Field(ge=-(2**63), lt=2**64)]


def none_if_minus_one(value: object) -> object:
    """Return None for -1, which other local servers take for "no limit"."""
    is_minus_one = not isinstance(value, bool) and isinstance(value, int | float) and value == -1
    return None if is_minus_one else value


_LIMIT: list[dict[str, Any]] = [{"type": "integer", "minimum": 1}, {"const": -1}]
TokenLimit = Annotated[
    Annotated[Int, Field(ge=1)] | None,
    BeforeValidator(none_if_minus_one),
    WithJsonSchema({"anyOf": [*_LIMIT, {"type": "null"}]}),
]


def _given(value: object) -> object:
    if value is None:
        raise PydanticCustomError("int_type", "Input should be a valid integer")
    return none_if_minus_one(value)


StopsT = TypeVar("StopsT", str, list[str])
GivenTokenLimit = Annotated[
    Annotated[Int, Field(ge=1)] | None, BeforeValidator(_given), WithJsonSchema({"anyOf": _LIMIT})
]


def _not_too_long(stops: StopsT) -> StopsT:
    length = len(stops) if isinstance(stops, str) else sum(map(len, stops))
    if length > MAX_STOP_LENGTH:
        message = f"All stop strings together should have at most {MAX_STOP_LENGTH} characters"
        raise PydanticCustomError("invalid_value", "{message}", {"message": message})
    return stops


StopString = Annotated[str, AfterValidator(_not_too_long)]  # "" is none
StopStrings = Annotated[
    list[StopString], Field(max_length=MAX_STOPS, fail_fast=True), AfterValidator(_not_too_long)
]


def _shape(value: object) -> str:
    return "list" if isinstance(value, list) else "str"


Stop = Annotated[
    Annotated[StopString, Tag("str")] | Annotated[StopStrings, Tag("list")],
    Discriminator(_shape),
]


class StreamOptions(Body):
    include_usage: bool | None = None


class SpeculationOptions(Body):
    """How to draft: it changes an answer's speed, never its text."""

    method: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    max_rows: Annotated[Int, Field(ge=1)] | None = None


LogitBias = Annotated[
    dict[str, Annotated[float, Field(ge=-100, le=100)]],
    Field(
        max_length=MAX_BIASES,
        json_schema_extra={"propertyNames": {"pattern": "^[0-9]{1,9}$"}},  # checked below
    ),
]


class GenerationBody(Body):
    """What chat and text completions have in common."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[Int, Field(ge=1, le=128)] | None = None
    stop: Stop | None = None
    seed: Seed | None = None
    max_tokens: Int | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: LogitBias | None = None
    # extensions of this server's
    speculation: SpeculationOptions | None = None
    provenance: bool | None = None  # whether each token tells where it came from
    # extensions that local clients send
    top_k: Annotated[Int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[Int, Field(ge=0)] | None = None
    stop_token_ids: (
        Annotated[list[Annotated[Int, Field(ge=0)]], Field(max_length=MAX_STOP_IDS, fail_fast=True)]
        | None
    ) = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        for token in self.logit_bias or {}:
            if not (token.isascii() and token.isdigit() and len(token) < 10):
                raise fault(f"logit_bias.{token}", "keys of 'logit_bias' are token ids")
        return self

    @property
    def include_usage(self) -> bool:
        return bool(self.stream and self.stream_options and self.stream_options.include_usage)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or ()
        return tuple(filter(None, stops))


class TextPart(Body):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class HasText(Protocol):
    """A part of a content, of any API."""

    @property
    def text(self) -> str: ...


def joined_text(content: str | Sequence[HasText] | None) -> str:
    """Return the whole text of a content; of null it is empty."""
    return content if isinstance(content, str) else "".join(part.text for part in content or ())


def _text_only(value: object) -> object:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind != "text":
        message = f"Content parts of type '{kind}' are not supported; this model takes text"
        raise PydanticCustomError("unsupported_content", "{message}", {"message": message})
    return value


Part = Annotated[TextPart, BeforeValidator(_text_only)]
PartT = TypeVar("PartT")
ContentOf = Annotated[
    Annotated[str, Tag("str")]
    | Annotated[list[PartT], Field(max_length=MAX_MESSAGES, fail_fast=True), Tag("list")],
    Discriminator(_shape),
]
Content = ContentOf[Part] | None
JsonObject = Annotated[dict[str, Any], Field(max_length=MAX_VALUES)]  # `scan` bounds its depth


def _arguments_text(value: object) -> object:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


_ARGUMENTS = {"anyOf": [{"type": "string"}, {"type": "object", "maxProperties": MAX_VALUES}]}
# Of a call in the conversation: JSON, which some clients send as the object itself.
Arguments = Annotated[str, BeforeValidator(_arguments_text), WithJsonSchema(_ARGUMENTS)]
