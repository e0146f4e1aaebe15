"""Turn a generator of chunks into an HTTP answer, streamed or whole; a client that leaves ends it.

Errors before the first chunk are ordinary answers. When a request waits longer than the keep-alive
interval (for a model, in the queue, for a long prompt), its stream is opened and gets comments, or
events of its API, that say what it waits for; from then on errors are sent as events. The death of
the engine that runs the request is signalled at once. A whole
answer gets white space instead, later and only once its request is running; from then on an error
breaks the connection off.
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
from starlette.types import Message, Receive, Scope, Send

from engine.errors import EngineError
from server.errors import ApiError, as_api_error
from server.http.failures import log_failure
from server.metrics.measurement import CLIENT_GONE
from server.metrics.wait_status import Wait

Chunk = TypeVar("Chunk", bound=Mapping[str, Any])
Item = TypeVar("Item")
Chunks = AsyncGenerator[Chunk, None]


@dataclass(frozen=True)
class Dialect:
    """The way in which an API writes the events of its streams."""

    failure: Callable[[ApiError], Mapping[str, Any]] = ApiError.body  # returns an error's event
    named: bool = False  # whether the `type` of an event is also its SSE event name
    done: str | None = "[DONE]"  # the data of the last event; None for no such event
    # Returns the event that says what a request waits for; None: a comment says it.
    keepalive: Callable[[str], Mapping[str, Any]] | None = None


OPENAI = Dialect()


@dataclass(frozen=True)
class Pace:
    """The times at which an answer that takes long sends keep-alive signals."""

    wait: Wait  # what the request waits for
    keepalive: float  # seconds between two signals
    blank_after: float  # seconds before a whole answer may begin with white space


async def whole_answer(
    request: Request,
    chunks: AsyncGenerator[Item, None],
    fold: Callable[[list[Item]], Response],
    pace: Pace,
) -> Response:
    """Return the JSON answer that `fold` makes of all chunks. Stop when the client leaves."""
    whole = asyncio.create_task(_whole(chunks, fold))
    if not await _wait_for_start(request, whole, chunks, _wait_intervals(pace)):
        return Response(status_code=CLIENT_GONE)
    return whole.result() if whole.done() else _LateJson(request, whole, chunks, pace.keepalive)


async def streamed_answer(
    request: Request, chunks: AsyncGenerator[Chunk, None], pace: Pace, dialect: Dialect = OPENAI
) -> Response:
    """Return chunks as server-sent events; open the stream at the first or after `keepalive` s."""
    first: asyncio.Task[Chunk] = asyncio.create_task(_first(chunks))
    if not await _wait_for_start(request, first, chunks, [pace.keepalive]):
        return Response(status_code=CLIENT_GONE)
    return _EventStream(first, chunks, pace, dialect)


async def _whole(
    chunks: AsyncGenerator[Item, None], fold: Callable[[list[Item]], Response]
) -> Response:
    return fold([chunk async for chunk in chunks])


def _wait_intervals(pace: Pace) -> Iterator[float]:
    """Yield seconds to wait until the answer begins. It begins only when the request is running.

    A request that still waits can get an error with its own status.
    """
    yield pace.blank_after
    while not pace.wait.is_over:
        yield pace.keepalive


async def _wait_for_start(
    request: Request,
    task: asyncio.Task[Any],
    chunks: AsyncGenerator[Any, None],
    intervals: Iterable[float],
) -> bool:
    """Wait until the task is done or all intervals have passed. Return False if the client left.

    Raise what the task raises, which becomes an ordinary answer. The chunks are closed in that
    case and when the client left; otherwise the response closes them.

    Args:
        intervals: the seconds to wait, one after the other.
    """
    try:
        for seconds in intervals:
            present = await _wait_unless_client_leaves(request, task, seconds)
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


async def _wait_unless_client_leaves(
    request: Request, task: asyncio.Task[Any], timeout: float
) -> bool:
    """Wait for the task, at most `timeout` seconds. Return False if the client left first.

    The task is cancelled when the client leaves, or when the caller is cancelled.
    """
    gone = asyncio.create_task(_wait_for_disconnect(request))
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


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # marked as retrieved, so that asyncio does not log it


async def _stop(first: asyncio.Task[Any], chunks: AsyncGenerator[Any, None]) -> None:
    await _cancel(first)
    await chunks.aclose()


class _LateJson(Response):
    """A JSON answer that begins with white space until it is complete.

    When it fails, the connection is closed without the last chunk: clients notice a broken
    transport and try again, whereas they would take a complete answer for the result.
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
                if not await _wait_unless_client_leaves(
                    self._request, self._whole, self._keepalive
                ):
                    return
            await send({"type": "http.response.body", "body": self._whole.result().body})
        except (ApiError, EngineError) as error:
            log_failure(as_api_error(error))
        finally:
            await _stop_shielded(self._whole, self._chunks)


class _EventStream(EventSourceResponse):
    """A response of server-sent events that closes its chunks however it ends."""

    def __init__(
        self,
        first: asyncio.Task[Chunk],
        chunks: AsyncGenerator[Chunk, None],
        pace: Pace,
        dialect: Dialect,
    ) -> None:
        super().__init__(
            _events(first, chunks, pace.wait, dialect),
            ping=pace.keepalive,
            sep="\n",
            ping_message_factory=functools.partial(_make_signal, pace.wait, dialect),
        )
        self._first = first
        self._chunks = chunks
        self._wait = pace.wait
        self._dialect = dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = asyncio.Event()

        async def send_on(message: Message) -> None:
            await send(message)
            has_begun.set()

        losses = asyncio.create_task(self._signal_losses(has_begun, send))
        try:
            await super().__call__(scope, receive, send_on)
        finally:
            with anyio.CancelScope(shield=True):
                await _cancel(losses)
            await _stop_shielded(self._first, self._chunks)

    async def _signal_losses(self, has_begun: asyncio.Event, send: Send) -> None:
        """Say at once that the engine has died: the next keep-alive signal may be far away."""
        is_lost = asyncio.Event()
        self._wait.call_when_lost(is_lost.set)
        await has_begun.wait()
        if self._wait.is_lost:
            is_lost.set()
        while await is_lost.wait():
            is_lost.clear()
            signal = _make_signal(self._wait, self._dialect).encode()
            await send({"type": "http.response.body", "body": signal, "more_body": True})


async def _stop_shielded(task: asyncio.Task[Any], chunks: AsyncGenerator[Any, None]) -> None:
    # the task of a client that left is cancelled, and without the shield the clean-up would be too
    with anyio.CancelScope(shield=True):
        await _stop(task, chunks)


async def _events(
    first: asyncio.Task[Chunk],
    chunks: AsyncGenerator[Chunk, None],
    wait: Wait,
    dialect: Dialect,
) -> AsyncGenerator[ServerSentEvent, None]:
    try:
        if not first.done():
            yield _make_signal(wait, dialect)
        yield _make_event(await first, dialect)
        async for chunk in chunks:
            yield _make_event(chunk, dialect)
        if dialect.done is not None:
            yield ServerSentEvent(dialect.done, sep="\n")
    except (ApiError, EngineError) as error:
        failure = as_api_error(error)
        log_failure(failure)
        yield _make_event(dialect.failure(failure), dialect)


def _make_event(chunk: Mapping[str, Any], dialect: Dialect) -> ServerSentEvent:
    data = json.dumps(chunk, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return ServerSentEvent(data, event=chunk["type"] if dialect.named else None, sep="\n")


def _make_signal(wait: Wait, dialect: Dialect) -> ServerSentEvent:
    if dialect.keepalive is None:
        return ServerSentEvent(comment=str(wait), sep="\n")
    return _make_event(dialect.keepalive(str(wait)), dialect)
