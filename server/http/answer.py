"""What the generating routes share: find the model, borrow it, answer streamed or whole."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response

from engine.errors import EngineError
from server.errors import ApiError, as_api_error
from server.http.state import state_of
from server.http.stream import OPENAI, Dialect, Pace, streamed_answer, whole_answer
from server.metrics.measurement import Measurement, measurement_of
from server.metrics.usage import Totals
from server.models.lending import LoadedModel
from server.models.statistics import Traffic
from server.schemas.answers import Head
from server.schemas.fields import GenerationBody

log = logging.getLogger("understudy")

BodyT = TypeVar("BodyT", bound=GenerationBody)
Chunk = TypeVar("Chunk", bound=Mapping[str, Any])


@dataclass(frozen=True)
class Caller:
    """Who asks."""

    request_id: str
    key: str  # the name of the API key, for fairness; "" without keys
    measurement: Measurement


async def answer(
    request: Request,
    body: BodyT,
    write: Callable[[LoadedModel, BodyT, Caller], AsyncGenerator[Chunk, None]],
    fold: Callable[[Sequence[Chunk]], Mapping[str, Any]],
    dialect: Dialect = OPENAI,
) -> Response:
    """Answer a request with the chunks that `write` makes on the model it names."""
    state = state_of(request)
    entry = state.registry.find(body.model)
    measurement = measurement_of(request)
    measurement.model = entry.id
    caller = Caller(request.state.request_id, getattr(request.state, "key", ""), measurement)

    async def chunks() -> AsyncGenerator[Chunk, None]:
        try:
            async with (
                state.models.borrow(entry, measurement.wait) as model,
                contextlib.aclosing(write(model, body, caller)) as written,
            ):
                async for chunk in written:
                    yield chunk
        except (ApiError, EngineError) as error:
            measurement.outcome = as_api_error(error).code or ""
            raise
        except (asyncio.CancelledError, GeneratorExit):
            measurement.outcome = measurement.outcome or "client_left"
            log.info("%s: ended early: the client left, or the server ends", caller.request_id)
            raise

    if body.stream:
        return await streamed_answer(request, chunks(), pace_of(request), dialect)
    return await whole_answer(request, chunks(), fold, pace_of(request))


def pace_of(request: Request) -> Pace:
    """How an answer to `request` shows that it is alive."""
    settings = state_of(request).settings
    return Pace(measurement_of(request).wait, settings.keepalive, settings.blank_after)


def new_head(prefix: str, model: LoadedModel) -> Head:
    """The identity of a new answer."""
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "created": int(time.time()),
        "model": model.entry.id,
        "system_fingerprint": model.info.fingerprint,
    }


def end_answer(
    caller: Caller, model: LoadedModel, head: Head, totals: Totals, before: Traffic
) -> None:
    """Count a finished answer, and log one line; `before` is what had travelled at its start."""
    caller.measurement.complete(totals)
    log.info(
        "%s: %s %s: %s%s",
        caller.request_id,
        head["id"],
        head["model"],
        totals.summary(),
        model.statistics.link_since(before),
    )
