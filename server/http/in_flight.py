"""The requests in progress, and the refusal of new ones while the server stops."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ApiError
from server.metrics.measurement import Measurement
from server.models.lending import SHUTTING_DOWN

# Monitoring is answered until the server ends.
ALWAYS_ANSWERED = frozenset({"/health", "/v1/health", "/ready", "/v1/ready", "/metrics"})


def stopping_error() -> ApiError:
    """Return the error for a request that arrives while the server stops."""
    return ApiError.unavailable(SHUTTING_DOWN, "engine_closed")


@dataclass(eq=False)
class TrackedRequest:
    """A request in progress and the task that answers it."""

    task: asyncio.Task[Any]
    measurement: Measurement
    is_received: bool = False  # the whole body has arrived


class InFlight:
    """The set of requests whose answers are not complete."""

    def __init__(self) -> None:
        self._stopping = asyncio.Event()
        self._requests: set[TrackedRequest] = set()
        self._changed = asyncio.Event()

    @property
    def is_stopping(self) -> bool:
        """Whether new requests are refused."""
        return self._stopping.is_set()

    async def wait_for_stop(self, timeout: float) -> None:
        """Wait until new requests are refused, or until `timeout` seconds have passed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._stopping.wait()

    @property
    def num_running(self) -> int:
        """The number of requests that the engine runs."""
        return sum(request.measurement.wait.is_over for request in self._requests)

    def stop(self) -> None:
        """Refuse new requests from now on, and requests whose body has not arrived."""
        self._stopping.set()
        for request in self._requests:
            if not request.is_received:
                request.task.cancel()

    async def all_ended(self, timeout: float) -> None:
        """Wait until every request has been answered, or until `timeout` seconds have passed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._requests:
                    self._changed.clear()
                    await self._changed.wait()

    def add(self, request: TrackedRequest) -> None:
        """Add a request that begins."""
        self._requests.add(request)

    def remove(self, request: TrackedRequest) -> None:
        """Remove a request that has ended."""
        self._requests.remove(request)
        self._changed.set()


class TrackRequests:
    """ASGI middleware that adds each request to `in_flight`, and refuses requests once it stops.

    While the server stops, every answer closes its connection: the client opens another one, which
    a proxy can route to another server.

    Args:
        refuse: returns the answer to a refused request.
    """

    def __init__(
        self, app: ASGIApp, in_flight: InFlight, refuse: Callable[[ApiError, Scope], ASGIApp]
    ) -> None:
        self._app = app
        self._in_flight = in_flight
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start" and self._in_flight.is_stopping:
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        if scope["path"] in ALWAYS_ANSWERED:
            await self._app(scope, receive, send_and_close)
        elif self._in_flight.is_stopping:
            await self._refuse(stopping_error(), scope)(scope, receive, send_and_close)
        else:
            await self._track(scope, receive, send_and_close)

    async def _track(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None, "requests are answered by tasks"
        request = TrackedRequest(task, scope["state"]["measurement"])

        async def receive_and_note() -> Message:
            message = await receive()
            request.is_received = not message.get("more_body", False)
            return message

        self._in_flight.add(request)
        try:
            await self._app(scope, receive_and_note, send)
        except asyncio.CancelledError:
            if request.is_received or not self._in_flight.is_stopping:
                raise
            task.uncancel()
            await self._refuse(stopping_error(), scope)(scope, receive, send)
        finally:
            self._in_flight.remove(request)
