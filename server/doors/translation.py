"""What all doors share: how a chat's request is made, and how its errors find their way back."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from engine.errors import EngineError
from server.errors import ApiError, as_api_error
from server.schemas.answers import ChatChunk
from server.schemas.chat import ChatRequest
from server.schemas.checking import check_object, parse_body
from server.schemas.fields import GenerationBody

BodyT = TypeVar("BodyT", bound=GenerationBody)
Event = Mapping[str, Any]  # one of a stream; `type` says which
Names = Sequence[tuple[str, str]]  # (pattern of a chat's parameter, what it is called at the door)


class Writer(Protocol):
    """Writes one answer of another API, from the chunks of a chat."""

    def write(self, chunk: ChatChunk) -> Iterator[Event]:
        """The events of one chunk."""

    def failure(self, error: ApiError) -> Event:
        """The event that ends a stream which has begun."""

    def whole(self) -> Mapping[str, Any]:
        """The fold of what was written."""


def shared_fields(body: GenerationBody, names: Sequence[str]) -> dict[str, Any]:
    """Return the fields that a chat has too, where they are set.

    Of a stream the last chunk has the usage: `Blocks` wants it.
    """
    usage = {"include_usage": True} if body.stream else None
    return {name: getattr(body, name) for name in names} | {"stream_options": usage}


def chat_request(fields: Mapping[str, Any], names: Names) -> ChatRequest:
    """The request of a chat. Raises `ApiError` 400 with the parameter as the door calls it."""
    present = {name: value for name, value in fields.items() if value is not None}
    with named(names):
        return check_object(ChatRequest, present)


def read_as_chat(
    kind: type[BodyT], fields: Callable[[BodyT], Mapping[str, Any]], names: Names, raw: bytes
) -> ChatRequest:
    """Return the chat that answers a body of `kind` in JSON. Raises `ApiError` 400."""
    return chat_request(fields(parse_body(kind, raw)), names)


@contextmanager
def named(names: Names) -> Iterator[None]:
    """Errors of the chat path that leave the block speak of the door's own parameters."""
    try:
        yield
    except (ApiError, EngineError) as error:
        raise _renamed(as_api_error(error), names) from error


def _renamed(error: ApiError, names: Names) -> ApiError:
    if error.param is None:
        return error
    for pattern, name in names:
        param, found = re.subn(rf"^{pattern}(?=\.|$)", name, error.param)
        if found:
            return ApiError(
                error.message.replace(f"'{error.param}'", f"'{param}'"),
                code=error.code,
                param=param,
                status=error.status,
                headers=error.headers,
            )
    return error
