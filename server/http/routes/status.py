"""The route GET /v1/status: models, queue, speed, link and KV pages, once or every second."""

import json
from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import Query, Request
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import JSONResponse, Response

from server.http.api import Api
from server.http.state import AppState, state_of
from server.schemas.status import ServerStatus

api = Api()

INTERVAL_S = 1.0  # between two events of `?watch`
WATCH = "Any value but 0 and false: the status is sent every second, as server-sent events"


@api.get("/status", ServerStatus)
async def get_status(
    request: Request, watch: Annotated[str | None, Query(description=WATCH)] = None
) -> Response:
    """Return the state of the server, or with `?watch` a stream of it. It loads no model."""
    state = state_of(request)
    if watch is None or watch.lower() in ("0", "false"):
        return JSONResponse(state.status())
    return EventSourceResponse(_events(state), sep="\n")


async def _events(state: AppState) -> AsyncGenerator[ServerSentEvent, None]:
    """Yield the status every second. The last event says that the server stops."""
    while True:
        is_last = state.in_flight.is_stopping
        data = json.dumps(state.status(), ensure_ascii=False, separators=(",", ":"))
        yield ServerSentEvent(data, sep="\n")
        if is_last:
            return
        await state.in_flight.wait_for_stop(INTERVAL_S)
