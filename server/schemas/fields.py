"""Field types that several bodies share: strict JSON types with ranges, and null for absent."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
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


def field_error(field: str, message: str, code: str = "invalid_value") -> PydanticCustomError:
    """Return an error to be raised by a check of several fields, which names `field`.

    Args:
        field: the path of the field below the checked body, with dots.
        message: a sentence for the client, without its full stop.
        code: the `code` of the API's error object.
    """
    return PydanticCustomError(code, "{message}", {"message": message, "field": field})


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
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
StopStrings = Annotated[list[StopString], Field(max_length=MAX_STOPS, fail_fast=True)]


def _str_or_list(value: object) -> str:
    return "list" if isinstance(value, list) else "str"


Stop = Annotated[
    Annotated[StopString, Tag("str")]
    | Annotated[list[StopString], Field(min_length=1, max_length=4), Tag("list")],
    Discriminator(_str_or_list),
]


class StreamOptions(Body):
    """Options of a streamed answer."""

    include_usage: bool | None = None


class SpeculationOptions(Body):
    """How tokens are drafted, which changes the speed of an answer and never its text."""

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
    provenance: bool | None = None  # whether the answer says for each token what proposed it
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
        if self.stream_options is not None and not self.stream:
            raise field_error("stream_options", "'stream_options' needs 'stream': true")
        for token in self.logit_bias or {}:
            if not (token.isascii() and token.isdigit() and len(token) < 10):
                raise field_error(f"logit_bias.{token}", "keys of 'logit_bias' are token ids")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a streamed answer ends with a chunk that has its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The strings that end an answer; empty when the request has none."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class TextPart(Body):
    """A piece of text in a message's content."""

    type: Literal["text"]
    text: str


class HasText(Protocol):
    """A part of a message's content, in the form of any API."""

    @property
    def text(self) -> str: ...


def joined_text(content: str | Sequence[HasText]) -> str:
    """Return the text of a content, its parts joined without separators."""
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _refuse_other_parts(value: object) -> object:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind != "text":
        message = f"Content parts of type '{kind}' are not supported; this model takes text"
        raise PydanticCustomError("unsupported_content", "{message}", {"message": message})
    return value


Part = Annotated[TextPart, BeforeValidator(_refuse_other_parts)]
PartT = TypeVar("PartT")
ContentOf = Annotated[
    Annotated[str, Tag("str")]
    | Annotated[
        list[PartT], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True), Tag("list")
    ],
    Discriminator(_str_or_list),
]
Content = ContentOf[Part]
JsonObject = Annotated[dict[str, Any], Field(max_length=MAX_VALUES)]  # `scan` limits its depth
