"""Tests of GET /metrics, of the log line of an answer, and of requests that choose a draft."""

import asyncio
import json
import logging
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.errors import EngineDied, ModelError, PassFailed
from engine.kv_disk_stats import KVDiskStats
from engine.messages import Audited, PassStats, WeightsChecked
from server.metrics.prometheus import Metrics
from server.models.statistics import EngineStatistics
from server.version import version
from tests.server.conftest import MakeApp, chat, client_of, complete, error_of, serving
from tests.server.fake_engine import FakeEngines

PASS = PassStats(
    rows=20,
    sequences=2,
    accepted=7,
    draft_ms=250.0,
    pass_ms=2000.0,
    link_gbps=2.5,
    free_pages=60,
    waiting=3,
    prompt_rows=5,
    drafted_by=(("subspec", 12), ("ngram", 1)),
    accepted_by=(("subspec", 4),),
    ahead_ms=500.0,
    copy_stall_ms=1000.0,
    host_ms=125.0,
    link_bytes=5_000_000_000,
    undrafted=1,
)


class Series:
    """The series of one scrape, found by name and labels."""

    def __init__(self, text: str) -> None:
        self.samples = [
            sample
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name.startswith("understudy_")
        ]

    def __call__(self, name: str, **labels: str) -> float | None:
        found = [s.value for s in self.samples if (s.name, s.labels) == (name_of(name), labels)]
        assert len(found) <= 1
        return found[0] if found else None

    def labels(self, name: str) -> list[dict[str, str]]:
        return [sample.labels for sample in self.samples if sample.name == name_of(name)]


def name_of(name: str) -> str:
    return f"understudy_{name}"


async def scrape(client: httpx.AsyncClient) -> Series:
    response = await client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert response.headers["x-request-id"]
    return Series(response.text)


def outcomes(series: Series) -> dict[tuple[str, str], float]:
    """Return the numbers of requests by (route, outcome), for any model."""
    return {
        (labels["route"], labels["outcome"]): series("requests_total", **labels) or 0.0
        for labels in series.labels("requests_total")
    }


async def test_reading_metrics_works_without_a_model_and_loads_none(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    series = await scrape(client)
    assert series("model_loaded", model="main") == 0
    assert series("model_loaded", model="org/other") == 0
    assert series("requests_waiting") == 0
    assert series.labels("kv_pages") == []
    assert engines.made == []


async def test_reading_metrics_needs_the_key(make_app: MakeApp) -> None:
    async with client_of(make_app(keys=("secret",))) as client:
        refused = error_of(await client.get("/metrics"), 401)
        assert refused["code"] == "invalid_api_key"
        client.headers["authorization"] = "Bearer secret"
        await scrape(client)


async def test_metrics_answers_only_get(client: httpx.AsyncClient) -> None:
    error_of(await client.post("/metrics"), 405)


async def test_an_answer_is_counted_with_its_tokens_and_times(client: httpx.AsyncClient) -> None:
    usage = (await chat(client)).json()["usage"]
    await chat(client, max_tokens=4)
    await complete(client, stream=True, max_tokens=4)
    await complete(client, n=2, max_tokens=5)
    series = await scrape(client)
    assert outcomes(series) == {
        ("/chat/completions", "stop"): 1,
        ("/chat/completions", "length"): 1,
        ("/completions", "length"): 2,
    }
    of_chat = {"route": "/chat/completions", "model": "main"}
    assert series("time_to_first_token_seconds_count", **of_chat) == 2
    assert series("request_seconds_count", **of_chat) == 2
    first = series("time_to_first_token_seconds_sum", **of_chat)
    whole = series("request_seconds_sum", **of_chat)
    assert first is not None and whole is not None and 0 < first <= whole
    completion = usage["completion_tokens"] + 4 + 4 + 2 * 5
    assert series("completion_tokens_total", model="main") == completion
    assert series("prompt_tokens_total", model="main") == 2 * usage["prompt_tokens"] + 2 + 2
    assert series("cached_prompt_tokens_total", model="main") == 4 * 2


async def test_aliases_and_unknown_models_get_no_series(
    client: httpx.AsyncClient,
) -> None:
    await chat(client, model="gpt-x")
    await chat(client, model="whatever-a-client-writes")
    series = await scrape(client)
    assert {labels["model"] for labels in series.labels("requests_total")} == {"main", ""}
    assert outcomes(series)[("/chat/completions", "model_not_found")] == 1


async def test_requests_that_fail_are_counted_by_their_code(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    async with client_of(make_app(keys=("secret",))) as client:
        await chat(client)
        client.headers["authorization"] = "Bearer secret"
        await chat(client, temperature="hot")
        await client.post("/v1/completions", content=b"{")
        engines.script.load_error = ModelError("no weights")
        await chat(client)
        engines.script.load_error = None
        engines.script.refuse = EngineDied("gone")
        await chat(client)
        engines.script.refuse = None
        engines.script.error = PassFailed("unreadable", "weights_unreadable")
        await chat(client, stream=True)
        engines.script.error_after = 1
        await chat(client, stream=True)
        engines.script.error = RuntimeError("a bug")
        found = outcomes(await scrape(client))
    assert found == {
        ("/chat/completions", "http_401"): 1,
        ("/chat/completions", "invalid_type"): 1,
        ("/completions", "invalid_json"): 1,
        ("/chat/completions", "model_load_failed"): 1,
        ("/chat/completions", "engine_died"): 1,
        ("/chat/completions", "weights_unreadable"): 2,
    }


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_is_counted(
    make_app: MakeApp, engines: FakeEngines, stream: bool
) -> None:
    engines.script.pause = asyncio.Event()
    async with serving(make_app()) as url, httpx.AsyncClient(base_url=url) as client:
        asking = asyncio.create_task(chat(client, stream=stream))
        while not (engines.made and engines.engine.request_started.is_set()):
            await asyncio.sleep(0)
        asking.cancel()
        await engines.engine.request_closed.wait()
        found: dict[tuple[str, str], float] = {}
        while not found:
            found = outcomes(await scrape(client))
        series = await scrape(client)
    assert found == {("/chat/completions", "client_left"): 1}
    assert series.labels("request_seconds_count") == []


async def test_tokens_of_a_client_that_left_are_counted(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    engines.script.pause = asyncio.Event()
    async with serving(make_app()) as url, httpx.AsyncClient(base_url=url) as client:
        body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.aiter_lines()
            text = ""
            while text != "Hello there.":  # all but the end of the sequence, which is held back
                line = await anext(lines)
                if line.startswith("data: "):
                    text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
        await engines.engine.request_closed.wait()
        series = await scrape(client)
        while not series.labels("requests_total"):
            series = await scrape(client)
    assert outcomes(series) == {("/chat/completions", "client_left"): 1}
    assert series("completion_tokens_total", model="main") == len("Hello there.")
    assert series("prompt_tokens_total", model="main") == len(engines.engine.requests[0].prompt)
    assert series("cached_prompt_tokens_total", model="main") == engines.script.num_prefilled


async def test_tokens_are_counted_that_nobody_reads(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    """The best of several choices is shown last: until then no token is written."""
    engines.script.pause = asyncio.Event()
    async with serving(make_app()) as url, httpx.AsyncClient(base_url=url) as client:
        asking = asyncio.create_task(complete(client, n=1, best_of=2))
        while not (engines.made and engines.engine.num_paused):
            await asyncio.sleep(0)
        asking.cancel()
        await engines.engine.request_closed.wait()
        series = await scrape(client)
        while not series.labels("requests_total"):
            series = await scrape(client)
    assert series("completion_tokens_total", model="main") == 2 * len("Hello there.")


async def test_tokens_of_an_answer_that_fails_are_counted(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.error = PassFailed("unreadable", "weights_unreadable")
    engines.script.error_after = 2
    error_of(await chat(client), 500)
    series = await scrape(client)
    assert series("completion_tokens_total", model="main") == 2 * engines.script.burst
    assert series("prompt_tokens_total", model="main") == len(engines.engine.requests[0].prompt)


async def test_waits_and_times_per_token_are_measured(client: httpx.AsyncClient) -> None:
    await chat(client)
    await chat(client, max_tokens=1)
    series = await scrape(client)
    of_chat = {"route": "/chat/completions", "model": "main"}
    assert series("queue_seconds_count", **of_chat) == 2
    assert series("time_per_output_token_seconds_count", **of_chat) == 1
    assert series("build_info", version=version(if_not_installed="unknown")) == 1


async def test_passes_are_counted_by_kind_source_and_cause(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    await chat(client)
    engines.engine.on_pass(PASS)
    engines.engine.on_pass(PASS)
    series = await scrape(client)
    expected: dict[str, dict[tuple[tuple[str, str], ...], float]] = {
        "pass_seconds_count": {(): 2},
        "pass_seconds_sum": {(): 4},
        "pass_tokens_total": {(): 14},
        "pass_rows_total": {(("kind", "prompt"),): 10, (("kind", "tree"),): 30},
        "drafted_rows_total": {(("source", "subspec"),): 24, (("source", "ngram"),): 2},
        "accepted_rows_total": {(("source", "subspec"),): 8},
        "undrafted_sequences_total": {(): 2},
        "draft_seconds_total": {(("when", "visible"),): 0.5, (("when", "ahead"),): 1},
        "stall_seconds_total": {
            (("cause", "copy"),): 2,
            (("cause", "draft"),): 0.5,
            (("cause", "host"),): 0.25,
        },
        "link_bytes_total": {(): 10e9},
        "link_bytes_per_second": {(): 2.5e9},
        "link_limit_bytes_per_second": {(): 12.5e9},
        "link_bits_per_weight": {(): 7.5},
        "kv_pages": {(): 100},
        "kv_pages_used": {(): 40},
        "requests_in_engine": {(): 0},
    }
    for name, values in expected.items():
        assert len(series.labels(name)) == len(values), name
        for labels, value in values.items():
            assert series(name, model="main", **dict(labels)) == value, (name, labels)
    assert series("sequences_waiting") == 3


async def test_damaged_weights_are_counted_from_0(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    await chat(client)
    series = await scrape(client)
    assert series("recheck_bytes_total", model="main") == 0
    for repaired in ("yes", "no"):
        assert series("damaged_units_total", model="main", repaired=repaired) == 0
    engines.engine.on_check(WeightsChecked(8192, 2, 0))
    engines.engine.on_check(WeightsChecked(4096, 0, 1))
    series = await scrape(client)
    assert series("recheck_bytes_total", model="main") == 12288
    assert series("damaged_units_total", model="main", repaired="yes") == 2
    assert series("damaged_units_total", model="main", repaired="no") == 1


async def test_kv_on_disk_is_counted_from_0(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    await chat(client)
    names = ("hits", "tokens_read", "written_bytes", "dropped", "damaged")
    series = await scrape(client)
    assert [series(f"kv_disk_{name}_total", model="main") for name in names] == [0] * 5
    engines.engine.on_kv_disk(KVDiskStats(4096, 1, 128, 4096, 0, 1))
    engines.engine.on_kv_disk(KVDiskStats(8192, 1, 64, 4096, 3, 0))
    series = await scrape(client)
    assert [series(f"kv_disk_{name}_total", model="main") for name in names] == [2, 192, 8192, 3, 1]
    assert series("kv_disk_bytes") == 8192


async def test_audits_and_restarts_are_counted_from_0(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    await chat(client)
    series = await scrape(client)
    for name in ("audit_positions", "audit_mismatches", "engine_restarts", "streams_resumed"):
        assert series(f"{name}_total", model="main") == 0
    engines.engine.on_audit(Audited(40, 0))
    engines.engine.on_audit(Audited(20, 3))
    engines.engine.on_restart()
    for _ in range(2):
        engines.engine.on_resume()
    series = await scrape(client)
    assert series("audit_positions_total", model="main") == 60
    assert series("audit_mismatches_total", model="main") == 3
    assert series("engine_restarts_total", model="main") == 1
    assert series("streams_resumed_total", model="main") == 2


async def test_counts_outlive_a_swap_and_gauges_follow_the_loaded_model(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    await chat(client)
    engines.engine.on_pass(PASS)
    await chat(client, model="org/other")
    series = await scrape(client)
    assert series("pass_seconds_count", model="main") == 1
    assert series("model_loaded", model="main") == 0
    assert series("model_loaded", model="org/other") == 1
    assert series.labels("kv_pages") == [{"model": "org/other"}]
    assert series("kv_pages_used", model="org/other") == 0
    assert series("sequences_waiting") == 0


async def test_waiting_requests_are_reported_while_a_model_loads(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.load_gate = asyncio.Event()
    asking = [asyncio.create_task(chat(client)) for _ in range(3)]
    while not engines.made:
        await asyncio.sleep(0)
    await engines.engine.load_started.wait()
    series = await scrape(client)
    assert series("requests_waiting") == 3
    assert series("model_loaded", model="main") == 0
    engines.script.load_gate.set()
    for task in asking:
        assert (await task).status_code == 200
    assert len(engines.made) == 1


async def test_two_apps_count_separately(make_app: MakeApp) -> None:
    async with client_of(make_app()) as one, client_of(make_app()) as other:
        await chat(one)
        assert outcomes(await scrape(one)) != {}
        assert outcomes(await scrape(other)) == {}


async def test_the_log_has_a_line_with_the_figures_of_each_answer(
    make_app: MakeApp, engines: FakeEngines, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "understudy")
    engines.script.pause = asyncio.Event()
    async with client_of(make_app()) as client:
        asking = asyncio.create_task(chat(client))
        while not (engines.made and engines.engine.request_started.is_set()):
            await asyncio.sleep(0)
        engines.engine.on_pass(PASS)
        engines.script.pause.set()
        assert (await asking).status_code == 200
    lines = [record.getMessage() for record in caplog.records]
    (answer,) = [line for line in lines if "chatcmpl-" in line]
    for words in ("13 tokens in 5 passes (2.6 a pass)", "tokens/s", "link 2.22 of 12.50 GB/s"):
        assert words in answer
    (of_pass,) = [line for line in lines if "pass:" in line]
    assert of_pass == (
        "main: pass: 20 rows (5 of prompts) of 2 sequences, 7 tokens, 4 of 13 drafted rows "
        "accepted, draft 250.0 ms (and 500.0 ahead), pass 2000.0 ms, waited 1000.0 for weights, "
        "host 125.0, link 2.50 of 12.50 GB/s, 60 free pages, 3 waiting"
    )


def test_a_slow_link_is_shown_in_smaller_units(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "understudy")
    EngineStatistics("main", Metrics()).passed(replace(PASS, link_gbps=0.0044))
    assert "link 4.4 MB/s of " in caplog.text


# -- the field `speculation` of a request


@pytest.mark.parametrize(
    ("asked", "method", "max_rows"),
    [
        (None, None, None),
        ({}, None, None),
        ({"method": "auto"}, None, None),
        ({"method": "none"}, "none", None),
        ({"method": "ngram", "max_rows": 1}, "ngram", 1),
        ({"method": "subspec", "max_rows": 8.0, "unknown": 1}, "subspec", 8),
    ],
)
async def test_a_request_chooses_its_drafting_method(
    client: httpx.AsyncClient,
    engines: FakeEngines,
    asked: Any,
    method: str | None,
    max_rows: int | None,
) -> None:
    for response in (
        await chat(client, speculation=asked),
        await complete(client, speculation=asked),
    ):
        assert response.status_code == 200, response.text
    for request in engines.engine.requests:
        assert (request.speculation.method, request.speculation.max_rows) == (method, max_rows)


@pytest.mark.parametrize(
    ("asked", "param", "code"),
    [
        ("none", "speculation", "invalid_type"),
        ([], "speculation", "invalid_type"),
        ({"method": 5}, "speculation.method", "invalid_type"),
        ({"method": ""}, "speculation.method", "invalid_value"),
        ({"method": "x" * 65}, "speculation.method", "invalid_value"),
        ({"method": "specexec"}, "speculation.method", "invalid_value"),
        ({"method": "magic"}, "speculation.method", "invalid_value"),
        ({"max_rows": 0}, "speculation.max_rows", "invalid_value"),
        ({"max_rows": 2.5}, "speculation.max_rows", "invalid_type"),
        ({"max_rows": True}, "speculation.max_rows", "invalid_type"),
        ({"max_rows": "8"}, "speculation.max_rows", "invalid_type"),
    ],
)
async def test_an_invalid_speculation_is_refused_with_its_field(
    client: httpx.AsyncClient, engines: FakeEngines, asked: Any, param: str, code: str
) -> None:
    for response in (
        await chat(client, speculation=asked),
        await complete(client, speculation=asked),
    ):
        error = error_of(response, 400)
        assert (error["param"], error["code"]) == (param, code), error


async def test_a_method_that_is_not_loaded_is_refused(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.draft_methods = ("subspec", "recycling")
    error = error_of(await chat(client, speculation={"method": "ngram"}), 400)
    assert error["message"] == (
        "'speculation.method' is 'ngram', which the model 'main' has not loaded. "
        "Available: auto, none, subspec, recycling."
    )


async def test_the_official_client_can_send_a_speculation(
    openai_client: openai.AsyncOpenAI, engines: FakeEngines
) -> None:
    await openai_client.chat.completions.create(
        model="main",
        messages=[{"role": "user", "content": "hi"}],
        extra_body={"speculation": {"method": "none"}},
    )
    assert engines.engine.requests[0].speculation.method == "none"
