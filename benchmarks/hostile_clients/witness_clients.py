"""Well-behaved clients: they ask fixed questions, and compare the answers with a quiet server's."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from benchmarks.hostile_clients.questions import BrokenAnswer, Question, comparable
from benchmarks.hostile_clients.served_demo import HOST

PATIENCE_SECONDS = 120.0  # for one answer, with what a full queue made the client wait
PAUSE_SECONDS = 1.0  # after a lost request
SHOWN = 5  # failures that are told with all they say
SHOWN_CHARACTERS = 600


@dataclass
class Witnessed:
    """What the well-behaved clients saw."""

    asked: int = 0
    altered: int = 0
    lost: int = 0
    refused: int = 0  # times a 503 was followed by another try, as it asks for
    slowest_seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    def fail(self, what: str) -> None:
        if len(self.failures) < SHOWN:
            self.failures.append(what[: 3 * SHOWN_CHARACTERS])


class Lost(Exception):
    """No whole answer came."""


@asynccontextmanager
async def client_of(port: int) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the server on loopback."""
    async with httpx.AsyncClient(
        base_url=f"http://{HOST}:{port}", timeout=PATIENCE_SECONDS
    ) as client:
        yield client


async def ask(client: httpx.AsyncClient, question: Question, seen: Witnessed) -> Any:
    """Return what must not differ in the answer. Raises `Lost`.

    A 503 with Retry-After is asked again after that time, as official clients do; the request
    counts as lost when no answer has come after `PATIENCE_SECONDS` in all.
    """
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                answer = await client.post(question.path, json=question.body)
                if answer.status_code != 503 or "retry-after" not in answer.headers:
                    break
                seen.refused += 1
                await asyncio.sleep(float(answer.headers["retry-after"]))
        if answer.status_code != 200:
            raise Lost(f"status {answer.status_code}: {answer.text[:SHOWN_CHARACTERS]}")
        return comparable(question, answer.content)
    except (httpx.HTTPError, TimeoutError, BrokenAnswer) as error:
        raise Lost(repr(error)) from error


async def references(port: int, questions: Sequence[Question]) -> dict[str, Any]:
    """Ask a quiet server everything twice. Raises `Lost`, also where the two answers differ."""
    first: dict[str, Any] = {}
    seen = Witnessed()
    async with client_of(port) as client:
        for question in [*questions, *questions]:
            found = await ask(client, question, seen)
            if first.setdefault(question.name, found) != found:
                raise Lost(f"a quiet server answered {question.name!r} in two ways")
    return first


async def witness(
    port: int,
    questions: Sequence[Question],
    known: Mapping[str, Any],
    seconds: float,
    rng: random.Random,
    seen: Witnessed,
) -> None:
    """Ask the questions in a random order until the time is over."""
    until = time.monotonic() + seconds
    async with client_of(port) as client:
        while time.monotonic() < until:
            for question in rng.sample(questions, len(questions)):
                await ask_and_compare(client, question, known, seen)
                if time.monotonic() >= until:
                    break


async def ask_and_compare(
    client: httpx.AsyncClient, question: Question, known: Mapping[str, Any], seen: Witnessed
) -> None:
    seen.asked += 1
    began = time.monotonic()
    try:
        found = await ask(client, question, seen)
    except Lost as error:
        seen.lost += 1
        seen.fail(f"lost after {time.monotonic() - began:.1f} s: {question.name}: {error}")
        await asyncio.sleep(
            PAUSE_SECONDS
        )  # a server that is being started again is not asked in a rush
        return
    seen.slowest_seconds = max(seen.slowest_seconds, time.monotonic() - began)
    if found != known[question.name]:
        seen.altered += 1
        expected, got = json.dumps(known[question.name]), json.dumps(found)
        place = next((i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), 0)
        begin = max(0, place - 100)
        seen.fail(
            f"altered: {question.name}\n  expected ...{expected[begin:][:SHOWN_CHARACTERS]}"
            f"\n  got      ...{got[begin:][:SHOWN_CHARACTERS]}"
        )
