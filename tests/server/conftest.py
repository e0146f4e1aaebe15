"""Fixtures of the server's tests: an app with the fake engine, and clients of it."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from fastapi import FastAPI
from hypothesis import settings

from engine.spec import ModelSpec, TargetSpec
from server.cli.serve import bind, http_config
from server.config.registry import ModelEntry, Registry
from server.config.settings import Settings
from server.http.app import create_app
from server.http.auth import ApiKeys
from server.http.openapi import document as make_document
from server.http.state import App
from tests.demo_server import DemoServer, SharedDemoServer
from tests.server.fake_engine import FakeEngines
from tests.server.fake_text import FakeText

# No test fails because an example takes long.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

MakeApp = Callable[..., App]


def entry(model_id: str, **fields: Any) -> ModelEntry:
    return ModelEntry(model_id, ModelSpec(model_id, TargetSpec("nowhere")), 1700000000, **fields)


@pytest.fixture
def engines() -> FakeEngines:
    return FakeEngines()


@pytest.fixture
def make_app(engines: FakeEngines) -> MakeApp:
    def make(
        *,
        entries: list[ModelEntry] | None = None,
        keys: tuple[str, ...] = (),
        strict: bool = True,
        default: str | None = "main",
        **settings: Any,
    ) -> App:
        known = entries or [entry("main", aliases=("gpt-x",)), entry("org/other")]
        return create_app(
            Settings(**settings),
            Registry(known, default, strict=strict),
            engines,
            keys=ApiKeys(keys),
            text=FakeText(),
        )

    return make


@pytest.fixture(autouse=True, scope="session")
def documents_made_once() -> Iterator[None]:
    """Reuse the document at /openapi.json for apps that have the same schemas.

    Each app makes it when it starts, which takes longer than all requests of most tests.
    """
    made: dict[tuple[object, ...], dict[str, Any]] = {}

    def document(app: FastAPI, schemas: list[Any], *, has_keys: bool) -> dict[str, Any]:
        key = (has_keys, *schemas)
        if key not in made:
            made[key] = make_document(app, schemas, has_keys=has_keys)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.http.state.document", document)
        yield


@asynccontextmanager
async def client_of(app: FastAPI, **kwargs: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost", **kwargs) as client,
    ):
        yield client


@pytest.fixture
async def client(make_app: MakeApp) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(make_app()) as client:
        yield client


@asynccontextmanager
async def serving(app: FastAPI, client_timeout: float = 60.0) -> AsyncIterator[str]:
    """Run a real server on a free loopback port, and yield its URL."""
    with bind("127.0.0.1", 0, client_timeout) as listener:
        server = uvicorn.Server(http_config(app, client_timeout))
        started = asyncio.Event()
        startup = server.startup

        async def start(sockets: list[socket.socket] | None = None) -> None:
            await startup(sockets)
            started.set()

        server.startup = start  # type: ignore[method-assign]  # the server has no such event
        task = asyncio.create_task(server._serve([listener]))
        await started.wait()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


@pytest.fixture
async def openai_client(make_app: MakeApp) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        serving(make_app()) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def events(text: str) -> list[Any]:
    """Return the data of each event of a stream without comments; "[DONE]" stays text."""
    data = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    return [d if d == "[DONE]" else json.loads(d) for d in data]


async def chat(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    return await client.post("/v1/chat/completions", json=body)


async def complete(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/v1/completions", json={"prompt": "hi", **fields})


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """Check the shape of an error answer, and return its error object."""
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    body = response.json()
    assert list(body) == ["error"]
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    return error


@pytest.fixture(scope="session")
def shared_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedDemoServer]:
    """End the server of `served_demo` when all tests have run."""
    with ExitStack() as stack:
        yield SharedDemoServer(stack, lambda: tmp_path_factory.mktemp("home"))


@pytest.fixture
def served_demo(shared_demo: SharedDemoServer) -> DemoServer:
    """Return `understudy serve demo`, which tests share."""
    return shared_demo.get()
