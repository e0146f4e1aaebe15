"""`idle_unload`: a model that no request holds for that long gives its memory back."""

import asyncio
import logging
from typing import Any

import httpx
import pytest

from server.http.state import App
from tests.server.conftest import MakeApp, chat, client_of, entry, events
from tests.server.fake_engine import FakeEngines
from tests.server.models.test_lending import engine_made
from tests.server.models.test_unloading import load, reached, states, unload

LONG = 3600.0


def app_of(make_app: MakeApp, idle_unload: float | None, **settings: Any) -> App:
    entries = [entry("main", idle_unload=idle_unload), entry("org/other")]
    return make_app(entries=entries, **settings)


def seconds_left(app: App) -> float:
    left = app.shared.models.idle_seconds_left
    assert left is not None
    return left


async def test_a_model_is_unloaded_and_the_next_request_loads_it(
    make_app: MakeApp, engines: FakeEngines, caplog: pytest.LogCaptureFixture
) -> None:
    async with client_of(app_of(make_app, 0.01)) as client:
        with caplog.at_level(logging.INFO, "understudy"):
            for _ in range(2):
                assert (await chat(client)).status_code == 200
                await reached(client, ["unloaded", "unloaded"])
        assert [engine.state for engine in engines.made] == ["closed", "closed"]
        assert caplog.messages.count("unloading main, idle for 0.01 s") == 2
        *_, done = events((await chat(client, stream=True)).text)
        assert done == "[DONE]"


async def test_the_text_process_gives_its_memory_back(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = app_of(make_app, 0.01)
    rests: list[None] = []
    monkeypatch.setattr(app.shared.models.text, "rest", lambda: rests.append(None))
    async with client_of(app) as client:
        await chat(client)
        await reached(client, ["unloaded", "unloaded"])
        assert len(rests) == 1
        await load(client, "org/other")
        await unload(client, "org/other")
        assert len(rests) == 2


async def test_a_running_request_keeps_the_model(make_app: MakeApp, engines: FakeEngines) -> None:
    engines.script.gate = asyncio.Event()
    app = app_of(make_app, 0.01)
    async with client_of(app) as client:
        running = asyncio.create_task(chat(client))
        await engine_made(engines)
        await engines.engine.request_started.wait()
        await asyncio.sleep(0.05)
        assert app.shared.models.idle_seconds_left is None
        assert await states(client) == ["loaded", "unloaded"]
        engines.script.gate.set()
        assert (await running).status_code == 200
        await reached(client, ["unloaded", "unloaded"])
        assert engines.loads == ["main"]


async def test_only_requests_that_use_the_model_begin_the_time_anew(make_app: MakeApp) -> None:
    app = app_of(make_app, LONG)
    async with client_of(app) as client:
        await chat(client)
        left = seconds_left(app)
        for path in reading_routes(app):
            await asyncio.sleep(0.002)
            await client.get(path)
            now = seconds_left(app)
            assert now < left, path
            left = now
        await asyncio.sleep(0.01)
        left = seconds_left(app)
        await client.post("/tokenize", json={"content": "hi"})
        assert left < seconds_left(app)


async def test_what_only_reads_wakes_no_model(make_app: MakeApp, engines: FakeEngines) -> None:
    app = app_of(make_app, 0.01)
    async with client_of(app) as client:
        await chat(client)
        await reached(client, ["unloaded", "unloaded"])
        for path in reading_routes(app):
            await client.get(path)
        assert engines.loads == ["main"]


def reading_routes(app: App) -> list[str]:
    """The paths of all GET routes that end by themselves."""
    paths = [path for path, methods in app.openapi()["paths"].items() if "get" in methods]
    assert {"/v1/models", "/metrics", "/health", "/v1/status"} <= set(paths)
    return [path.format(model="main", name="main", model_id="main") for path in paths]


@pytest.mark.parametrize("idle_unload", [None, LONG])
async def test_the_status_says_when_it_is_unloaded(
    make_app: MakeApp, idle_unload: float | None
) -> None:
    async with client_of(app_of(make_app, idle_unload)) as client:
        await load(client)
        main, other = (await client.get("/v1/status")).json()["models"]
        assert ("unloads_in" in main) == (idle_unload is not None)
        assert main.get("unloads_in", LONG) <= LONG
        assert "unloads_in" not in other


async def test_the_status_says_how_long_ago_it_was_unloaded(make_app: MakeApp) -> None:
    async with client_of(app_of(make_app, 0.01)) as client:
        await chat(client)
        await reached(client, ["unloaded", "unloaded"])
        main, other = (await client.get("/v1/status")).json()["models"]
        assert 0 <= main["idle_unloaded_ago"] < LONG
        assert "idle_unloaded_ago" not in other
    async with client_of(app_of(make_app, None)) as client:
        await load(client)
        await unload(client)  # because somebody asked for it
        main, _ = (await client.get("/v1/status")).json()["models"]
        assert main["state"] == "unloaded" and "idle_unloaded_ago" not in main


async def test_a_swap_ends_the_time(make_app: MakeApp, engines: FakeEngines) -> None:
    app = app_of(make_app, 0.02)
    async with client_of(app) as client:
        await chat(client)
        assert (await chat(client, model="org/other")).status_code == 200
        assert app.shared.models.idle_seconds_left is None
        await asyncio.sleep(0.05)
        assert await states(client) == ["unloaded", "loaded"]


async def test_requests_that_come_while_it_is_unloaded_are_served(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    async with client_of(app_of(make_app, 0.001)) as client:
        for _ in range(30):
            answers: list[httpx.Response] = await asyncio.gather(*(chat(client) for _ in range(3)))
            assert {answer.status_code for answer in answers} == {200}
            await asyncio.sleep(0.001)
    assert sum(engine.state != "closed" for engine in engines.made) == 0
