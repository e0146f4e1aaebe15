"""POST /v1/models/NAME/load and /unload: models in memory change as somebody asks."""

import asyncio
from typing import Any

import httpx
import pytest

from engine.errors import ModelError
from tests.server.conftest import MakeApp, chat, client_of, error_of
from tests.server.fake_engine import FakeEngines
from tests.server.http.routes.test_status import status_of
from tests.server.models.test_lending import engine_made, waiting


async def load(client: httpx.AsyncClient, name: str = "main", **kwargs: Any) -> httpx.Response:
    return await client.post(f"/v1/models/{name}/load", **kwargs)


async def unload(client: httpx.AsyncClient, name: str = "main", **fields: Any) -> httpx.Response:
    return await client.post(f"/v1/models/{name}/unload", json=fields)


async def states(client: httpx.AsyncClient) -> list[str]:
    return [model["state"] for model in (await status_of(client))["models"]]


async def reached(client: httpx.AsyncClient, wanted: list[str]) -> None:
    async with asyncio.timeout(10):
        while await states(client) != wanted:
            await asyncio.sleep(0)


async def test_load_and_unload_answer_when_they_are_done(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    for _ in range(2):  # the second one finds it loaded
        model = (await load(client)).json()
        assert (model["id"], model["state"], model["max_model_len"]) == ("main", "loaded", 1024)
    assert (await load(client, "org/other")).json()["id"] == "org/other"
    assert await states(client) == ["unloaded", "loaded"]
    for _ in range(2):
        model = (await unload(client, "org/other")).json()
        assert (model["id"], model["state"]) == ("org/other", "unloaded")
    assert await states(client) == ["unloaded", "unloaded"]
    assert [engine.state for engine in engines.made] == ["closed", "closed"]
    assert engines.loads == ["main", "org/other"]


async def test_an_alias_names_its_model(client: httpx.AsyncClient) -> None:
    assert (await load(client, "gpt-x")).json()["id"] == "main"
    assert (await client.post("/models/gpt-x/unload")).json()["state"] == "unloaded"


async def test_another_model_is_not_unloaded(client: httpx.AsyncClient) -> None:
    await load(client)
    assert (await unload(client, "org/other")).json()["state"] == "unloaded"
    assert await states(client) == ["loaded", "unloaded"]


async def test_unloading_waits_for_requests_and_later_ones_load_again(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.pause = asyncio.Event()
    running = asyncio.create_task(chat(client))
    await engine_made(engines)
    await engines.engine.request_started.wait()
    asked = asyncio.create_task(unload(client, grace=60))
    await reached(client, ["unloading", "unloaded"])
    late = asyncio.create_task(chat(client))
    await waiting(client, 1)
    assert engines.loads == ["main"] and engines.engine.state == "ready"
    engines.script.pause.set()
    assert (await running).status_code == 200
    assert (await asked).json()["state"] in ("unloaded", "loaded")  # the late request may be served
    assert (await late).status_code == 200
    assert engines.loads == ["main", "main"]


@pytest.mark.parametrize("fields", [{"grace": 0}, {"grace": 0.01}, {}])
async def test_requests_that_outlast_the_grace_get_an_error(
    make_app: MakeApp, engines: FakeEngines, fields: dict[str, Any]
) -> None:
    engines.script.pause = asyncio.Event()
    async with client_of(make_app(shutdown_timeout=0.01)) as client:
        running = asyncio.create_task(chat(client))
        await engine_made(engines)
        await engines.engine.request_started.wait()
        assert (await unload(client, **fields)).json()["state"] == "unloaded"
        error = error_of(await running, 503)
        assert error["code"] == "engine_closed"
        engines.script.pause.set()
        assert (await chat(client)).status_code == 200


async def test_a_load_that_runs_is_waited_for(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.load_gate = asyncio.Event()
    loading = asyncio.create_task(load(client))
    await engine_made(engines)
    unloading = asyncio.create_task(unload(client))
    await reached(client, ["loading", "unloaded"])
    engines.script.load_gate.set()
    assert (await loading).json()["state"] == "loaded"
    assert (await unloading).json()["state"] == "unloaded"
    assert engines.engine.state == "closed"


async def test_a_load_that_fails_says_why(client: httpx.AsyncClient, engines: FakeEngines) -> None:
    engines.script.load_error = ModelError("no weights")
    error = error_of(await load(client), 500)
    assert error["code"] == "model_load_failed" and "no weights" in error["message"]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("what", ["load", "unload"])
async def test_only_models_of_the_registry_are_taken(
    make_app: MakeApp, engines: FakeEngines, what: str, strict: bool
) -> None:
    async with client_of(make_app(strict=strict)) as client:
        error = error_of(await client.post(f"/v1/models/whatever/{what}"), 404)
        assert error["code"] == "model_not_found"
    assert engines.made == []


@pytest.mark.parametrize("grace", [-1, "1", 1e9, [], True])
async def test_a_wrong_grace_is_refused(client: httpx.AsyncClient, grace: Any) -> None:
    await load(client)
    assert error_of(await unload(client, grace=grace), 400)["param"] == "grace"
    assert await states(client) == ["loaded", "unloaded"]


@pytest.mark.parametrize("what", ["load", "unload"])
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "https://page.example"},  # which cors_origins allows to chat
        {"origin": "app://program"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
    ],
)
@pytest.mark.parametrize("origins", [(), ("https://page.example",), ("*",)])
async def test_foreign_pages_neither_load_nor_unload(
    make_app: MakeApp,
    engines: FakeEngines,
    what: str,
    headers: dict[str, str],
    origins: tuple[str, ...],
) -> None:
    async with client_of(make_app(cors_origins=origins), headers=headers) as client:
        for path in (f"/v1/models/main/{what}", f"/models/main/{what.replace('l', '%6c')}"):
            error_of(await client.post(path), 403)
        own = {"origin": "http://localhost:1234", "sec-fetch-site": "same-origin"}
        assert (await client.post(f"/v1/models/main/{what}", headers=own)).status_code == 200
    assert engines.loads == (["main"] if what == "load" else [])


@pytest.mark.parametrize("what", ["load", "unload"])
async def test_another_method_is_refused_with_the_right_one(
    client: httpx.AsyncClient, what: str
) -> None:
    answer = await client.put(f"/v1/models/main/{what}")
    assert error_of(answer, 405) and answer.headers["allow"] == "POST"


async def test_the_key_is_needed(make_app: MakeApp, engines: FakeEngines) -> None:
    async with client_of(make_app(keys=("secret",))) as client:
        error_of(await load(client), 401)
        error_of(await unload(client), 401)
        assert engines.made == []
        assert (await load(client, headers={"x-api-key": "secret"})).status_code == 200


async def test_the_server_stops_while_a_model_is_unloaded(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    app = make_app()
    engines.script.pause = asyncio.Event()
    async with client_of(app) as client:
        running = asyncio.create_task(chat(client))
        await engine_made(engines)
        await engines.engine.request_started.wait()
        asked = asyncio.create_task(unload(client, grace=60))
        await reached(client, ["unloading", "unloaded"])
        async with asyncio.timeout(10):
            await app.shared.models.close()
        assert (await asked).status_code == 200
        error_of(await running, 503)
    assert engines.engine.state == "closed"
