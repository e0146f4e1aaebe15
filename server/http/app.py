"""The application factory."""

import contextlib
from collections.abc import AsyncGenerator, Callable
from importlib import metadata

from fastapi import FastAPI

from engine.messages import Progress
from engine.process.client import EngineClient
from server import errors
from server.config.registry import Registry
from server.config.settings import Settings
from server.http import openapi
from server.http.auth import ApiKeys, RequireKey
from server.http.cors import Cors
from server.http.request_id import RequestId
from server.http.routes import chat, completions, health, messages, models, responses, tokens
from server.http.routes import metrics as metrics_route
from server.http.state import AppState
from server.metrics.measurement import Measure
from server.metrics.prometheus import Metrics
from server.models.lending import EngineFactory, Models, TokenizerLoader
from server.models.tokenizer import load_tokenizer


def create_app(
    settings: Settings,
    registry: Registry,
    engine_factory: EngineFactory = EngineClient,
    *,
    keys: ApiKeys | None = None,
    tokenizer_loader: TokenizerLoader = load_tokenizer,
    progress: Callable[[Progress], None] = lambda _: None,
) -> FastAPI:
    """The ASGI application. Models are loaded by the first request that wants them.

    Args:
        engine_factory: makes the engine of a model; tests give a fake.
        keys: without any, every request is allowed.
        progress: told of the steps of loads.
    """
    metrics = Metrics()
    lent = Models(settings, metrics, engine_factory, tokenizer_loader, progress)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await lent.close()

    app = FastAPI(
        title="Understudy",
        version=_version(),
        lifespan=lifespan,
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.understudy = AppState(settings, registry, lent, metrics)
    for resource in (chat, completions, responses, messages, tokens, models):
        app.include_router(resource.router, prefix="/v1")
        app.include_router(resource.router, include_in_schema=False)
    app.include_router(health.router)
    app.include_router(health.router, prefix="/v1", include_in_schema=False)
    app.include_router(metrics_route.router)
    errors.install(app)
    openapi.install(app, has_keys=bool(keys))
    app.add_middleware(RequireKey, keys=keys or ApiKeys())
    if settings.cors_origins:
        app.add_middleware(Cors, origins=settings.cors_origins)
    app.add_middleware(Measure, ended=metrics.requests.ended)
    app.add_middleware(RequestId)
    return app


def _version() -> str:
    try:
        return metadata.version("understudy")
    except metadata.PackageNotFoundError:
        return "0"
