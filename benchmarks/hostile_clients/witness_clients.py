"""Well-behaved clients that compare answers with those of a server without other load."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from benchmarks.hostile_clients.questions import BrokenAnswer, Question, extract_comparable
from benchmarks.hostile_clients.served_demo import HOST

TIMEOUT_SECONDS = 120.0  # for one answer, with the waits that a full queue asked for
PAUSE_SECONDS = 1.0  # after a lost request
SHOWN = 5  # failures that are reported in full
SHOWN_CHARACTERS = 600


@dataclass
class Witnessed:
    """Counts of what the well-behaved clients received."""

    asked: int = 0
    altered: int = 0
    lost: int = 0
    refused: int = 0  # answers with status 503 after which the request was sent again
    slowest_seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    def fail(self, what: str) -> None:
        """Keep the description of a failure, unless there are enough."""
        if len(self.failures) < SHOWN:
            self.failures.append(what[: 3 * SHOWN_CHARACTERS])


class Lost(Exception):
    """No whole answer came to a request; the message says why."""


@asynccontextmanager
async def open_client(port: int) -> AsyncIterator[httpx.AsyncClient]:
    """Open an HTTP client of the server on loopback."""
    async with httpx.AsyncClient(
        base_url=f"http://{HOST}:{port}", timeout=TIMEOUT_SECONDS
    ) as client:
        yield client


async def ask(client: httpx.AsyncClient, question: Question, seen: Witnessed) -> Any:
    """Send a request; return the part of the answer that must always be the same.

    After a 503 with Retry-After the request is sent again, as official clients do. Raises `Lost` if
    no whole answer has come within `TIMEOUT_SECONDS`.
    """
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while True:
                answer = await client.post(question.path, json=question.body)
                if answer.status_code != 503 or "retry-after" not in answer.headers:
                    break
                seen.refused += 1
                await asyncio.sleep(float(answer.headers["retry-after"]))
        if answer.status_code != 200:
            raise Lost(f"status {answer.status_code}: {answer.text[:SHOWN_CHARACTERS]}")
        return extract_comparable(question, answer.content)
    except (httpx.HTTPError, TimeoutError, BrokenAnswer) as error:
        raise Lost(repr(error)) from error


async def record_references(port: int, questions: Sequence[Question]) -> dict[str, Any]:
    """Send each request twice; return its answer. Raises `Lost`, also if the two answers differ."""
    first: dict[str, Any] = {}
    seen = Witnessed()
    async with open_client(port) as client:
        for question in [*questions, *questions]:
            found = await ask(client, question, seen)
            if first.setdefault(question.name, found) != found:
                raise Lost(f"a quiet server answered {question.name!r} in two ways")
    return first


async def run_witness(
    port: int,
    questions: Sequence[Question],
    known: Mapping[str, Any],
    seconds: float,
    rng: random.Random,
    seen: Witnessed,
) -> None:
    """Send the requests in random orders until the time is over."""
    until = time.monotonic() + seconds
    async with open_client(port) as client:
        while time.monotonic() < until:
            for question in rng.sample(questions, len(questions)):
                await ask_and_compare(client, question, known, seen)
                if time.monotonic() >= until:
                    break


async def ask_and_compare(
    client: httpx.AsyncClient, question: Question, known: Mapping[str, Any], seen: Witnessed
) -> None:
    """Send a request, compare its answer with the known one and count the result."""
    seen.asked += 1
    began = time.monotonic()
    try:
        found = await ask(client, question, seen)
    except Lost as error:
        seen.lost += 1
        seen.fail(f"lost after {time.monotonic() - began:.1f} s: {question.name}: {error}")
        await asyncio.sleep(PAUSE_SECONDS)  # the server may be starting again
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
