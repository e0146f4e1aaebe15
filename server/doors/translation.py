"""The parts that all doors share: making a chat request, and renaming parameters in its errors."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from engine.errors import EngineError
from server.errors import ApiError, as_api_error
from server.schemas.answers import ChatChunk
from server.schemas.chat import ChatRequest, TranslatedChat
from server.schemas.checking import check_object, parse_body
from server.schemas.fields import GenerationBody

BodyT = TypeVar("BodyT", bound=GenerationBody)
Event = Mapping[str, Any]  # an event of a stream, with its `type`
Names = Sequence[tuple[str, str]]  # (pattern of a chat's parameter, its name in the door's API)


class Writer(Protocol):
    """A converter of the chunks of one chat to the events of another API."""

    def write(self, chunk: ChatChunk) -> Iterator[Event]:
        """Yield the events of one chunk."""

    def failure(self, error: ApiError) -> Event:
        """Return the event that ends a stream in which `error` occurred."""

    def whole(self) -> Mapping[str, Any]:
        """Return the whole answer, joined from the chunks that were written."""


def shared_fields(body: GenerationBody, names: Sequence[str]) -> dict[str, Any]:
    """Return the values of the fields `names` of `body`, which a chat has too.

    A value of None means that the field is absent. For a stream, `stream_options` asks for the
    usage in the last chunk, which `BlockReader` needs.
    """
    usage = {"include_usage": True} if body.stream else None
    return {name: getattr(body, name) for name in names} | {"stream_options": usage}


def chat_request(fields: Mapping[str, Any], names: Names) -> ChatRequest:
    """Return the chat request with these fields; a field that is None is left out.

    Raises `ApiError` 400 for an invalid field, which it calls by its name in the door's API.
    """
    present = {name: value for name, value in fields.items() if value is not None}
    with named(names):
        return check_object(TranslatedChat, present)


def read_as_chat(
    kind: type[BodyT], fields: Callable[[BodyT], Mapping[str, Any]], names: Names, raw: bytes
) -> ChatRequest:
    """Return the chat request that answers the JSON body `raw` of a door's request.

    Raises `ApiError` 400 for an invalid body.

    Args:
        kind: the type of the body.
        fields: returns the fields of the chat for a body.
        names: the names of a chat's parameters in the door's API.
    """
    return chat_request(fields(parse_body(kind, raw)), names)


@contextmanager
def named(names: Names) -> Iterator[None]:
    """Rename the parameters in errors that the block raises, to their names in the door's API."""
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
