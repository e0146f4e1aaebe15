"""A round: all requests are answered undisturbed, and again while engines end."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

from tests.kills.answers import Answer, Asking
from tests.kills.deaths import MEMORY_WAYS, WAYS, with_torch
from tests.kills.kinds import Question

SECONDS = 600.0  # for one answer
SLOTS = 8  # requests that run at once
MOST_HITS = 3  # of one request
PLAIN_SHARE = 0.8  # of the requests that are not drafted
MOST_TOKENS_BEFORE = 60  # events of all streams before a death, at random
STUCK_S = 120.0  # in which an engine has to be replaced
ENOUGH_S = 8.0  # in which an engine without memory fails if it needs any


Wanted = dict[Question, Answer | Exception]  # the undisturbed answers of one model


@dataclass
class Outcome:
    """What became of one request."""

    question: Question
    num_hits: int
    resumed: int  # as the answer says
    is_same: bool  # as the undisturbed answer
    pause: float
    silence: float
    why: str = ""  # if it is not the same


@dataclass
class Round:
    """The requests of one round, and the deaths of the engine meanwhile.

    Args:
        server: the server's process.
        url: of its API.
        model: whose id the requests name.
        apart: seconds between two deaths.
        ways: how the engine ends, in turns.
        most: deaths.
    """

    server: int
    url: str
    model: str
    random: random.Random
    apart: float
    ways: Sequence[str]
    most: int
    deaths: list[tuple[str, float]] = field(default_factory=list)  # each with its seconds
    _running: list[Asking] = field(default_factory=list)
    _event: asyncio.Event = field(default_factory=asyncio.Event)
    _text: int = 0  # the text process, which has loaded torch too

    async def run(self, questions: Sequence[Question], want: Wanted) -> list[Outcome]:
        """Answer all questions while engines end, and compare with what is wanted.

        `want` gets the undisturbed answers first, unless it has them.
        """
        async with httpx.AsyncClient(base_url=self.url, timeout=SECONDS) as client:
            missing = [own for own in questions if own not in want]
            plain = [Asking(question, self.model, is_plain=True) for question in missing]
            want |= zip(missing, await self._ask_all(client, plain), strict=True)
            hit = [self._asking(question) for question in questions]
            ending = asyncio.create_task(self._end_engines())
            got = await self._ask_all(client, hit)
            ending.cancel()
            await asyncio.wait([ending])
            if not ending.cancelled():
                ending.result()
        pairs = zip(hit, got, strict=True)
        return [_compare(asking, own, want[asking.question]) for asking, own in pairs]

    def _asking(self, question: Question) -> Asking:
        """Return a request that is to be asked, mostly without a draft: so it runs for longer."""
        is_plain = self.random.random() < PLAIN_SHARE
        return Asking(question, self.model, is_plain, self._event.set)

    async def _ask_all(
        self, client: httpx.AsyncClient, askings: Sequence[Asking]
    ) -> list[Answer | Exception]:
        slots = asyncio.Semaphore(SLOTS)

        async def ask(asking: Asking) -> Answer | Exception:
            async with slots:
                self._running.append(asking)
                try:
                    return await asking.ask(client)
                except (AssertionError, httpx.HTTPError) as error:
                    return error
                finally:
                    self._running.remove(asking)

        return list(await asyncio.gather(*map(ask, askings)))

    async def _end_engines(self) -> None:
        """End the engine again and again, while the requests are asked."""
        for number in range(self.most):
            await self._wait_for_tokens(self.random.randint(1, MOST_TOKENS_BEFORE))
            if number == 0:  # their model is loaded by now, and its engine was started last
                self._text, _ = with_torch(self.server)
            for asking in self._running:
                asking.num_hits += 1
            way = self.ways[number % len(self.ways)]
            [engine] = self._engines()
            begun = time.monotonic()
            ending = asyncio.create_task(asyncio.to_thread(WAYS[way], engine))
            while engine in self._engines():
                taken = time.monotonic() - begun
                assert taken < STUCK_S, f"{way}: the engine still runs"
                if taken > ENOUGH_S and way in MEMORY_WAYS:
                    way = "SIGKILL"
                    os.kill(engine, signal.SIGKILL)
                await asyncio.sleep(0.05)
            gone = time.monotonic()
            await ending
            while not self._engines():  # a stream may still get what the last engine has sent
                await asyncio.sleep(0.05)
            self._event.clear()
            await self._event.wait()
            self.deaths.append((way, time.monotonic() - gone))
            await asyncio.sleep(max(0.0, begun + self.apart - time.monotonic()))

    async def _wait_for_tokens(self, count: int) -> None:
        """Wait for events of the streams, and until all slots have a request that may be hit."""
        while count > 0 or len(self._running) < SLOTS or self._is_any_hit_often():
            self._event.clear()
            await self._event.wait()
            count -= 1

    def _is_any_hit_often(self) -> bool:
        return any(asking.num_hits == MOST_HITS for asking in self._running)

    def _engines(self) -> list[int]:
        return [pid for pid in with_torch(self.server) if pid != self._text]


def _compare(asking: Asking, got: Answer | Exception, want: Answer | Exception) -> Outcome:
    if isinstance(got, Exception) or isinstance(want, Exception):
        why = repr(got if isinstance(got, Exception) else want)
        return Outcome(asking.question, asking.num_hits, 0, False, 0.0, 0.0, why)
    is_same = got.content == want.content
    why = "" if is_same else f"{got.content} and not {want.content}"
    return Outcome(
        asking.question, asking.num_hits, got.resumed, is_same, got.pause, got.silence, why
    )
