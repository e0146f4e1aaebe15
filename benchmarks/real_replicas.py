"""Real servers that are peers of each other, and sessions that are sent to the first of them.

Each server notes its passes and the requests that its engine runs in a file of its own, so that it
is known how fast it was and where each request ran.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from benchmarks.cluster_sessions import SessionPlan
from benchmarks.cluster_traffic import Outcome
from benchmarks.http_streams import HOST, front_end
from engine.messages import Generate, PassStats, Tokens
from engine.process.callbacks import EngineCallbacks
from engine.process.client import EngineClient
from engine.spec import ModelSpec

FIRST_ID, VOCABULARY = 3, 4096  # token ids of texts: those before are marks
WARM_UP_TOKENS = (40, 1200, 600)  # of prompts, so that a server knows its speed
WARM_UP_ANSWER = 4
LOAD_SECONDS, POLL_SECONDS = 600.0, 0.2


@dataclass(frozen=True)
class Sizes:
    """What a server says of its engine."""

    max_sequences: int
    pages: int
    longest: int  # tokens of a prompt and its answer


@dataclass
class Measured:
    """A run: what clients saw, and the passes of all engines in it."""

    sizes: Sizes
    outcome: Outcome = field(default_factory=Outcome)
    passes: list[PassStats] = field(default_factory=list)
    ways: list[float] = field(default_factory=list)  # seconds from a client to the engine


class RecordedClient(EngineClient):
    """The client of an engine that notes its passes and its requests as lines of JSON."""

    def __init__(
        self, file: Path, spec: ModelSpec, *, max_queue: int, callbacks: EngineCallbacks
    ) -> None:
        self._file = file.open("a", buffering=1)

        def note_pass(stats: PassStats) -> None:
            self._note({"pass": asdict(stats)})
            callbacks.on_pass(stats)

        own = replace(callbacks, on_pass=note_pass)
        super().__init__(spec, max_queue=max_queue, callbacks=own)

    def run(self, message: Generate, **options: Any) -> AsyncGenerator[Tokens, None]:
        """Note a request, and return its stream."""
        self._note({"request": message.http_id})
        return super().run(message, **options)

    def _note(self, found: dict[str, Any]) -> None:
        self._file.write(json.dumps({"at": time.monotonic(), **found}) + "\n")


@dataclass(frozen=True)
class Servers:
    """Servers of one model. The first one has the others as peers."""

    urls: Sequence[str]
    files: Sequence[Path]  # what each has noted

    async def run(self, plans: Sequence[SessionPlan]) -> Measured:
        """Warm up, send sessions to the first server, and return what was measured."""
        async with httpx.AsyncClient(timeout=None, trust_env=False) as http:
            await self._warm_up(http)
            report = (await http.get(f"{self.urls[0]}/v1/peer")).json()
            load, figures = report["load"], report["figures"]
            measured = Measured(Sizes(load["max_sequences"], figures["kv_pages"], load["longest"]))
            began = time.monotonic()
            runs = [self._run_session(http, plan, began) for plan in plans]
            turns = [turn for own in await asyncio.gather(*runs) for turn in own]
        ran_at = self._read(measured, began)
        for turn in turns:
            turn.count(measured.outcome, {name: own.server for name, own in ran_at.items()})
            measured.ways.append(ran_at[turn.name].at - turn.asked)
        return measured

    async def _warm_up(self, http: httpx.AsyncClient) -> None:
        """Load the models, and let each engine run some passes."""
        for number, url in enumerate([*self.urls[1:], self.urls[0], self.urls[0]]):
            for tokens in WARM_UP_TOKENS:
                prompt = _ids(Random(f"warm-up {number} {tokens}"), tokens)
                await _ask(http, url, prompt, WARM_UP_ANSWER, f"warm-up-{number}")
        async with asyncio.timeout(LOAD_SECONDS):
            while True:
                peers = (await http.get(f"{self.urls[0]}/v1/status")).json()["peers"]
                if all(peer["state"] == "ready" for peer in peers):
                    return
                await asyncio.sleep(POLL_SECONDS)

    async def _run_session(
        self, http: httpx.AsyncClient, plan: SessionPlan, began: float
    ) -> list["_Turn"]:
        own, turns = Random(plan.number), list[_Turn]()
        text = _ids(Random(f"template {plan.template}"), plan.template_tokens)
        await asyncio.sleep(began + plan.begins - time.monotonic())
        for number, turn in enumerate(plan.turns):
            await asyncio.sleep(turn.pause)
            text += _ids(own, turn.added)
            name = f"{plan.number}.{number}"
            found = await _ask(http, self.urls[0], text, turn.answer, name)
            text += found.answer
            turns.append(found)
        return turns

    def _read(self, measured: Measured, began: float) -> dict[str, "_Ran"]:
        """Add the passes of the run, and return where each request ran last."""
        ran_at: dict[str, _Ran] = {}
        for number, file in enumerate(self.files):
            for line in file.read_text().splitlines():
                noted = json.loads(line)
                if noted["at"] < began:
                    continue
                if "request" in noted:
                    ran_at[noted["request"]] = _Ran(number, noted["at"])
                else:
                    measured.passes.append(PassStats(**noted["pass"]))
        return ran_at


@dataclass(frozen=True)
class _Ran:
    """Where a request ran, and when its engine was asked."""

    server: int
    at: float


@dataclass
class _Turn:
    """The times and tokens of one request, as its client saw them; seconds of `time.monotonic`."""

    name: str  # the numbers of its session and of its turn
    asked: float
    first: float
    ended: float
    prompt: int  # tokens
    cached: int
    answer: list[int]

    def count(self, outcome: Outcome, ran_at: dict[str, int]) -> None:
        """Add it to what a run has measured."""
        session, _, number = self.name.partition(".")
        outcome.first_token.append(self.first - self.asked)
        outcome.prompt_tokens += self.prompt
        outcome.cached_tokens += self.cached
        outcome.rates.append(len(self.answer) / (self.ended - self.first))
        if int(number):
            outcome.later_turns += 1
            outcome.returned += ran_at[self.name] == ran_at[f"{session}.{int(number) - 1}"]


def _ids(random: Random, count: int) -> list[int]:
    return [random.randrange(FIRST_ID, VOCABULARY) for _ in range(count)]


async def _ask(
    http: httpx.AsyncClient, url: str, prompt: Sequence[int], tokens: int, name: str
) -> _Turn:
    """Send a request and read its stream. Raise `httpx.HTTPStatusError` if it is refused."""
    body = {
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    asked, first = time.monotonic(), 0.0
    answer: list[int] = []
    usage: dict[str, Any] = {}
    path, headers = f"{url}/v1/completions", {"x-request-id": name}
    async with http.stream("POST", path, json=body, headers=headers) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            for choice in chunk["choices"]:
                answer += choice["token_ids"]
                first = first or time.monotonic()
            usage = chunk.get("usage") or usage
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    ended = time.monotonic()
    return _Turn(name, asked, first, ended, usage["prompt_tokens"], cached, answer)


@contextmanager
def running(spec: ModelSpec, count: int) -> Iterator[Servers]:
    """Start servers of a model; the first request to each loads it."""
    with TemporaryDirectory() as folder, ExitStack() as stack:
        files = [Path(folder, f"{number}.jsonl") for number in range(count)]
        peers = list[str]()
        for file in files:
            port = stack.enter_context(front_end(spec, partial(RecordedClient, file), peers=peers))
            peers = [*peers, f"http://{HOST}:{port}"]
        yield Servers(peers[::-1], files[::-1])
