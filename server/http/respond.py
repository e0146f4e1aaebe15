"""The work of all routes that generate text: find the model, borrow it, and answer."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import JSONResponse, Response

from engine.errors import EngineError
from server.chat.answer import Caller
from server.errors import ApiError, as_api_error
from server.http.measure import measurement_of
from server.http.state import state_of
from server.http.stream import OPENAI, Dialect, Pace, streamed_answer, whole_answer
from server.models.loaded_model import LoadedModel
from server.schemas.fields import GenerationBody

log = logging.getLogger("understudy")

BodyT = TypeVar("BodyT", bound=GenerationBody)
Chunk = TypeVar("Chunk", bound=Mapping[str, Any])


async def respond(
    request: Request,
    body: BodyT,
    write: Callable[[LoadedModel, BodyT, Caller], Awaitable[AsyncGenerator[Chunk, None]]],
    fold: Callable[[Sequence[Chunk]], Mapping[str, Any]],
    dialect: Dialect = OPENAI,
) -> Response:
    """Return the answer to a request, streamed or whole, made by the model that it names.

    Args:
        write: starts generating on the loaded model and returns the chunks of the answer.
        fold: returns a whole answer, given all its chunks.
        dialect: how the API writes the events of a stream.
    """
    state = state_of(request)
    entry = state.registry.find(body.model)
    measurement = measurement_of(request)
    measurement.set_model(entry.id)
    caller = Caller(request.state.request_id, getattr(request.state, "key", ""), measurement)

    async def chunks() -> AsyncGenerator[Chunk, None]:
        try:
            async with (
                state.models.borrow(entry, measurement.wait) as model,
                contextlib.aclosing(await write(model, body, caller)) as written,
            ):
                async for chunk in written:
                    yield chunk
        except (ApiError, EngineError) as error:
            failure = as_api_error(error)
            measurement.fail(failure.code, failure.status)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            measurement.leave()
            log.info("ended early: the client left, or the server stops")
            raise

    if body.stream:
        return await streamed_answer(request, chunks(), pace_of(request), dialect)
    return await whole_answer(
        request, chunks(), lambda written: JSONResponse(fold(written)), pace_of(request)
    )


def pace_of(request: Request) -> Pace:
    """Return when the answer to `request` sends keep-alive signals."""
    settings = state_of(request).settings
    return Pace(measurement_of(request).wait, settings.keepalive, settings.blank_after)
