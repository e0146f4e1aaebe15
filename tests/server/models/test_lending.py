"""Loading on demand, and swapping first come first served."""

import asyncio

import httpx
import pytest

from engine.errors import ModelError
from tests.server.conftest import MakeApp, chat, client_of, entry, error_of, events
from tests.server.fake_engine import FakeEngines


async def engine_made(engines: FakeEngines, count: int = 1) -> None:
    async with asyncio.timeout(10):
        while len(engines.made) < count:
            await asyncio.sleep(0)


async def waiting(client: httpx.AsyncClient, count: int) -> None:
    """Until that many requests wait for a model."""
    transport = client._transport
    assert isinstance(transport, httpx.ASGITransport)
    models = transport.app.shared.models  # type: ignore[attr-defined]  # our own app
    async with asyncio.timeout(10):
        while models.num_waiting != count:
            await asyncio.sleep(0)


async def test_the_first_request_loads_and_the_next_finds_it(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    assert engines.loads == []
    for _ in range(3):
        assert (await chat(client)).status_code == 200
    assert engines.loads == ["main"]


async def test_requests_during_a_load_share_it(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.load_gate = asyncio.Event()
    asking = [asyncio.create_task(chat(client)) for _ in range(5)]
    await waiting(client, 5)
    engines.script.load_gate.set()
    assert {(await task).status_code for task in asking} == {200}
    assert engines.loads == ["main"]


async def test_a_swap_waits_for_running_requests_and_keeps_the_order(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.gate = asyncio.Event()
    running = asyncio.create_task(chat(client, model="main"))
    await engine_made(engines)
    await engines.engine.request_started.wait()
    other = asyncio.create_task(chat(client, model="org/other"))
    await waiting(client, 1)
    late = asyncio.create_task(chat(client, model="main"))  # must not overtake
    await waiting(client, 2)
    assert engines.made[0].state == "ready"
    assert len(engines.made[0].requests) == 1
    engines.script.gate.set()
    assert (await running).json()["model"] == "main"
    assert (await other).json()["model"] == "org/other"
    assert (await late).json()["model"] == "main"
    assert engines.loads == ["main", "org/other", "main"]
    assert [engine.state for engine in engines.made] == ["closed", "closed", "ready"]


async def test_many_requests_of_two_models_are_all_served(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    names = ["main", "org/other", "org/other", "main", "main", "org/other"] * 4
    answers = await asyncio.gather(*(chat(client, model=name, stream=True) for name in names))
    for name, answer in zip(names, answers, strict=True):
        *chunks, done = events(answer.text)
        assert done == "[DONE]"
        assert {c["model"] for c in chunks} == {name}
    assert sum(engine.state == "ready" for engine in engines.made) == 1


async def test_a_load_that_takes_too_long_is_a_503_and_goes_on(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    engines.script.load_gate = asyncio.Event()
    async with client_of(make_app(load_timeout=0.01)) as client:
        response = await chat(client)
        assert error_of(response, 503)["code"] == "model_loading"
        assert response.headers["retry-after"]
        engines.script.load_gate.set()
        while not (await client.get("/ready")).is_success:
            await asyncio.sleep(0)
        assert (await chat(client)).status_code == 200
    assert engines.loads == ["main"]


async def test_a_streaming_request_that_waits_too_long_gets_the_error_as_an_event(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    engines.script.load_gate = asyncio.Event()
    async with client_of(make_app(load_timeout=0.2, keepalive=0.01)) as client:
        response = await chat(client, stream=True)
    assert response.status_code == 200
    assert response.text.startswith(":")
    assert events(response.text)[-1]["error"]["code"] == "model_loading"


async def test_a_failed_load_is_told_to_all_who_wait_and_tried_again_later(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.load_error = ModelError("config.json: no such family")
    answers = await asyncio.gather(*(chat(client) for _ in range(3)))
    for answer in answers:
        error = error_of(answer, 500)
        assert error["code"] == "model_load_failed"
        assert "no such family" in error["message"]
    assert engines.engine.state == "closed"
    engines.script.load_error = None
    assert (await chat(client)).status_code == 200


async def test_a_failed_swap_does_not_hurt_the_other_model(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    await chat(client)
    engines.script.load_error = ModelError("broken")
    error_of(await chat(client, model="org/other"), 500)
    engines.script.load_error = None
    assert (await chat(client)).status_code == 200
    assert engines.loads == ["main", "org/other", "main"]


async def test_a_defect_in_loading_does_not_hang_requests(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.load_error = RuntimeError("a bug")
    assert error_of(await chat(client), 500)["code"] == "internal_error"


async def test_a_restart_is_waited_through(client: httpx.AsyncClient, engines: FakeEngines) -> None:
    await chat(client)
    engine = engines.engine
    engine.state = "restarting"
    assert error_of(await client.get("/ready"), 503)["code"] == "model_loading"
    asking = asyncio.create_task(chat(client))
    await asyncio.sleep(0)
    engine.state = "ready"
    engine.restarted.set()
    assert (await asking).status_code == 200
    assert engines.loads == ["main"]


async def test_a_restart_that_takes_too_long_is_a_503(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    async with client_of(make_app(load_timeout=0.05)) as client:
        await chat(client)
        engines.engine.state = "restarting"
        assert error_of(await chat(client), 503)["code"] == "model_loading"


async def test_an_engine_that_gave_up_is_loaded_anew(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    await chat(client)
    engines.engine.state = "failed"
    assert (await chat(client)).status_code == 200
    assert engines.loads == ["main", "main"]


async def test_too_many_waiting_for_a_model_is_queue_full(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    engines.script.load_gate = asyncio.Event()
    async with client_of(make_app(max_queue=2)) as client:
        asking = [asyncio.create_task(chat(client)) for _ in range(2)]
        await waiting(client, 2)
        assert error_of(await chat(client), 503)["code"] == "queue_full"
        engines.script.load_gate.set()
        assert {(await task).status_code for task in asking} == {200}


async def test_shutdown_tells_those_who_wait_and_closes_the_engine(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    engines.script.load_gate = asyncio.Event()
    app = make_app()
    async with client_of(app) as client:
        asking = asyncio.create_task(chat(client))
        await engine_made(engines)
        await engines.engine.load_started.wait()
        await app.shared.models.close()
        assert error_of(await asking, 503)["code"] == "engine_closed"
        assert error_of(await chat(client), 503)["code"] == "engine_closed"
    assert engines.engine.state == "closed"


@pytest.mark.parametrize("path", ["no-template", "fake"])
async def test_a_model_without_a_template_says_so(
    make_app: MakeApp, engines: FakeEngines, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    engines.script.tokenizer_path = path
    async with client_of(make_app()) as client:
        response = await chat(client)
    warnings = [r.getMessage() for r in caplog.records if "no chat template" in r.getMessage()]
    assert len(warnings) == (path == "no-template")
    if path == "fake":
        assert response.status_code == 200
    else:
        error = error_of(response, 400)
        assert error["code"] == "chat_template_missing"
        assert "/v1/completions" in error["message"]
        assert "chat_template" in error["message"]


async def test_the_template_of_the_registry_wins(make_app: MakeApp, engines: FakeEngines) -> None:
    own = entry("main", chat_template="[{{ messages[0].content }}]")
    engines.script.tokenizer_path = "no-template"
    async with client_of(make_app(entries=[own])) as client:
        assert (await chat(client)).status_code == 200
    assert bytes(engines.engine.requests[0].prompt) == b"[hi]"
