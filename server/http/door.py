"""What the doors of other APIs share: a chat behind their words."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response

from server.chat.answer import Caller
from server.chat.chat_completion import chat_chunks
from server.chat.prompt import chat_text
from server.doors.translation import Event, Names, Writer, chat_request, named
from server.http.respond import pace_of, respond
from server.http.state import state_of
from server.http.stream import Dialect, whole_answer
from server.models.lending import LoadedModel
from server.schemas.answers import ChatChunk
from server.schemas.chat import ChatRequest
from server.schemas.fields import GenerationBody
from server.schemas.tokens import InputTokens

BodyT = TypeVar("BodyT", bound=GenerationBody)


async def chat_of(
    body: BodyT, fields: Callable[[BodyT], Mapping[str, Any]], names: Names
) -> ChatRequest:
    """The chat that answers `body`, made in a thread: a long conversation takes a while."""
    return await asyncio.to_thread(lambda: chat_request(fields(body), names))


async def respond_in(request: Request, chat: ChatRequest, writer: Writer, names: Names) -> Response:
    """Answer a chat in the words of `writer`."""

    async def events(
        model: LoadedModel, body: ChatRequest, caller: Caller
    ) -> AsyncGenerator[Event, None]:
        with named(names):
            return _translated(await chat_chunks(model, body, caller), writer, names)

    dialect = Dialect(writer.failure, named=True, done=None)
    return await respond(request, chat, events, lambda _: writer.whole(), dialect)


async def _translated(
    chunks: AsyncGenerator[ChatChunk, None], writer: Writer, names: Names
) -> AsyncGenerator[Event, None]:
    """Yield the events of a chat's chunks; closing the generator closes these too."""
    with named(names):
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                for event in writer.write(chunk):
                    yield event


async def respond_with_tokenizer(
    request: Request,
    model_name: str | None,
    work: Callable[[LoadedModel], Mapping[str, Any]],
    names: Names = (),
) -> Response:
    """Answer with what `work`, in a thread, makes with a model's tokenizer."""
    state = state_of(request)
    entry = state.registry.find(model_name)
    pace = pace_of(request)

    async def results() -> AsyncGenerator[Mapping[str, Any], None]:
        async with state.models.borrow(entry, pace.wait) as model:
            with named(names):
                made = await asyncio.to_thread(work, model)
            yield made

    return await whole_answer(request, results(), lambda made: made[0], pace)


def input_tokens(chat: ChatRequest, model: LoadedModel) -> InputTokens:
    """The count of a chat's prompt, as OpenAI and llama.cpp give it."""
    return {"object": "response.input_tokens", "input_tokens": num_tokens(chat, model)}


def num_tokens(chat: ChatRequest, model: LoadedModel) -> int:
    """How many tokens a chat's prompt has, also where they are too many for the model."""
    return len(model.tokenizer.encode(chat_text(model.tokenizer, chat), special=False))
