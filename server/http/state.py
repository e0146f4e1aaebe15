"""The app, and the state that its routes share."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from server.config.registry import Registry
from server.config.settings import Settings
from server.http.api import Api
from server.http.in_flight import InFlight
from server.http.openapi import document
from server.metrics.prometheus import Metrics
from server.models.lending import Models
from server.models.planner import Planner
from server.models.status import read_status
from server.schemas.status import ServerStatus
from server.version import version


@dataclass(frozen=True)
class AppState:
    """The objects that all routes of an app share."""

    settings: Settings
    registry: Registry
    models: Models
    metrics: Metrics
    in_flight: InFlight
    planner: Planner
    started: float = field(default_factory=time.monotonic)

    def status(self) -> ServerStatus:
        """Return the present state of the server."""
        return read_status(
            self.registry,
            self.models,
            uptime=time.monotonic() - self.started,
            is_stopping=self.in_flight.is_stopping,
        )


class App(FastAPI):
    """FastAPI with shared state, and with the schemas that it does not find by itself.

    Args:
        shared: the state that `state_of` returns.
        apis: the routes to add.
        has_keys: whether /openapi.json states that requests need an API key.
        lifespan: runs while the app does.
    """

    def __init__(
        self,
        shared: AppState,
        apis: Sequence[Api],
        *,
        has_keys: bool,
        lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
    ) -> None:
        super().__init__(
            title="Understudy",
            version=version(if_not_installed="0"),
            lifespan=lifespan,
            docs_url=None,  # these pages load scripts from other sites
            redoc_url=None,
            redirect_slashes=False,
            # Its own traces would have the exceptions of requests, beside those of `server.traces`.
            # Versions without any ignore this.
            telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        )
        self.shared = shared
        self._schemas = [schema for api in apis for schema in api.schemas]
        self._has_keys = has_keys
        for api in apis:
            for prefix in api.prefixes:
                is_shown = prefix == api.prefixes[0]
                self.include_router(api.router, prefix=prefix, include_in_schema=is_shown)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. WebSockets are refused first, because no route accepts one."""
        if scope["type"] == "websocket":
            await WebSocketClose()(scope, receive, send)
        elif scope["type"] == "http" and scope["method"] == "HEAD":
            # A query may ask for a stream that does not end, of which nothing would be sent.
            as_get = {**scope, "method": "GET", "query_string": b""}
            await super().__call__(as_get, receive, _without_body(send))
        else:
            await super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, which is made once."""
        if self.openapi_schema is None:
            self.openapi_schema = document(self, self._schemas, has_keys=self._has_keys)
        return self.openapi_schema


def _without_body(send: Send) -> Send:
    """Return a function that sends an answer to HEAD: that to GET, but without its body."""

    async def send_head(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return send_head


def state_of(request: Request) -> AppState:
    """Return the state that the routes of the request's app share."""
    app = request.app
    assert isinstance(app, App)
    return app.shared
