"""Field types that several bodies share: strict JSON types with ranges, and null for absent."""

import json
from collections.abc import Callable, Sequence
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
    """The base of all bodies. Types are strict; unknown fields are ignored, as clients expect."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


class OwnBody(Body):
    """The base of bodies that only this API has: no field is ignored."""

    model_config = ConfigDict(extra="forbid")


def field_error(field: str, message: str, code: str = "invalid_value") -> PydanticCustomError:
    """Return an error to be raised by a check of several fields, which names `field`.

    Args:
        field: the path of the field below the checked body, with dots.
        message: a sentence for the client, without its full stop.
        code: the `code` of the API's error object.
    """
    return PydanticCustomError(code, "{message}", {"message": message, "field": field})


def type_of(value: object) -> str | None:
    """Return the `type` of an object of the body, or of what it was turned into."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return kind if isinstance(kind, str) else None


def only_types(what: str, *kinds: str) -> BeforeValidator:
    """Return a validator that refuses objects whose `type` is none of `kinds`.

    Its error names the supported types. Objects without a `type` pass: the schema refuses them.
    """

    def check(value: object) -> object:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind not in kinds:
            names = ", ".join(f"'{kind}'" for kind in kinds)
            message = f"{what} of type '{kind}' are not supported by this server, only {names}"
            raise field_error("type", message, "unsupported_content")
        return value

    return BeforeValidator(check)


def refuse_if_set(field: str, value: object) -> None:
    """Raise an error where a field that this server does not support is set."""
    if value not in (None, [], {}):
        raise field_error(
            field, f"'{field}' is not supported by this server", "unsupported_parameter"
        )


LARGEST_INT = 2**64 - 1  # the largest seed; longer numbers would fill error messages


def _to_integer(value: object) -> object:
    """Return a float without a fraction as an int: JSON has one kind of number.

    Other values are returned as they are, for the schema to refuse. Raise an error for integers of
    more than 64 bits.
    """
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(whole, int) and abs(whole) > LARGEST_INT:
        raise PydanticCustomError("invalid_value", "The number has more than 64 bits")
    return whole


Int = Annotated[int, BeforeValidator(_to_integer)]
Seed = Annotated[Int, Field(ge=-(2**63), lt=2**64)]


def none_if_minus_one(value: object) -> object:
    """Return None for -1, which other local servers take for "no limit"."""
    is_minus_one = not isinstance(value, bool) and isinstance(value, int | float) and value == -1
    return None if is_minus_one else value


def with_minus_one(least: int) -> Callable[[int], int]:
    """Return a validator of numbers from `least`, whose error also names -1, which is no limit."""

    def check(value: int) -> int:
        if value < least:
            text = "Input should be {least} or more, or -1 for no limit"
            raise PydanticCustomError("invalid_value", text, {"least": least})
        return value

    return check


_LIMIT: list[dict[str, Any]] = [{"type": "integer", "minimum": 1}, {"const": -1}]
TokenLimit = Annotated[
    Annotated[Int, AfterValidator(with_minus_one(1))] | None,
    BeforeValidator(none_if_minus_one),
    WithJsonSchema({"anyOf": [*_LIMIT, {"type": "null"}]}),
]


def _given(value: object) -> object:
    if value is None:
        raise PydanticCustomError("int_type", "Input should be a valid integer")
    return none_if_minus_one(value)


StopsT = TypeVar("StopsT", str, list[str])
GivenTokenLimit = Annotated[
    Annotated[Int, AfterValidator(with_minus_one(1))] | None,
    BeforeValidator(_given),
    WithJsonSchema({"anyOf": _LIMIT}),
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


def _str_or_list(value: object) -> str:
    return "list" if isinstance(value, list) else "str"


Stop = Annotated[
    Annotated[StopString, Tag("str")] | Annotated[StopStrings, Tag("list")],
    Discriminator(_str_or_list),
]


class StreamOptions(Body):
    """Options of a streamed answer."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # an extension: the usage so far on every chunk


class SpeculationOptions(Body):
    """How tokens are drafted, which changes the speed of an answer and never its text."""

    method: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    max_rows: Annotated[Int, Field(ge=1)] | None = None


def _check_provenance(value: object) -> object:
    if isinstance(value, bool) or value in (None, "tree"):
        return value
    raise PydanticCustomError("provenance_type", "Input should be true, false or 'tree'")


Provenance = Annotated[bool | Literal["tree"], BeforeValidator(_check_provenance)]
LogitBias = Annotated[
    dict[str, Annotated[float, Field(ge=-100, le=100)]],
    Field(
        max_length=MAX_BIASES,
        json_schema_extra={"propertyNames": {"pattern": "^[0-9]{1,9}$"}},  # checked below
    ),
]


class GenerationBody(Body):
    """The fields that all requests for text have in common."""

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
    # extensions of this server
    speculation: SpeculationOptions | None = None
    # Whether the answer says for each token what proposed it; "tree": it also has the passes.
    provenance: Provenance | None = None
    return_token_ids: bool | None = None  # whether it has the ids of the prompt and of its tokens
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
    def _check_shared_fields(self) -> Self:
        for token in self.logit_bias or {}:
            if not (token.isascii() and token.isdigit() and len(token) < 10):
                raise field_error(f"logit_bias.{token}", "keys of 'logit_bias' are token ids")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a streamed answer ends with a chunk that has its usage."""
        return bool(self.stream and self.stream_options and self.stream_options.include_usage)

    @property
    def has_running_usage(self) -> bool:
        """Whether every chunk of a streamed answer has the usage so far."""
        options = self.stream_options
        return bool(self.stream and options and options.continuous_usage_stats)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The strings that end an answer; empty when the request has none."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or ()
        return tuple(filter(None, stops))


class TextPart(Body):
    """A piece of text in a message's content."""

    type: Literal["text"]
    text: str


class HasText(Protocol):
    """A part of a message's content, in the form of any API."""

    @property
    def text(self) -> str: ...


def joined_text(content: str | Sequence[HasText] | None) -> str:
    """Return the text of a content, its parts joined without separators; "" for null."""
    return content if isinstance(content, str) else "".join(part.text for part in content or ())


def _refuse_other_parts(value: object) -> object:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind != "text":
        message = (
            f"Content parts of type '{kind[:64]}' are not supported: this server takes text, also "
            "where the model takes images"
        )
        raise PydanticCustomError("unsupported_content", "{message}", {"message": message})
    return value


Part = Annotated[TextPart, BeforeValidator(_refuse_other_parts)]
PartT = TypeVar("PartT")
ContentOf = Annotated[
    Annotated[str, Tag("str")]
    | Annotated[list[PartT], Field(max_length=MAX_MESSAGES, fail_fast=True), Tag("list")],
    Discriminator(_str_or_list),
]
Content = ContentOf[Part] | None
JsonObject = Annotated[dict[str, Any], Field(max_length=MAX_VALUES)]  # `scan` bounds its depth


def _arguments_text(value: object) -> object:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


_ARGUMENTS = {"anyOf": [{"type": "string"}, {"type": "object", "maxProperties": MAX_VALUES}]}
# Of a call in the conversation: JSON, which some clients send as the object itself.
Arguments = Annotated[str, BeforeValidator(_arguments_text), WithJsonSchema(_ARGUMENTS)]
