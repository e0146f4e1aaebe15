"""A request body as received: its small fields for the front end, its bytes for the text process.

The front end never parses a large body. Its objects would take hundreds of megabytes and block the
interpreter for seconds. So a worker of the text process parses the bytes each time that they are
needed, and sends back only the fields that the front end uses. The other fields are called heavy.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from server.schemas.chat import ChatRequest, TranslatedChat
from server.schemas.checking import parse_body
from server.schemas.completions import CompletionRequest
from server.schemas.fields import Body
from server.schemas.message_bodies import CountTokensRequest, MessagesRequest
from server.schemas.response_bodies import ResponseRequest
from server.schemas.tokens import DetokenizeRequest, TokenizeRequest
from server.text.limits import LARGE_BODY
from server.text.work import TextWork

BodyT = TypeVar("BodyT", bound=Body)

# The heavy fields, which only the text process reads, with the values that replace them.
_CHAT: dict[str, Any] = {
    "messages": [],
    "tools": None,
    "functions": None,
    "prediction": None,
    "chat_template_kwargs": None,
    "continue_tokens": None,
}
_HEAVY: Mapping[type[Body], Mapping[str, Any]] = {
    ChatRequest: _CHAT,
    TranslatedChat: _CHAT,
    CompletionRequest: {"prompt": None, "continue_tokens": None},
    TokenizeRequest: {"content": None, "prompt": None, "messages": None},
    DetokenizeRequest: {"tokens": []},
    CountTokensRequest: {"messages": [], "system": None, "tools": None},
    MessagesRequest: {"messages": [], "system": None, "tools": None},
    ResponseRequest: {"input": ""},  # its tools and instructions are repeated in the answer
}


@dataclass(frozen=True)
class Received(Generic[BodyT]):
    """A checked request body.

    Args:
        body: the body; if it is large, without its heavy fields.
        raw: the bytes of the whole body.
    """

    body: BodyT
    raw: bytes


@dataclass(frozen=True)
class ChatSource:
    """A chat, with the bytes of its request and the function that makes the one of the other.

    Args:
        chat: the chat; if the request is large, without its heavy fields.
        raw: the bytes of the request body, which may be of another API than chats.
        read: returns the chat of `raw`; it must be importable, for the text process.
    """

    chat: ChatRequest
    raw: bytes
    read: Callable[[bytes], ChatRequest]


async def received(text: TextWork, kind: type[BodyT], raw: bytes) -> Received[BodyT]:
    """Check a request body, in the text process if it is large, and return it.

    Raises `ApiError` 400 for the first mistake.
    """
    if len(raw) < LARGE_BODY:
        return Received(parse_body(kind, raw), raw)
    return Received(await text.call(light_body, raw, kind), raw)


def light_body(raw: bytes, kind: type[BodyT]) -> BodyT:
    """Return a checked body without its heavy fields. Raises `ApiError` 400 if it is invalid."""
    return lightened(parse_body(kind, raw))


def light_chat(raw: bytes, read: Callable[[bytes], ChatRequest]) -> ChatRequest:
    """Return the chat that `read` makes of a body, without its heavy fields."""
    return lightened(read(raw))


def lightened(body: BodyT) -> BodyT:
    """Return a copy of `body` without the heavy fields, which only the text process reads."""
    return body.model_copy(update=_HEAVY.get(type(body), {}))


def read_chat(raw: bytes) -> ChatRequest:
    """Return the chat in a chat request's body. Raises `ApiError` 400 if it is invalid."""
    return parse_body(ChatRequest, raw)
