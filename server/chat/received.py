"""A body as it was received: what the front end reads of it, and the bytes for the text process.

The front end never holds the objects of a large body. They would take it hundreds of megabytes and
hold the interpreter for seconds; so a worker of the text process reads the bytes, each time that
they are needed, and of its objects only the light ones travel.
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
from server.text.client import TextWork
from server.text.limits import LARGE_BODY

BodyT = TypeVar("BodyT", bound=Body)

# The fields that only a text process reads, and what stands in their place in the front end.
_CHAT: dict[str, Any] = {
    "messages": [],
    "tools": None,
    "functions": None,
    "prediction": None,
    "chat_template_kwargs": None,
}
_HEAVY: Mapping[type[Body], Mapping[str, Any]] = {
    ChatRequest: _CHAT,
    TranslatedChat: _CHAT,
    CompletionRequest: {"prompt": None},
    TokenizeRequest: {"content": None, "prompt": None, "messages": None},
    DetokenizeRequest: {"tokens": []},
    CountTokensRequest: {"messages": [], "system": None, "tools": None},
    MessagesRequest: {"messages": [], "system": None, "tools": None},
    ResponseRequest: {"input": ""},  # its tools and instructions are repeated in the answer
}


@dataclass(frozen=True)
class Received(Generic[BodyT]):
    """A checked body.

    Args:
        body: of a large one, without the fields that only a text process reads.
        raw: its bytes.
    """

    body: BodyT
    raw: bytes


@dataclass(frozen=True)
class ChatSource:
    """A chat, as `Received` has it, and how it is read from the bytes of its request.

    Args:
        chat: without the heavy fields where the request is large.
        read: is importable, for the text process.
    """

    chat: ChatRequest
    raw: bytes
    read: Callable[[bytes], ChatRequest]


async def received(text: TextWork, kind: type[BodyT], raw: bytes) -> Received[BodyT]:
    """Check a body. Raises `ApiError` 400 for the first mistake."""
    if len(raw) < LARGE_BODY:
        return Received(parse_body(kind, raw), raw)
    return Received(await text.call(light_body, raw, kind), raw)


def light_body(raw: bytes, kind: type[BodyT]) -> BodyT:
    """Return a checked body without its heavy fields. Raises `ApiError` 400."""
    return lightened(parse_body(kind, raw))


def light_chat(raw: bytes, read: Callable[[bytes], ChatRequest]) -> ChatRequest:
    """Return the chat that `read` makes of a body, without its heavy fields."""
    return lightened(read(raw))


def lightened(body: BodyT) -> BodyT:
    """Return a copy without the fields that only a text process reads."""
    return body.model_copy(update=_HEAVY.get(type(body), {}))


def read_chat(raw: bytes) -> ChatRequest:
    """Return the chat of a body that is one. Raises `ApiError` 400."""
    return parse_body(ChatRequest, raw)
