"""Measure the latency that TLS, traces, JSON logs and the access log add to a stream together.

    python -m benchmarks.observed --cert FILE --key FILE [--json] [--rounds N]

Two servers run in this process, one with all of these and one with none, with an engine that emits
a token every few milliseconds. Requests to both are sent in turn. The key must fit the certificate;
the client trusts whatever the server shows. It needs the extra `traces`.
"""

import asyncio
import json
import logging
import ssl
import statistics
import tempfile
import time
from array import array
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from benchmarks.command import make_parser, print_figures
from benchmarks.front_end import HOST, InstantEngine
from benchmarks.paced_engine import TOKEN, WORD, make_stats
from benchmarks.report_format import Bar, Figures, Table
from benchmarks.runs import describe_machine
from engine.messages import Generate, Origin, Tokens
from engine.spec import ModelSpec, TargetSpec
from engine.text.detokenize import TokenBytes
from server.chat.echo import Echo
from server.chat.prepare import PreparedTexts
from server.cli.serve import Server, bind, http_config
from server.config.registry import ModelEntry, Registry
from server.config.settings import Settings
from server.http.app import create_app
from server.http.certificate import Certificate, read_certificate
from server.logs import access
from server.logs.formats import JsonFormat, TextFormat
from server.text.messages import TextFacts
from server.traces.spans import Traces

PROMPT = [TOKEN] * 8
REQUESTS = 40  # for each round and side
CHUNKS = 20  # of each answer
PAUSE_S = 0.004  # between two tokens
AT_MOST_MS = 2.0
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class SlowEngine(InstantEngine):
    """A substitute for `EngineClient` that notes when it emits each token."""

    def __init__(self) -> None:
        super().__init__()
        self.emitted: list[float] = []

    async def run(self, message: Generate, **_callbacks: Any) -> AsyncGenerator[Tokens, None]:
        request_id, prompt = message.request_id, message.prompt
        self.emitted = []
        for number in range(1, CHUNKS + 1):
            await asyncio.sleep(PAUSE_S)
            is_last = number == CHUNKS
            stats = make_stats(len(prompt), CHUNKS, CHUNKS, PAUSE_S) if is_last else None
            self.emitted.append(time.perf_counter())
            yield Tokens(
                request_id,
                0,
                (TOKEN,),
                WORD,
                origins=(Origin("target", 0, number),),
                finish="stop" if is_last else None,
                stats=stats,
            )


class NoText:
    """A substitute for `TextProcess`: the prompt is given, and preparing it is not measured."""

    def renew(self) -> None:
        """Do nothing: there is no process."""

    def rest(self) -> None:
        """Do nothing: there is no process."""

    async def load(self, folder: str, chat_template: str | None) -> TextFacts:
        return TextFacts(cast(TokenBytes, None), "none")

    async def call(self, function: Callable[..., Any], raw: bytes, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("only `prepare_texts` is called")

    async def call_on_model(self, *_: Any, **__: Any) -> Any:
        return PreparedTexts([array("q", PROMPT)], [Echo()], "", [], {})

    async def close(self) -> None:
        """Do nothing: there is no process."""


class EncodingExporter(SpanExporter):
    """An exporter that does all that one over HTTP does, but for the sending."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        encode_spans(spans).SerializeToString()
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Do nothing: there is no connection."""


@dataclass
class Side:
    """One server, its client's connection, and what was measured of it, in seconds."""

    engine: SlowEngine
    formatter: logging.Formatter
    access_level: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    first: list[float] = field(default_factory=list)  # from the request to the first token
    chunks: list[float] = field(default_factory=list)  # from the emission of a token


def main() -> None:
    arguments = make_parser(__doc__, takes_model=False)
    arguments.add_argument("--cert", type=Path, required=True, help="a certificate in PEM format")
    arguments.add_argument("--key", type=Path, required=True, help="its key")
    options = arguments.parse_args()
    certificate = read_certificate(options.cert, options.key)
    assert certificate is not None, "there is a file of one"
    print_figures(measure(certificate, options.rounds), options)


def measure(certificate: Certificate, rounds: int, requests: int = REQUESTS) -> Figures:
    """Measure both sides in turn; return the figures."""
    root, log = logging.getLogger(), logging.getLogger("understudy")
    with tempfile.TemporaryFile("w") as file:
        handler = logging.StreamHandler(file)
        root.addHandler(handler)
        log.setLevel(logging.INFO)
        loop_factory = http_config(_app(SlowEngine(), lambda _: None)).get_loop_factory()
        try:
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                sides = runner.run(_measure(certificate, handler, rounds, requests))
        finally:
            root.removeHandler(handler)
    return _make_figures(sides, rounds)


async def _measure(
    certificate: Certificate, handler: logging.Handler, rounds: int, requests: int
) -> dict[str, Side]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(EncodingExporter()))
    async with AsyncExitStack() as stack:
        plain = await _start(stack, None, lambda _: None)
        observed = await _start(stack, certificate, Traces(provider).record)
        sides = {"plain": plain, "observed": observed}
        for number in range(rounds + 1):  # the first one warms up
            for _ in range(requests):
                for side in sides.values():
                    handler.setFormatter(side.formatter)
                    logging.getLogger(access.LOGGER).setLevel(side.access_level)
                    await _ask(side)
            if number == 0:
                for side in sides.values():
                    side.first.clear()
                    side.chunks.clear()
    provider.shutdown()
    return sides


def _app(engine: SlowEngine, ended: Callable[..., None]) -> Any:
    model = ModelEntry("slow", ModelSpec("slow", TargetSpec("nowhere")), created=0)
    registry = Registry([model], model.id)
    return create_app(Settings(), registry, engine, text=NoText(), ended=ended)


async def _start(
    stack: AsyncExitStack, certificate: Certificate | None, ended: Callable[..., None]
) -> Side:
    """Start a server, connect to it, and return the side. `stack` ends both."""
    engine = SlowEngine()
    app = _app(engine, ended)
    listener = stack.enter_context(bind(HOST, 0))
    listener.listen()
    server = Server(http_config(app, certificate=certificate), app.shared, lambda _: None)
    serving = asyncio.create_task(server.serve(sockets=[listener]))

    async def end() -> None:
        server.should_exit = True
        await serving

    stack.push_async_callback(end)
    context: ssl.SSLContext | None = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(*listener.getsockname(), ssl=context)
    stack.callback(writer.close)
    is_observed = certificate is not None
    formatter = JsonFormat() if is_observed else TextFormat()
    return Side(engine, formatter, logging.INFO if is_observed else access.OFF, reader, writer)


async def _ask(side: Side) -> None:
    """Send a request, read its stream, and note how late each token came."""
    body = json.dumps({"prompt": PROMPT, "stream": True, "max_tokens": CHUNKS}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
        f"traceparent: {TRACEPARENT}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    began = time.perf_counter()
    side.writer.write(head.encode() + body)
    arrived: list[float] = []
    status = await side.reader.readline()
    assert status.startswith(b"HTTP/1.1 200"), status
    while True:
        line = await side.reader.readline()
        if line.startswith(b"data: {"):
            arrived.append(time.perf_counter())
        elif line.startswith(b"data: [DONE]"):
            break
        assert line, "the server closed the connection"
    await side.reader.readuntil(b"0\r\n\r\n")
    emitted = side.engine.emitted
    assert len(arrived) >= len(emitted) == CHUNKS, "each token has a chunk"
    side.first.append(arrived[0] - began - PAUSE_S)
    side.chunks += [at - then for at, then in zip(arrived, emitted, strict=False)]


def _make_figures(sides: dict[str, Side], rounds: int) -> Figures:
    first = {name: 1e3 * statistics.median(side.first) for name, side in sides.items()}
    chunk = {name: 1e3 * statistics.median(side.chunks) for name, side in sides.items()}
    added_first = first["observed"] - first["plain"]
    added_chunk = chunk["observed"] - chunk["plain"]
    return Figures(
        name="observed",
        title="Latency that TLS, traces, JSON logs and the access log add",
        values={"chunks": CHUNKS, "rounds": rounds},
        tables=[
            Table(
                "Medians, milliseconds",
                ["server", "requests", "until the first token", "from a token to its chunk"],
                [[name, len(side.first), first[name], chunk[name]] for name, side in sides.items()],
            )
        ],
        bars=[
            Bar("added until the first token", added_first, "<=", AT_MOST_MS, "ms"),
            Bar("added to a chunk", added_chunk, "<=", AT_MOST_MS, "ms"),
        ],
        machine=describe_machine(),
    )


if __name__ == "__main__":
    main()
