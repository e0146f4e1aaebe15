"""The fields of a request that goes on with an answer which another request has begun."""

from typing import Annotated, Any, Self

from pydantic import Discriminator, Field, Tag, model_validator

from server.schemas.fields import Body, Int, field_error
from server.schemas.limits import MAX_CONTINUED, MAX_IDS

EmittedIds = Annotated[list[Annotated[Int, Field(ge=0)]], Field(max_length=MAX_IDS, fail_fast=True)]


def _ids_or_choices(value: object) -> str:
    return "ids" if isinstance(value, list) else "choices"


ContinueTokens = Annotated[
    Annotated[EmittedIds, Tag("ids")]
    | Annotated[
        dict[str, EmittedIds],
        Field(
            max_length=MAX_CONTINUED,
            json_schema_extra={"propertyNames": {"pattern": "^[0-9]{1,6}$"}},  # checked below
        ),
        Tag("choices"),
    ],
    Discriminator(_ids_or_choices),
]


class ContinuedBody(Body):
    """The extensions by which an answer goes on after the tokens that the client has."""

    # By index of the choice, all ids that the client has received of it; an array means choice 0.
    continue_tokens: ContinueTokens | None = Field(
        default=None, examples=[{"0": [2061, 318]}, [2061, 318]]
    )
    # The `system_fingerprint` that the answer must have; another engine refuses the request.
    fingerprint: Annotated[str, Field(min_length=1, max_length=64)] | None = None

    @model_validator(mode="after")
    def _check_choices(self) -> Self:
        given = self.continue_tokens
        for index in given if isinstance(given, dict) else ():
            if not (index.isascii() and index.isdigit() and len(index) <= 6):
                name = f"continue_tokens.{index}"
                raise field_error(name, "keys of 'continue_tokens' are indices of choices")
        return self

    @property
    def continued(self) -> dict[int, list[int]]:
        """The ids to go on after, by index of the choice; choices without ids are left out."""
        given = self.continue_tokens or {}
        by_index = {"0": given} if isinstance(given, list) else given
        return {int(index): ids for index, ids in by_index.items() if ids}


class UncontinuedBody(Body):
    """A body whose answer has blocks or items with ids and numbers, and cannot be continued."""

    continue_tokens: Any = None
    fingerprint: Any = None

    @model_validator(mode="after")
    def _refuse_continuing(self) -> Self:
        for field in ("continue_tokens", "fingerprint"):
            if getattr(self, field) is not None:
                where = "/v1/chat/completions and /v1/completions"
                message = f"'{field}' is supported on {where} only"
                raise field_error(field, message, "unsupported_parameter")
        return self
