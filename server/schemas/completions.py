"""The body of POST /v1/completions."""

from typing import Annotated, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_validator,
)

from server.schemas.continuing import ContinuedBody
from server.schemas.fields import GenerationBody, Int, field_error, none_if_minus_one, refuse_if_set
from server.schemas.limits import MAX_IDS, MAX_PROMPTS
from server.schemas.structured import StructuredBody

DEFAULT_MAX_TOKENS = 16

TokenId = Annotated[Int, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_IDS, fail_fast=True)]


def _text_or_ids(value: object) -> str:
    return "ids" if isinstance(value, list) else "text"


def _text_ids_or_many(value: object) -> str:
    """Return the tag of a prompt: a text, an array of token ids, or an array of either."""
    match value:
        case [int() | float(), *_]:
            return "ids"
        case list():
            return "many"
        case _:
            return "text"


OnePrompt = Annotated[
    Annotated[str, Tag("text")] | Annotated[TokenIds, Tag("ids")], Discriminator(_text_or_ids)
]
Prompt = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[TokenIds, Tag("ids")]
    | Annotated[
        list[OnePrompt], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True), Tag("many")
    ],
    Discriminator(_text_ids_or_many),
]


class CompletionRequest(StructuredBody, ContinuedBody, GenerationBody):
    """The body of a request that continues texts or token ids."""

    prompt: Prompt | None = None  # null stands for an empty text
    max_tokens: Annotated[
        Annotated[Int, Field(ge=0)] | None,
        BeforeValidator(none_if_minus_one),
        WithJsonSchema({"anyOf": [{"type": "integer", "minimum": -1}, {"type": "null"}]}),
    ] = None
    best_of: Annotated[Int, Field(ge=1, le=128)] | None = None
    echo: bool | None = None
    logprobs: Annotated[Int, Field(ge=0, le=5)] | None = None
    suffix: str | None = None

    @model_validator(mode="after")
    def _check_completion(self) -> Self:
        refuse_if_set("suffix", self.suffix or None)
        choices = self.best_of or 1
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise field_error("best_of", "'best_of' must not be below 'n'")
        if self.stream and choices > (self.n or 1):
            raise field_error(
                "best_of", "'best_of' above 'n' cannot be streamed: the best is known last"
            )
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts of the request, each a text or token ids."""
        prompt = self.prompt or ""
        if isinstance(prompt, str):
            return [prompt]
        ids = [element for element in prompt if isinstance(element, int)]
        return [ids] if ids else [p for p in prompt if not isinstance(p, int)]

    @property
    def token_limit(self) -> int:
        """The largest number of tokens to emit for each choice."""
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
