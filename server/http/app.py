"""The application factory: middleware, routes and shared state are put together here."""

import asyncio
import contextlib
import importlib
import pkgutil
import socket
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING

from fastapi import FastAPI

from engine.process.client import EngineClient
from server.config.registry import Registry
from server.config.settings import Settings
from server.http import routes
from server.http.api import Api
from server.http.auth import ApiKeys, RequireKey
from server.http.cors import Cors, RefusePages
from server.http.failures import Failures
from server.http.in_flight import InFlight, TrackRequests
from server.http.measure import Measure, TraceHeaders, client_trace
from server.http.origins import PagePolicy
from server.http.page import page_routes
from server.http.request_id import RequestId
from server.http.state import App, AppState
from server.logs.access import log_access
from server.metrics.measurement import Measurement
from server.metrics.prometheus import Metrics
from server.models.lending import EngineFactory, Models
from server.models.planner import Planner
from server.schemas.status import LoadStep
from server.text.client import TextProcess
from server.text.work import TextWork

if TYPE_CHECKING:  # it imports an HTTP client, which only a server with peers needs
    from cluster.peers import Peers

# The modules of the functions that the text process runs, which it imports at its start.
TEXT_MODULES = (
    "server.chat.asked_by_peer",
    "server.chat.prepare",
    "server.chat.received",
    "server.chat.token_calls",
    "server.doors.messages.request",
    "server.doors.responses.request",
    "server.doors.translation",
    "engine.text.tokenizer",
)


def create_app(
    settings: Settings,
    registry: Registry,
    engine_factory: EngineFactory = EngineClient,
    *,
    keys: ApiKeys | None = None,
    text: TextWork | None = None,
    planner: Planner | None = None,
    ended: Callable[[Measurement], None] = lambda _: None,
    trace: TraceHeaders = client_trace,
    peers: "Peers | None" = None,
    progress: Callable[[LoadStep], None] = lambda _: None,
) -> App:
    """Return the ASGI application. The first request that names a model loads it.

    Args:
        engine_factory: makes the engine of a model; tests give a fake.
        keys: without any, every request is allowed, except those of foreign web pages.
        text: does the work that needs a tokenizer; tests give one in this process.
        planner: computes plans; tests give one that needs no torch.
        ended: is called with the measurement of each request when its answer has ended.
        trace: returns the headers by which a peer continues the trace of a request.
        peers: other servers of the same model, which requests may run on.
        progress: is called with the steps of loads.
    """
    metrics = Metrics()
    text = TextProcess(TEXT_MODULES) if text is None else text
    lent = Models(settings, metrics, text, engine_factory, progress, peers)
    planner = planner or Planner()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        # Made by the first request for it, the document would delay all others by 0.2 s.
        await asyncio.to_thread(app.openapi)
        if peers is not None:
            peers.start()
        try:
            yield
        finally:
            await asyncio.gather(lent.close(), planner.close())
            if peers is not None:
                await peers.close()

    apis = find_apis()
    failures = Failures(apis)
    in_flight = InFlight()
    shared = AppState(settings, registry, lent, metrics, in_flight, planner)
    app = App(shared, apis, has_keys=bool(keys), lifespan=lifespan)
    app.router.routes.extend(page_routes())
    failures.install(app)
    app.add_middleware(TrackRequests, in_flight=in_flight, refuse=failures.response)
    app.add_middleware(RequireKey, keys=keys or ApiKeys(), refuse=failures.response)
    _limit_pages(app, settings, failures, has_keys=bool(keys))
    reports = [metrics.requests.count, log_access, ended]
    app.add_middleware(Measure, routes=measured_routes(apis), ended=reports, trace=trace)
    app.add_middleware(RequestId)
    return app


def _limit_pages(app: App, settings: Settings, failures: Failures, *, has_keys: bool) -> None:
    """Let web pages send only the requests that the settings allow."""
    if not has_keys:
        policy = PagePolicy(
            settings.allowed_hosts,
            settings.cors_origins,
            socket.gethostname(),
            is_tls=settings.tls_cert is not None,
        )
        app.add_middleware(Cors, origins=None)
        app.add_middleware(RefusePages, policy=policy, refuse=failures.response)
    elif settings.cors_origins:
        app.add_middleware(Cors, origins=settings.cors_origins)


def find_apis() -> list[Api]:
    """Return the `api` of each module of `server/http/routes`."""
    found: list[Api] = []
    for module in pkgutil.iter_modules(routes.__path__):
        found.append(importlib.import_module(f"{routes.__name__}.{module.name}").api)
    return found


def measured_routes(apis: Sequence[Api]) -> dict[str, str]:
    """Return the paths that generate text, and the name of each in /metrics."""
    return {
        f"{prefix}{path}": path
        for api in apis
        for prefix in api.prefixes
        for path in api.generating
    }
