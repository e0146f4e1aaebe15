"""One request as it is measured: from its first byte to the end of its answer."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.metrics.usage import Totals
from server.metrics.wait_status import Wait

# Until the request ran; of a stream that opened earlier, until it opened.
QUEUE_HEADER = "x-understudy-queue-ms"
ROUTES = {
    f"{prefix}{path}": path
    for prefix in ("", "/v1")
    for path in ("/chat/completions", "/completions", "/responses", "/messages")
}


@dataclass
class Measurement:
    """What becomes known of a request while it is served."""

    route: str  # "" for requests that generate nothing
    model: str = ""  # its id, once it is known to exist
    outcome: str = ""  # a finish reason, an error's code, "client_left"; "" while unknown
    first_token_s: float | None = None
    totals: Totals | None = None  # of a complete answer
    wait: Wait = field(default_factory=Wait)
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Since the request came."""
        return time.perf_counter() - self.started

    def token(self) -> None:
        """The engine emitted something for it."""
        self.wait.over()
        if self.first_token_s is None:
            self.first_token_s = self.seconds

    def complete(self, totals: Totals) -> None:
        """All choices are finished."""
        self.outcome, self.totals = totals.finish, totals


def measurement_of(request: Request) -> Measurement:
    """The measurement that `Measure` began."""
    measurement = request.state.measurement
    assert isinstance(measurement, Measurement)
    return measurement


class Measure:
    """ASGI middleware: begins a measurement for each request, and reports those that generate."""

    def __init__(self, app: ASGIApp, ended: Callable[[Measurement], None]) -> None:
        self._app = app
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        route = ROUTES.get(scope["path"], "") if scope["method"] == "POST" else ""
        measurement = Measurement(route)
        scope.setdefault("state", {})["measurement"] = measurement
        status = 500  # unless an answer begins

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if route and status < 400:
                    headers = MutableHeaders(scope=message)
                    headers[QUEUE_HEADER] = str(measurement.wait.milliseconds)
            await send(message)

        try:
            await self._app(scope, receive, send_and_see)
        finally:
            measurement.outcome = measurement.outcome or f"http_{status}"
            if route:
                self._ended(measurement)
