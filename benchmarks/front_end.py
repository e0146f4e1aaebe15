"""Measure the latency that the front end adds to a chat with 20 messages and 10 tools.

    python -m benchmarks.front_end [--json]

The real server answers over loopback, with an engine that answers at once. All of a request's time
is then spent in the front end: HTTP, validation of the body, chat template, tokenizer, and the
answer's way back. The client runs in the same process and only writes and reads bytes.
"""

import asyncio
import contextlib
import json
import statistics
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import uvicorn

from benchmarks.command import make_parser, print_figures
from benchmarks.paced_engine import TOKEN, WORD, PacedEngine, Schedule, make_stats
from benchmarks.report_format import Bar, Figures, Table
from benchmarks.runs import describe_machine
from engine.messages import Generate, ModelInfo, Origin, Tokens
from engine.process.client import EngineClient
from engine.spec import ModelSpec, TargetSpec
from server.cli.serve import bind, http_config
from server.config.registry import ModelEntry, Registry
from server.config.settings import Settings
from server.http.app import create_app

HOST = "127.0.0.1"
MESSAGES, TOOLS = 20, 10
REQUESTS = 60  # for each round and kind of answer
AT_MOST_MS = 5.0
ANSWER_TOKENS = 8


@dataclass(frozen=True)
class Latency:
    """The latency of one request, in seconds."""

    asked: float  # until the request reached the engine
    whole: float  # until the last byte of the answer arrived


class InstantEngine:
    """A substitute for `EngineClient` that answers every request at once."""

    state = "ready"

    def __init__(self) -> None:
        self.info: ModelInfo = PacedEngine(Schedule(0.0, ANSWER_TOKENS), 1).info
        self.asked_at = 0.0
        self.prompt_tokens = 0

    def __call__(self, spec: ModelSpec, **_callbacks: Any) -> EngineClient:
        """Return this object: the server uses it as the factory of its engine."""
        return cast(EngineClient, self)

    async def start(self) -> ModelInfo:
        return self.info

    def drain(self, message: str) -> None:
        """Do nothing: no request waits."""

    async def close(self) -> None:
        """Do nothing: no process was started."""

    def position(self, request_id: str) -> int:
        return 0

    async def run(self, message: Generate, **_callbacks: Any) -> AsyncGenerator[Tokens, None]:
        request_id, prompt = message.request_id, message.prompt
        self.asked_at, self.prompt_tokens = time.perf_counter(), len(prompt)
        ids, text = (TOKEN,) * ANSWER_TOKENS, WORD * ANSWER_TOKENS
        origins = (Origin("target", 0, 1),) * ANSWER_TOKENS
        stats = make_stats(len(prompt), ANSWER_TOKENS, passes=1, seconds=0.0)
        yield Tokens(request_id, 0, ids, text, origins=origins, finish="stop", stats=stats)


def main() -> None:
    options = make_parser(__doc__, takes_model=False).parse_args()
    print_figures(measure(options.rounds), options)


def measure(rounds: int, requests: int = REQUESTS) -> Figures:
    """Measure whole and streamed answers in turn over one connection; return the figures."""
    engine = InstantEngine()
    model = ModelEntry("instant", ModelSpec("instant", TargetSpec("nowhere")), created=0)
    config = http_config(create_app(Settings(), Registry([model], model.id), engine))
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        found = runner.run(latencies(config, engine, rounds, requests))
    return make_figures(found, engine.prompt_tokens, rounds)


async def latencies(
    config: uvicorn.Config, engine: InstantEngine, rounds: int, requests: int
) -> dict[str, list[Latency]]:
    """Return the latencies of whole and of streamed answers."""
    found: dict[str, list[Latency]] = {"whole": [], "streamed": []}
    async with served(config) as (reader, writer):
        for kind in found:  # the first one loads the tokenizer
            await ask(engine, reader, writer, http_request(stream=kind == "streamed"))
        for _ in range(rounds):
            for kind, own in found.items():
                data = http_request(stream=kind == "streamed")
                for _ in range(requests):
                    own.append(await ask(engine, reader, writer, data))
    return found


def make_figures(
    found: Mapping[str, Sequence[Latency]], prompt_tokens: int, rounds: int
) -> Figures:
    """Return the medians of each kind of answer as figures."""
    times = {kind: compute_medians(own) for kind, own in found.items()}
    return Figures(
        name="front_end",
        title="Latency that the front end adds to a request",
        values={
            "messages": MESSAGES,
            "tools": TOOLS,
            "prompt_tokens": prompt_tokens,
            "rounds": rounds,
        },
        tables=[
            Table(
                "Medians, milliseconds",
                ["answer", "requests", "until the engine is asked", "until the answer's end"],
                [[kind, len(found[kind]), *both] for kind, both in times.items()],
            )
        ],
        bars=[
            Bar(f"added latency, {kind} answer", answered, "<=", AT_MOST_MS, "ms")
            for kind, (_, answered) in times.items()
        ],
        machine=describe_machine(),
    )


@contextlib.asynccontextmanager
async def served(
    config: uvicorn.Config,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Serve in this process and yield a connection to the server."""
    with bind(HOST, 0) as listener:
        listener.listen()
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        try:
            yield reader, writer
        finally:
            writer.close()
            server.should_exit = True
            await serving


async def ask(
    engine: InstantEngine,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    data: bytes,
) -> Latency:
    """Send a request, read its answer to the end and return its latency."""
    began = time.perf_counter()
    writer.write(data)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    _, length, rest = head.partition(b"content-length: ")
    if length:
        await reader.readexactly(int(rest.split(b"\r\n")[0]))
    else:
        await reader.readuntil(b"\r\n0\r\n\r\n")
    return Latency(engine.asked_at - began, time.perf_counter() - began)


def http_request(*, stream: bool) -> bytes:
    """Return the chat as the bytes of an HTTP request."""
    body = {"messages": messages(), "tools": tools(), "stream": stream, "temperature": 0.7}
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(data)}"
    return f"{head}\r\n\r\n".encode() + data


def messages() -> list[dict[str, Any]]:
    """Return a system message, turns with a tool call each, and a last question."""
    found: list[dict[str, Any]] = [{"role": "system", "content": "You are terse. " * 10}]
    for turn in range(MESSAGES // 4):
        call = {"name": f"look_up_{turn}", "arguments": json.dumps({"place": "Paris", "days": 3})}
        found += [
            {"role": "user", "content": f"Question {turn}: what will the weather be? " * 4},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": f"call_{turn}", "type": "function", "function": call}],
            },
            {"role": "tool", "tool_call_id": f"call_{turn}", "content": '{"sky": "clear"}' * 8},
            {"role": "assistant", "content": "It will be clear, with a light wind. " * 6},
        ]
    return [*found[: MESSAGES - 1], {"role": "user", "content": "And the day after?"}]


def tools() -> list[dict[str, Any]]:
    """Return tools that take three parameters each."""
    properties = {
        "place": {"type": "string", "description": "A city, and its country if in doubt"},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "units": {"type": "string", "enum": ["metric", "imperial"]},
    }
    parameters = {"type": "object", "properties": properties, "required": ["place"]}
    return [
        {
            "type": "function",
            "function": {
                "name": f"look_up_{number}",
                "description": "Look up what the weather of the next days will be at a place.",
                "parameters": parameters,
            },
        }
        for number in range(TOOLS)
    ]


def compute_medians(latencies: Sequence[Latency]) -> tuple[float, float]:
    """Return the median milliseconds until the engine was asked and until the answer ended."""
    asked = statistics.median(own.asked for own in latencies)
    return 1e3 * asked, 1e3 * statistics.median(own.whole for own in latencies)


if __name__ == "__main__":
    main()
