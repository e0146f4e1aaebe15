"""The bodies and answers of the routes that turn texts into tokens and back.

They understand the fields of llama.cpp (`content`, `add_special`, `with_pieces`) and those of vLLM
(`prompt`, `add_special_tokens`, `return_token_strs`).
"""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from server.schemas.fields import Body, Int, JsonObject, field_error
from server.schemas.limits import MAX_IDS, MAX_MESSAGES

TokenId = Annotated[Int, Field(ge=0)]


class TokenizeRequest(Body):
    """A text to tokenize, or the messages of a chat together with the other fields of its body."""

    model_config = ConfigDict(extra="allow")  # the other fields of a chat, checked by `ChatRequest`

    model: str | None = None
    content: str | None = None
    prompt: str | None = None
    messages: Annotated[list[JsonObject], Field(max_length=MAX_MESSAGES)] | None = None
    add_special: bool | None = None  # of `content`: false unless set
    add_special_tokens: bool | None = None  # of `prompt`: true unless set
    with_pieces: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _check_one_text(self) -> Self:
        given = [f for f in ("content", "prompt", "messages") if getattr(self, f) is not None]
        if not given:
            raise field_error(
                "content", "Give 'content', 'prompt' or 'messages'", "missing_required_parameter"
            )
        if len(given) > 1:
            raise field_error(given[1], f"Give '{given[0]}' or '{given[1]}', not both")
        return self

    @property
    def text(self) -> str:
        """The text to tokenize, where the request has no messages."""
        return self.content or self.prompt or ""

    @property
    def special(self) -> bool:
        """Whether the tokenizer adds its special tokens to the text."""
        if self.content is None:
            return self.add_special_tokens is not False
        return bool(self.add_special)


class DetokenizeRequest(Body):
    """Token ids to turn into text."""

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(max_length=MAX_IDS, fail_fast=True)]


class Piece(TypedDict):
    """A token and its text, or its bytes where they alone are not valid UTF-8."""

    id: int
    piece: str | list[int]


class Tokenized(TypedDict):
    """The tokens of a text, with their number and the model's context length."""

    tokens: list[int] | list[Piece]  # pieces where the request asks for them
    count: int
    max_model_len: int
    token_strs: list[str] | None


class Detokenized(TypedDict):
    """The text of tokens, under the names of both APIs."""

    content: str
    prompt: str


class Rendered(TypedDict):
    """The prompt that the template makes of a chat."""

    prompt: str


class InputTokens(TypedDict):
    """The number of tokens of a request's prompt."""

    object: Literal["response.input_tokens"]
    input_tokens: int
