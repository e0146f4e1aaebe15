"""Tests of the traces of requests, with an exporter that keeps the spans in memory."""

import asyncio
import sys
from collections.abc import Mapping

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id

from engine.errors import PassFailed
from server.cli.serve import open_traces
from server.config.files import ConfigError
from server.config.registry import Registry
from server.config.settings import Settings
from server.http.app import create_app
from server.http.auth import ApiKeys
from server.metrics.measurement import MOST_PASSES
from server.traces.exporting import export_traces
from server.traces.spans import Traces
from tests.server.conftest import chat, client_of, complete, entry
from tests.server.fake_engine import FakeEngines
from tests.server.fake_text import FakeText

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CANARY = "canary-7f3a"


class Traced:
    """A server whose spans are kept."""

    def __init__(self, engines: FakeEngines, keys: tuple[str, ...] = ()) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.app = create_app(
            Settings(),
            Registry([entry("main")], "main", strict=True),
            engines,
            keys=ApiKeys(keys),
            text=FakeText(),
            ended=Traces(provider).record,
        )

    def take(self) -> dict[str, ReadableSpan]:
        """Return the spans since the last call, by name."""
        spans = {span.name: span for span in self._exporter.get_finished_spans()}
        self._exporter.clear()
        return spans


@pytest.fixture
def traced(engines: FakeEngines) -> Traced:
    return Traced(engines)


def attributes_of(span: ReadableSpan) -> Mapping[str, object]:
    assert span.attributes is not None
    return dict(span.attributes)


async def test_a_request_is_a_span_with_its_phases(traced: Traced, engines: FakeEngines) -> None:
    async with client_of(traced.app) as client:
        response = await chat(client, max_tokens=9, temperature=0.5, seed=1)
    usage, spans = response.json()["usage"], traced.take()
    assert set(spans) == {"chat main", "queue", "prefill", "decode"}
    root = spans["chat main"]
    assert root.kind is SpanKind.SERVER and root.parent is None
    found = attributes_of(root)
    expected = {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "main",
        "gen_ai.response.id": response.json()["id"],
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": 9,
        "gen_ai.usage.cache_read.input_tokens": engines.script.num_prefilled,
        "gen_ai.response.finish_reasons": ("length",),
        "understudy.request_id": response.headers["x-request-id"],
        "understudy.resumed": 0,
    }
    assert {name: found.get(name) for name in expected} == expected
    times = [
        (spans[name].start_time, spans[name].end_time) for name in ("queue", "prefill", "decode")
    ]
    assert times[0][0] == root.start_time and times[2][1] == root.end_time
    assert times[0][1] == times[1][0] and times[1][1] == times[2][0]
    passes = spans["decode"].events
    assert [event.name for event in passes] == ["pass"] * 3
    assert [event.attributes["understudy.tokens"] for event in passes if event.attributes] == [
        3,
        3,
        3,
    ]
    for name in ("queue", "prefill", "decode"):
        parent = spans[name].parent
        assert parent is not None and root.context is not None
        assert parent.span_id == root.context.span_id


@pytest.mark.parametrize(
    ("headers", "is_continued"),
    [
        ([("traceparent", f"00-{TRACE}-{PARENT}-01")], True),
        ([("TraceParent", f"00-{TRACE}-{PARENT}-01"), ("tracestate", "a=b")], True),
        ([("traceparent", f"00-{TRACE}-{PARENT}-00")], None),  # its sender keeps no trace
        ([("traceparent", "nonsense")], False),
        ([("traceparent", f"00-{'0' * 32}-{PARENT}-01")], False),
        ([("traceparent", f"00-{TRACE}-{PARENT}-01-more")], False),
        ([("traceparent", f"00-{TRACE}-{PARENT}-01")] * 2, False),
        ([("traceparent", "00-" + "f" * 9000)], False),
    ],
)
async def test_the_context_of_a_request_is_continued_unless_it_is_malformed(
    traced: Traced, headers: list[tuple[str, str]], is_continued: bool | None
) -> None:
    async with client_of(traced.app, headers=headers) as client:
        assert (await complete(client)).status_code == 200
    spans = traced.take()
    if is_continued is None:
        assert not spans
        return
    root = spans["text_completion main"]
    assert root.context is not None
    assert (format_trace_id(root.context.trace_id) == TRACE) == is_continued
    assert (root.parent is not None) == is_continued
    if root.parent is not None:
        assert format_span_id(root.parent.span_id) == PARENT


async def test_a_restart_of_the_engine_is_a_span(traced: Traced, engines: FakeEngines) -> None:
    engines.script.restart = asyncio.Event()
    async with client_of(traced.app) as client:
        asking = asyncio.create_task(chat(client))
        while not (engines.made and engines.engine.num_lost):
            await asyncio.sleep(0)
        engines.script.restart.set()
        assert (await asking).status_code == 200
    spans = traced.take()
    assert attributes_of(spans["chat main"])["understudy.resumed"] == 1
    restart, decode = spans["engine restart"], spans["decode"]
    assert restart.start_time and restart.end_time and decode.end_time
    assert restart.start_time <= restart.end_time <= decode.end_time


async def test_failures_have_the_status_that_the_client_saw(
    traced: Traced, engines: FakeEngines
) -> None:
    async with client_of(traced.app) as client:
        await chat(client, temperature="hot")
        refused = traced.take()
        engines.script.error = PassFailed("gone", "weights_unreadable")
        engines.script.error_after = 1
        await chat(client, stream=True)
        failed = traced.take()
        await client.get("/health")
    assert attributes_of(refused["chat"])["error.type"] == "invalid_type"
    assert refused["chat"].status.status_code is StatusCode.UNSET, "the client was at fault"
    root = failed["chat main"]
    assert attributes_of(root)["http.response.status_code"] == 500
    assert root.status.status_code is StatusCode.ERROR
    assert not traced.take(), "a health check is no trace"


async def test_spans_are_bounded_and_have_no_text(engines: FakeEngines) -> None:
    engines.script.burst = 1
    engines.script.answers = lambda choice: tuple((CANARY * 20).encode())
    traced = Traced(engines, keys=(CANARY,))
    async with client_of(traced.app, headers={"authorization": f"Bearer {CANARY}"}) as client:
        message = {"role": "user", "content": CANARY}
        assert (await chat(client, messages=[message], stop=[CANARY * 30])).status_code == 200
    spans = traced.take()
    assert len(spans["decode"].events) == MOST_PASSES
    for span in spans.values():
        assert CANARY not in span.to_json()


def test_settings_of_traces_that_are_not_possible_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert open_traces(Settings(), {}) is None
    with pytest.raises(ConfigError, match="OTEL_TRACES_EXPORTER: 'zipkin' is not supported"):
        export_traces({"OTEL_TRACES_EXPORTER": "zipkin"})
    with pytest.raises(ConfigError, match="OTEL_EXPORTER_OTLP_PROTOCOL: 'grpc' is not supported"):
        export_traces({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    export_traces({"OTEL_TRACES_EXPORTER": "none"}).close()
    monkeypatch.setitem(sys.modules, "server.traces.exporting", None)
    with pytest.raises(ConfigError, match=r"pip install 'understudy\[traces\]'"):
        open_traces(Settings(traces=True), {})
