"""The bodies and answers of the routes that turn texts into tokens and back.

The words of llama.cpp (`content`, `add_special`, `with_pieces`) and of vLLM (`prompt`,
`add_special_tokens`, `return_token_strs`) are understood side by side.
"""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from server.schemas.fields import Body, Int, JsonObject, fault
from server.schemas.limits import MAX_IDS, MAX_MESSAGES

TokenId = Annotated[Int, Field(ge=0)]


class TokenizeRequest(Body):
    """A text, or the messages of a chat with the other fields of a chat's body beside them."""

    model_config = ConfigDict(extra="allow")  # a chat's fields, checked as a chat's

    model: str | None = None
    content: str | None = None
    prompt: str | None = None
    messages: Annotated[list[JsonObject], Field(max_length=MAX_MESSAGES)] | None = None
    add_special: bool | None = None  # of `content`: false unless set
    add_special_tokens: bool | None = None  # of `prompt`: true unless set
    with_pieces: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one_text(self) -> Self:
        given = [f for f in ("content", "prompt", "messages") if getattr(self, f) is not None]
        if not given:
            raise fault(
                "content", "Give 'content', 'prompt' or 'messages'", "missing_required_parameter"
            )
        if len(given) > 1:
            raise fault(given[1], f"Give '{given[0]}' or '{given[1]}', not both")
        return self

    @property
    def text(self) -> str:
        """What is tokenized when it is not a chat."""
        return self.content or self.prompt or ""

    @property
    def special(self) -> bool:
        """Whether the tokenizer's own special tokens are added."""
        if self.content is None:
            return self.add_special_tokens is not False
        return bool(self.add_special)


class DetokenizeRequest(Body):
    model: str | None = None
    tokens: Annotated[list[TokenId], Field(max_length=MAX_IDS, fail_fast=True)]


class Piece(TypedDict):
    """A token and its text; bytes where these alone are not UTF-8."""

    id: int
    piece: str | list[int]


class Tokenized(TypedDict):
    tokens: list[int] | list[Piece]  # pieces, if asked for
    count: int
    max_model_len: int
    token_strs: list[str] | None


class Detokenized(TypedDict):
    content: str
    prompt: str


class Rendered(TypedDict):
    """A chat as the model reads it."""

    prompt: str


class InputTokens(TypedDict):
    object: Literal["response.input_tokens"]
    input_tokens: int
