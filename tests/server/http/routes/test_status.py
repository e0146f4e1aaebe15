"""GET /v1/status: the state of models, queue and engine, once and as a stream."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from engine.errors import ModelError
from engine.messages import LoadProgress, StateStats
from engine.process.engine_process import State
from server.errors import IN_THE_LOG
from server.metrics.passes import PassHistory
from server.metrics.wait_status import Wait
from tests.server.conftest import MakeApp, chat, client_of, error_of, serving
from tests.server.fake_engine import FakeEngines
from tests.server.metrics.test_prometheus import PASS, scrape


async def status_of(client: httpx.AsyncClient) -> dict[str, Any]:
    answer = await client.get("/v1/status")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_reading_the_status_loads_no_model(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    found = await status_of(client)
    assert found["object"] == "status" and found["state"] == "running" and found["version"]
    assert found["models"] == [
        {"id": "main", "aliases": ["gpt-x"], "default": True, "state": "unloaded"},
        {"id": "org/other", "aliases": [], "default": False, "state": "unloaded"},
    ]
    assert found["queue"] == {"waiting_for_model": 0, "waiting_for_pass": 0, "in_engine": 0}
    assert found["engine"] is None
    assert engines.made == []


async def test_a_load_is_shown_with_its_latest_step(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.load_gate = asyncio.Event()
    asking = asyncio.create_task(chat(client))
    while not engines.made:
        await asyncio.sleep(0)
    main, other = (await status_of(client))["models"]
    assert (main["state"], other["state"]) == ("loading", "unloaded") and "step" not in main
    engines.engine.on_progress(LoadProgress("packing", 3, 8))
    found = await status_of(client)
    assert found["models"][0]["step"] == {
        "what": "packing",
        "done": 3,
        "total": 8,
        "unit": "bytes",
        "per_second": 0,
        "seconds_left": None,
    }
    assert found["queue"]["waiting_for_model"] == 1
    engines.script.load_gate.set()
    await asking
    main = (await status_of(client))["models"][0]
    assert main["state"] == "loaded" and "step" not in main
    assert main["context"] == 1024 and main["draft"] == "none"
    assert main["tiers"] == {"ram": 5, "resident": 3} and main["plan"] == "no model at all"


async def test_the_load_before_the_first_request_is_no_request_that_waits(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    engines.script.load_gate = asyncio.Event()
    app = make_app()
    async with client_of(app) as client:
        models, main = app.shared.models, app.shared.registry.find(None)
        preloading = asyncio.create_task(models.preload(main))
        while not engines.made:
            await asyncio.sleep(0)
        assert (await status_of(client))["queue"]["waiting_for_model"] == 0
        wait = Wait()

        async def borrow() -> None:
            async with models.borrow(main, wait):
                pass

        borrowing = asyncio.create_task(borrow())
        while not models.num_waiting:
            await asyncio.sleep(0)
        assert (await status_of(client))["queue"]["waiting_for_model"] == 1
        assert str(wait) == "loading main, position 1"
        engines.script.load_gate.set()
        assert (await preloading).model_id == "main"
        await borrowing


async def test_the_limit_of_the_link_is_what_it_has_reached(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    """A machine that is busy while a model is loaded measures too little."""
    await chat(client)

    async def limit() -> float:
        engine: dict[str, Any] = (await status_of(client))["engine"]
        assert engine["link_gbps"] <= engine["link_limit_gbps"]
        found: float = engine["link_limit_gbps"]
        return found

    assert await limit() == 12.5
    slow = replace(PASS, link_gbps=5.0, link_bytes=10**9, link_ms=100.0)
    for stats, want in (
        (slow, 12.5),
        (replace(slow, link_gbps=15.0, link_ms=50.0), 20.0),
        (slow, 20.0),
        (replace(slow, link_bytes=10**6, link_ms=0.01), 20.0),  # too short to be exact
    ):
        engines.engine.on_pass(stats)
        assert await limit() == want


async def test_a_dead_engine_restarts_or_is_unloaded(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    await chat(client)
    states: dict[State, str] = {"restarting": "restarting", "failed": "unloaded"}
    for state, shown in states.items():
        engines.engine.state = state
        found = await status_of(client)
        assert found["models"][0]["state"] == shown
        assert found["engine"] is None


async def test_the_figures_are_those_of_the_metrics(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    await chat(client)
    engines.engine.on_pass(PASS)
    engines.engine.on_pass(PASS)
    found, series = await status_of(client), await scrape(client)
    engine, total = found["engine"], found["engine"]["total"]
    model = {"model": "main"}
    assert total["passes"] == series("pass_seconds_count", **model) == 2
    assert total["seconds"] == series("pass_seconds_sum", **model)
    assert total["tokens"] == series("pass_tokens_total", **model)
    assert total["link_bytes"] == series("link_bytes_total", **model)
    for cause, seconds in total["stall_seconds"].items():
        assert seconds > 0 and seconds == series("stall_seconds_total", cause=cause, **model)
    for name in ("kv_pages", "kv_pages_used"):
        assert engine[name] == series(name, **model) != 0
    for name in ("link", "link_limit"):
        assert engine[f"{name}_gbps"] * 1e9 == series(f"{name}_bytes_per_second", **model) != 0
    assert found["queue"]["waiting_for_pass"] == series("sequences_waiting") == 3


async def test_states_of_recurrent_layers_are_shown_where_there_are_any(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    await chat(client)
    engines.engine.on_pass(PASS)
    assert (await status_of(client))["engine"]["states"] is None
    names = ("states", "states_used", "states_used_bytes", "state_hits_total")
    series = await scrape(client)
    assert not any(series.labels(name) for name in names)
    engines.script.num_states = 8
    await chat(client, model="org/other")
    empty = {"sequences": 0, "prefixes": 0, "bytes_used": 0, "hits": 0, "evictions": 0}
    assert (await status_of(client))["engine"]["states"] == {"room": 8, **empty}
    engines.engine.on_pass(replace(PASS, states=StateStats(2, 4, 600, hits=1, evictions=3)))
    engines.engine.on_pass(replace(PASS, states=StateStats(1, 5, 500, hits=1, evictions=0)))
    states, series = (await status_of(client))["engine"]["states"], await scrape(client)
    kept = {"room": 8, "sequences": 1, "prefixes": 5, "bytes_used": 500}
    assert states == {**kept, "hits": 2, "evictions": 3}
    model = {"model": "org/other"}
    assert series("states", **model) == 8 and series("states_used_bytes", **model) == 500
    assert series("states_used", of="sequences", **model) == 1
    assert series("states_used", of="prefixes", **model) == 5
    assert series("state_hits_total", **model) == 2
    assert series("state_evictions_total", **model) == 3


def test_rates_are_those_of_the_last_seconds() -> None:
    now = 100.0
    history = PassHistory(lambda: now)
    assert history.recent()["tokens_per_second"] == 0
    for _ in range(8):  # of 2.25 s each
        now += 2.25
        history.add(PASS)
    recent = history.recent()
    assert recent["passes"] == 5 and recent["seconds"] == 5 * 2.25
    assert recent["tokens_per_second"] == pytest.approx(7 / 2.25)
    assert recent["tokens_per_pass"] == 7
    assert recent["link_gbps"] == pytest.approx(5 / 2.25)
    assert recent["stall_seconds"] == {"copy": 5.0, "draft": 1.25, "host": 0.625}
    now += 5
    assert history.recent()["tokens_per_second"] < recent["tokens_per_second"] / 1.3
    now += 5.1
    assert history.recent()["passes"] == 0 and history.recent()["tokens_per_second"] == 0
    assert history.sums.passes == 8


async def test_a_watch_sends_the_status_until_the_server_stops(make_app: MakeApp) -> None:
    app = make_app()
    async with (
        serving(app) as url,
        httpx.AsyncClient(base_url=url) as client,
        client.stream("GET", "/v1/status?watch") as stream,
    ):
        assert stream.headers["content-type"].startswith("text/event-stream")
        data = (line[6:] async for line in stream.aiter_lines() if line.startswith("data: "))
        assert json.loads(await anext(data))["state"] == "running"
        app.shared.in_flight.stop()
        assert [json.loads(line)["state"] async for line in data] == ["stopping"]


async def test_a_watch_that_its_client_leaves_ends(make_app: MakeApp) -> None:
    app = make_app()
    async with serving(app) as url, httpx.AsyncClient(base_url=url) as client:
        async with client.stream("GET", "/v1/status?watch") as stream:
            await anext(stream.aiter_lines())
        async with asyncio.timeout(10):
            await app.shared.in_flight.all_ended(10)


@pytest.mark.parametrize("query", ["?watch=0", "?watch=false", ""])
async def test_without_a_watch_there_is_one_answer(client: httpx.AsyncClient, query: str) -> None:
    assert (await client.get(f"/v1/status{query}")).json()["object"] == "status"
    assert (await client.get(f"/status{query}")).json()["object"] == "status"


async def test_head_opens_no_stream(client: httpx.AsyncClient) -> None:
    answer = await client.head("/v1/status?watch")
    assert answer.headers["content-type"] == "application/json" and answer.content == b""


async def test_the_status_needs_the_key(make_app: MakeApp) -> None:
    async with client_of(make_app(keys=("secret",))) as client:
        assert error_of(await client.get("/v1/status"), 401)["code"] == "invalid_api_key"


async def test_a_failed_load_is_shown_until_the_next_one(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    async def error() -> str | None:
        found: dict[str, str] = (await status_of(client))["models"][0]
        return found.get("error")

    engines.script.load_error = ModelError("config.json: no such family")
    await chat(client)
    assert await error() == "config.json: no such family"
    engines.script.load_error = ValueError("what only the log may have")
    await chat(client)
    assert await error() == IN_THE_LOG
    engines.script.load_error = None
    await chat(client)
    assert await error() is None
