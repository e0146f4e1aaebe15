"""Tests of request ids and traces that go on at a peer, or at a replica."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, format_trace_id

from engine.errors import EngineDied
from server.logs.access import LOGGER
from server.traces.replicas import ReplicaTraces
from server.traces.spans import Traces
from tests.cluster.fleet import far, head
from tests.cluster.replicas import Near, front
from tests.cluster.test_peers import CHAT, answers
from tests.server.fake_engine import FakeEngines

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CONTEXT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


class Kept:
    """Traces whose spans are kept."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.traces = Traces(provider)

    def all(self) -> Sequence[ReadableSpan]:
        """Return all spans."""
        return self._exporter.get_finished_spans()

    def servers(self) -> list[ReadableSpan]:
        """Return the spans of whole requests."""
        return [span for span in self.all() if span.kind is SpanKind.SERVER]

    async def wait_for(self, count: int) -> list[ReadableSpan]:
        async with asyncio.timeout(10):
            while len(self.servers()) < count:
                await asyncio.sleep(0.01)
        return self.servers()


@pytest.mark.parametrize("context", [CONTEXT, {}])
async def test_the_span_at_a_peer_is_below_that_of_the_request(context: dict[str, str]) -> None:
    here, there = Kept(), Kept()
    async with (
        far(FakeEngines(), traces=there.traces) as peer,
        head(peer.url, traces=here.traces) as ours,
    ):
        await ours.until("ready")
        answer = await ours.client.post("/v1/chat/completions", json=CHAT, headers=context)
        (own,), (other,) = await here.wait_for(1), await there.wait_for(1)
        assert own.context is not None and other.parent is not None
        assert own.name == "chat main" and other.name == "text_completion main"
        assert other.parent.span_id == own.context.span_id
        assert other.parent.trace_id == own.context.trace_id
        assert (format_trace_id(own.context.trace_id) == TRACE) is bool(context)
        assert own.attributes is not None and other.attributes is not None
        name = "understudy.request_id"
        assert own.attributes[name] == other.attributes[name] == answer.headers["x-request-id"]
        for count in ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"):
            assert own.attributes[count] == other.attributes[count]
        assert own.attributes["http.response.status_code"] == 200


async def test_a_stream_that_moves_has_a_span_at_each_peer() -> None:
    here, there = Kept(), Kept()
    broken = replace(answers(), error=EngineDied("died"), error_after=4)
    async with (
        far(FakeEngines(broken), traces=there.traces) as first,
        far(FakeEngines(answers()), pass_ms=2000.0, traces=there.traces) as second,
        head(first.url, second.url, traces=here.traces) as ours,
    ):
        await ours.until("ready")
        async with asyncio.timeout(10):
            while not all(peer["state"] == "ready" for peer in await ours.status()):
                await ours.peers.wait_for_report(0.02)
        assert (await ours.client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        (own,), others = await here.wait_for(1), await there.wait_for(2)
        assert own.context is not None
        for span in others:
            assert span.parent is not None and span.parent.span_id == own.context.span_id
        outcomes = {str((span.attributes or {}).get("error.type")) for span in others}
        assert outcomes == {"engine_died", "None"}


async def test_a_server_without_traces_passes_the_clients_on() -> None:
    there = Kept()
    async with far(FakeEngines(), traces=there.traces) as peer, head(peer.url) as ours:
        await ours.until("ready")
        for headers in (CONTEXT, {"traceparent": "0" * 600}):
            await ours.client.post("/v1/chat/completions", json=CHAT, headers=headers)
        one, other = await there.wait_for(2)
        assert one.parent is not None and format_trace_id(one.parent.trace_id) == TRACE
        assert other.parent is None


async def test_the_span_at_a_replica_is_below_that_of_the_request() -> None:
    here, there, near = Kept(), Kept(), Near()
    observe = ReplicaTraces(there.traces).observe
    own_replica = await near.add(
        "a", replace(answers(), error=EngineDied("died"), error_after=4), observe=observe
    )
    async with front(near, traces=here.traces) as ours:
        await ours.until(1)
        asking = asyncio.create_task(
            ours.client.post("/v1/chat/completions", json=CHAT, headers=CONTEXT)
        )
        (lost, *_) = await there.wait_for(1)
        own_replica.engines.script.error = None
        answer = await asking
        (own,), (*_, other) = await here.wait_for(1), await there.wait_for(2)
        assert own.context is not None and own.attributes is not None
        assert format_trace_id(own.context.trace_id) == TRACE
        for span in (lost, other):
            assert span.name == "text_completion main" and span.attributes is not None
            assert span.parent is not None and span.parent.span_id == own.context.span_id
            name = "understudy.request_id"
            assert span.attributes[name] == own.attributes[name] == answer.headers["x-request-id"]
            assert not [name for name in span.attributes if name.startswith(("http", "url"))]
        assert (lost.attributes or {})["error.type"] == "engine_died"
        attributes = other.attributes or {}
        assert attributes["gen_ai.response.finish_reasons"] == ("stop",)
        assert {span.name for span in there.all()} > {"queue", "prefill", "decode"}


async def test_log_lines_of_both_servers_have_the_clients_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    async with far(FakeEngines()) as peer, head(peer.url) as ours:
        await ours.until("ready")
        headers = {"x-request-id": "from-the-client"}
        await ours.client.post("/v1/chat/completions", json=CHAT, headers=headers)
        async with asyncio.timeout(10):
            while sum("POST" in record.getMessage() for record in caplog.records) < 2:
                await asyncio.sleep(0.01)
        lines = [record for record in caplog.records if "POST" in record.getMessage()]
        assert {"generate" in record.getMessage() for record in lines} == {True, False}
        for record in lines:
            assert "from-the-client" in str(vars(record))
