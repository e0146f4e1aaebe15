"""Middleware that measures each request, from its arrival to the end of its answer."""

import functools
from collections.abc import Callable, Mapping, Sequence

from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.hop import trace_headers
from server.metrics.measurement import Measurement

# Milliseconds until the request ran, or until its stream opened where that was earlier.
QUEUE_HEADER = "x-understudy-queue-ms"
# What of the request the model was not given, as far as it was known when the answer began.
IGNORED_HEADER = "x-understudy-ignored"

TRACE_FIELDS = (b"traceparent", b"tracestate")
LONGEST_CONTEXT = 512  # bytes
TraceHeaders = Callable[[Measurement], Mapping[str, str]]


def client_trace(measured: Measurement) -> Mapping[str, str]:
    """Return the headers of the client's own trace, for a server that keeps no traces."""
    found = [(name, value) for name, value in measured.headers if name in TRACE_FIELDS]
    is_usable = len({name for name, _ in found}) == len(found) and all(
        len(value) <= LONGEST_CONTEXT for _, value in found
    )
    return {name.decode(): value.decode("latin-1") for name, value in found} if is_usable else {}


def measurement_of(request: Request) -> Measurement:
    """Return the measurement that `Measure` has begun for a request."""
    measurement = request.state.measurement
    assert isinstance(measurement, Measurement)
    return measurement


class Measure:
    """ASGI middleware that measures each request.

    Args:
        routes: the paths that generate text, and the name of each in /metrics.
        ended: are called with each finished measurement.
        trace: returns the headers that continue a request's trace on another server.
    """

    def __init__(
        self,
        app: ASGIApp,
        routes: Mapping[str, str],
        ended: Sequence[Callable[[Measurement], None]],
        trace: TraceHeaders,
    ) -> None:
        self._app = app
        self._routes = routes
        self._ended = ended
        self._trace = trace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        route = self._routes.get(scope["path"], "") if scope["method"] == "POST" else ""
        client = scope.get("client")
        measurement = Measurement(
            route,
            method=scope["method"],
            path=scope["path"],
            client=client[0] if client else "-",
            request_id=scope["state"]["request_id"],
            headers=scope["headers"],
        )
        scope["state"]["measurement"] = measurement
        trace_headers.set(functools.partial(self._trace, measurement))  # of this request's own task
        status = 500  # unless an answer begins

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                if route and status < 400:
                    headers[QUEUE_HEADER] = str(measurement.wait.milliseconds)
                if measurement.left_out:
                    headers[IGNORED_HEADER] = measurement.left_out
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except Exception:  # a mistake of ours, after which the connection is cut
            measurement.fail("internal_error", 500)
            raise
        finally:
            measurement.close(status)
            for report in self._ended:
                report(measurement)
