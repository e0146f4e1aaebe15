"""The common part of the routes of other APIs, whose requests are answered as chats."""

import contextlib
import functools
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response

from server.chat.answer import Caller, note_left_out
from server.chat.chat_completion import chat_chunks
from server.chat.received import ChatSource, Received, light_chat
from server.chat.token_calls import num_tokens
from server.doors.translation import Event, Names, Writer, chat_request, named, read_as_chat
from server.http.measure import measurement_of
from server.http.respond import pace_of, respond
from server.http.state import state_of
from server.http.stream import Dialect, whole_answer
from server.models.loaded_model import LoadedModel
from server.schemas.answers import ChatChunk
from server.schemas.chat import ChatRequest
from server.schemas.fields import GenerationBody
from server.schemas.tokens import InputTokens
from server.text.limits import LARGE_BODY

BodyT = TypeVar("BodyT", bound=GenerationBody)


async def chat_of(
    request: Request,
    received: Received[BodyT],
    fields: Callable[[BodyT], Mapping[str, Any]],
    names: Names,
) -> ChatSource:
    """Return the chat into which a body of another API is translated.

    Args:
        fields: returns the fields of the chat's body.
        names: the other API's names of these fields, for errors.
    """
    raw, read = received.raw, functools.partial(read_as_chat, type(received.body), fields, names)
    if len(raw) < LARGE_BODY:
        return ChatSource(chat_request(fields(received.body), names), raw, read)
    return ChatSource(await state_of(request).models.text.call(light_chat, raw, read), raw, read)


async def respond_in(
    request: Request,
    source: ChatSource,
    writer: Writer,
    names: Names,
    keepalive: Callable[[str], Event] | None = None,
) -> Response:
    """Return the answer to a chat in another API's format, which `writer` produces.

    `keepalive` returns the event that says what a stream waits for; None: a comment says it.
    """

    async def events(
        model: LoadedModel, body: ChatRequest, caller: Caller
    ) -> AsyncGenerator[Event, None]:
        with named(names):
            return _translated(await chat_chunks(source, model, body, caller), writer, names)

    def whole(written: Sequence[Event]) -> Event:
        return {**writer.whole(), **_token_ids(written)}

    dialect = Dialect(writer.failure, named=True, done=None, keepalive=keepalive)
    return await respond(request, source.chat, events, whole, dialect)


async def _translated(
    chunks: AsyncGenerator[ChatChunk, None], writer: Writer, names: Names
) -> AsyncGenerator[Event, None]:
    """Yield the events for a chat's chunks. Closing the generator also closes the chunks.

    The token ids of a chunk, if the request asks for them, are in the first event after it.
    """
    unsent: dict[str, list[int]] = {}
    with named(names):
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                unsent = _token_ids([unsent, chunk, *chunk["choices"]])
                for event in writer.write(chunk):
                    yield {**event, **unsent}
                    unsent = {}


def _token_ids(parts: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Return the joined ids in the parts of an answer; {} if the request does not ask for them."""
    joined: dict[str, list[int]] = {}
    for field in ("prompt_token_ids", "token_ids"):
        if found := [part[field] for part in parts if field in part]:
            joined[field] = [token for ids in found for token in ids]
    return joined


async def answer_of_model(
    request: Request,
    model_name: str | None,
    work: Callable[[LoadedModel], Awaitable[bytes]],
    names: Names = (),
) -> Response:
    """Return an answer with the JSON that `work` returns, given the loaded model."""
    state = state_of(request)
    entry = state.registry.find(model_name)
    pace = pace_of(request)

    async def results() -> AsyncGenerator[bytes, None]:
        async with state.models.borrow(entry, pace.wait) as model:
            with named(names):
                made = await work(model)
            yield made

    return await whole_answer(request, results(), _json_response, pace)


def _json_response(made: list[bytes]) -> Response:
    return Response(made[0], media_type="application/json")


async def count_of(request: Request, source: ChatSource, model: LoadedModel) -> int:
    """Return the number of tokens of a chat's prompt."""
    parsers = model.entry.parsers
    counted = await model.text.call_on_model(
        num_tokens, source.raw, model.info, source.read, parsers.tools, parsers.reasoning
    )
    note_left_out(measurement_of(request), counted.left_out)
    return counted.result


async def count_input_tokens(request: Request, source: ChatSource, names: Names = ()) -> Response:
    """Return an answer with the number of a prompt's tokens, in the format of OpenAI."""

    async def work(model: LoadedModel) -> bytes:
        counted = await count_of(request, source, model)
        answer: InputTokens = {"object": "response.input_tokens", "input_tokens": counted}
        return json.dumps(answer, separators=(",", ":")).encode()

    return await answer_of_model(request, source.chat.model, work, names)
