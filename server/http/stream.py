"""From a generator of chunks to an HTTP answer, streamed or whole; a client that leaves closes it.

Errors before the first chunk are ordinary answers. A request that waits longer than the keep-alive
interval (for a model, in the queue, for a long prompt) has its stream opened and gets comments
that say what it waits for; from then on errors are events. A whole answer gets white space, later
and only once it is running; from then on an error breaks the connection off.
"""

import asyncio
import functools
import json
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
from fastapi import Request
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.errors import EngineError
from server.errors import ApiError, as_api_error
from server.http.failures import log_failure
from server.metrics.wait_status import Wait

CLIENT_GONE = 499  # nginx's status for the log; nobody reads the answer

Chunk = TypeVar("Chunk", bound=Mapping[str, Any])
Item = TypeVar("Item")
Chunks = AsyncGenerator[Chunk, None]


@dataclass(frozen=True)
class Dialect:
    """How an API writes the events of its streams."""

    failure: Callable[[ApiError], Mapping[str, Any]] = ApiError.body
    named: bool = False  # the `type` of an event is its name too
    done: str | None = "[DONE]"  # the data of the last event


OPENAI = Dialect()


@dataclass(frozen=True)
class Pace:
    """How an answer that takes long shows that it is alive."""

    wait: Wait  # what its request waits for
    keepalive: float  # seconds between two signs of life
    blank_after: float  # seconds after which a whole answer that is running begins


async def whole_answer(
    request: Request,
    chunks: AsyncGenerator[Item, None],
    fold: Callable[[list[Item]], Response],
    pace: Pace,
) -> Response:
    """Fold all chunks into one answer in JSON; stop as soon as the client is gone."""
    whole = asyncio.create_task(_whole(chunks, fold))
    if not await _begins(request, whole, chunks, _patience(pace)):
        return Response(status_code=CLIENT_GONE)
    return whole.result() if whole.done() else _Late(request, whole, chunks, pace.keepalive)


async def streamed_answer(
    request: Request, chunks: AsyncGenerator[Chunk, None], pace: Pace, dialect: Dialect = OPENAI
) -> Response:
    """Stream chunks as server-sent events, opened with the first chunk or after `keepalive` s."""
    first: asyncio.Task[Chunk] = asyncio.create_task(_first(chunks))
    if not await _begins(request, first, chunks, [pace.keepalive]):
        return Response(status_code=CLIENT_GONE)
    return _Events(request.state.request_id, first, chunks, pace, dialect)


async def _whole(
    chunks: AsyncGenerator[Item, None], fold: Callable[[list[Item]], Response]
) -> Response:
    return fold([chunk async for chunk in chunks])


def _patience(pace: Pace) -> Iterator[float]:
    """Seconds to wait again and again: a request that only waits can still get an error."""
    yield pace.blank_after
    while not pace.wait.is_over:
        yield pace.keepalive


async def _begins(
    request: Request,
    task: asyncio.Task[Any],
    chunks: AsyncGenerator[Any, None],
    patience: Iterable[float],
) -> bool:
    """Wait until the task is done or patience ends; False when the client left.

    What the task raises becomes an ordinary answer. Then, and for a client that left, the chunks
    are closed; else that is left to the response.
    """
    try:
        for seconds in patience:
            present = await _before_client_leaves(request, task, seconds)
            if not present or task.done():
                break
        if present and task.done():
            task.result()
    except BaseException:
        await _stop(task, chunks)
        raise
    if not present:
        await _stop(task, chunks)
    return present


async def _first(chunks: AsyncGenerator[Chunk, None]) -> Chunk:
    return await anext(chunks)


async def _before_client_leaves(request: Request, task: asyncio.Task[Any], timeout: float) -> bool:
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


class _Late(Response):
    """A JSON answer that is late: white space until it is there.

    When it fails, the connection is closed without the last chunk: clients see a broken transport
    and try again, where a whole answer would be taken for the result.
    """

    media_type = "application/json"

    def __init__(
        self,
        request: Request,
        whole: asyncio.Task[Response],
        chunks: AsyncGenerator[Any, None],
        keepalive: float,
    ) -> None:
        super().__init__()
        del self.headers["content-length"]  # it is not known yet
        self._request = request
        self._whole = whole
        self._chunks = chunks
        self._keepalive = keepalive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begin = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        try:
            await send(begin)
            while not self._whole.done():
                await send({"type": "http.response.body", "body": b" ", "more_body": True})
                if not await _before_client_leaves(self._request, self._whole, self._keepalive):
                    return
            await send({"type": "http.response.body", "body": self._whole.result().body})
        except (ApiError, EngineError) as error:
            log_failure(self._request.state.request_id, as_api_error(error))
        finally:
            await _stop_shielded(self._whole, self._chunks)


class _Events(EventSourceResponse):
    """Closes the chunks however the response ends, even before it began to iterate them."""

    def __init__(
        self,
        request_id: str,
        first: asyncio.Task[Chunk],
        chunks: AsyncGenerator[Chunk, None],
        pace: Pace,
        dialect: Dialect,
    ) -> None:
        super().__init__(
            _events(request_id, first, chunks, pace.wait, dialect),
            ping=pace.keepalive,
            sep="\n",
            ping_message_factory=functools.partial(_comment, pace.wait),
        )
        self._first = first
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await _stop_shielded(self._first, self._chunks)


async def _stop_shielded(task: asyncio.Task[Any], chunks: AsyncGenerator[Any, None]) -> None:
    # a client that left has this task cancelled: without the shield the clean-up too
    with anyio.CancelScope(shield=True):
        await _stop(task, chunks)


async def _events(
    request_id: str,
    first: asyncio.Task[Chunk],
    chunks: AsyncGenerator[Chunk, None],
    wait: Wait,
    dialect: Dialect,
) -> AsyncGenerator[ServerSentEvent, None]:
    try:
        if not first.done():
            yield _comment(wait)
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


def _comment(wait: Wait) -> ServerSentEvent:
    return ServerSentEvent(comment=str(wait), sep="\n")
