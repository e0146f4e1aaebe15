"""From a generator of chunks to an HTTP answer, streamed or whole; a client that leaves closes it.

Errors before the first chunk are ordinary answers. A request that waits longer than the keep-alive
interval (for a model, in the queue, for a long prompt) has its stream opened and gets comments;
from then on errors are events.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
from fastapi import Request
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from engine.errors import EngineError
from server.errors import ApiError, as_api_error, log_failure

FAREWELL_S = 2.0  # for the event that tells of the server's end
CLIENT_GONE = 499  # nginx's status for the log; nobody reads the answer

Chunk = TypeVar("Chunk", bound=Mapping[str, Any])
Chunks = AsyncGenerator[Chunk, None]


@dataclass(frozen=True)
class Dialect:
    """How an API writes the events of its streams."""

    failure: Callable[[ApiError], Mapping[str, Any]] = ApiError.body
    named: bool = False  # the `type` of an event is its name too
    done: str | None = "[DONE]"  # the data of the last event


OPENAI = Dialect()


async def whole_answer(
    request: Request,
    chunks: AsyncGenerator[Chunk, None],
    fold: Callable[[Sequence[Chunk]], Mapping[str, Any]],
) -> Response:
    """Fold all chunks into one JSON answer; stop as soon as the client is gone."""

    async def collect() -> list[Chunk]:
        return [chunk async for chunk in chunks]

    async with contextlib.aclosing(chunks):
        collecting = asyncio.create_task(collect())
        if not await _before_client_leaves(request, collecting):
            return Response(status_code=CLIENT_GONE)
        return JSONResponse(fold(collecting.result()))


async def streamed_answer(
    request: Request,
    chunks: AsyncGenerator[Chunk, None],
    keepalive: float,
    dialect: Dialect = OPENAI,
) -> Response:
    """Stream chunks as server-sent events, opened with the first chunk or after `keepalive` s."""
    first: asyncio.Task[Chunk] = asyncio.create_task(_first(chunks))
    try:
        present = await _before_client_leaves(request, first, timeout=keepalive)
        if present and first.done():
            first.result()  # raises what must be an ordinary error
    except BaseException:
        await _stop(first, chunks)
        raise
    if not present:
        await _stop(first, chunks)
        return Response(status_code=CLIENT_GONE)
    return _Events(request.state.request_id, first, chunks, keepalive, dialect)


async def _first(chunks: AsyncGenerator[Chunk, None]) -> Chunk:
    return await anext(chunks)


async def _before_client_leaves(
    request: Request, task: asyncio.Task[Any], timeout: float | None = None
) -> bool:
    """Wait for the task, at most `timeout` s; False when the client left first.

    The task is cancelled when the client leaves, or when the caller is cancelled.
    """
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        await _cancel(task)
        raise
    finally:
        left = gone.done() and not task.done()
        await _cancel(gone)
    if left:
        await _cancel(task)
    return not left


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # nobody is left to be told


async def _stop(first: asyncio.Task[Any], chunks: AsyncGenerator[Any, None]) -> None:
    await _cancel(first)
    await chunks.aclose()


class _Events(EventSourceResponse):
    """Closes the chunks however the response ends, even before it began to iterate them."""

    def __init__(
        self,
        request_id: str,
        first: asyncio.Task[Chunk],
        chunks: AsyncGenerator[Chunk, None],
        keepalive: float,
        dialect: Dialect,
    ) -> None:
        super().__init__(
            _events(request_id, first, chunks, dialect),
            ping=keepalive,
            sep="\n",
            ping_message_factory=_comment,
            shutdown_grace_period=FAREWELL_S,
        )
        self._first = first
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # a client that left has this task cancelled: without the shield the clean-up too
            with anyio.CancelScope(shield=True):
                await _stop(self._first, self._chunks)


async def _events(
    request_id: str,
    first: asyncio.Task[Chunk],
    chunks: AsyncGenerator[Chunk, None],
    dialect: Dialect,
) -> AsyncGenerator[ServerSentEvent, None]:
    try:
        yield _event(await first, dialect)
        async for chunk in chunks:
            yield _event(chunk, dialect)
        if dialect.done is not None:
            yield ServerSentEvent(dialect.done, sep="\n")
    except (ApiError, EngineError) as error:
        failure = as_api_error(error)
        log_failure(request_id, failure)
        yield _event(dialect.failure(failure), dialect)


def _event(chunk: Mapping[str, Any], dialect: Dialect) -> ServerSentEvent:
    data = json.dumps(chunk, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return ServerSentEvent(data, event=chunk["type"] if dialect.named else None, sep="\n")


def _comment() -> ServerSentEvent:
    return ServerSentEvent(comment="waiting", sep="\n")
