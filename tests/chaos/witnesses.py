"""Clients whose answers are known, and the judgement of what they got."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

import httpx

from tests.chaos.schedule import KINDS
from tests.kills.answers import Asking, ErrorAnswer
from tests.kills.kinds import Question, questions

MOST_TOKENS = 48  # of an answer
ANSWER_S = 150.0  # in which each request must get its result or a clear error
PAUSE_S = 1.0  # after an error
PLAIN_SHARE = 0.3  # of the requests that are not drafted
# A request that comes while the engine restarts has to wait, and a reason has to be one.
UNCLEAR = ("is not ready (restarting)", "Traceback", "Internal Server Error")
SHOWN_STEPS = 8  # the last ones that a failure may have to do with
AFTER_S = 15.0  # after a step, in which requests may still get its errors

Known = dict[Question, Any]
Verdict = Literal["same", "altered", "refused", "unclear", "cut", "silent"]


@dataclass(frozen=True)
class Window:
    """A step that was carried out, from its beginning to its end in monotonic seconds."""

    number: int
    kind: str
    began: float
    ended: float | None  # None: it is not over
    ended_front_end: bool = False

    def touches(self, began: float, ended: float) -> bool:
        """Return whether it may have had to do with a request of that time."""
        after = float("inf") if self.ended is None else self.ended + AFTER_S
        return self.began - 1.0 <= ended and began <= after


@dataclass(frozen=True)
class Attempt:
    """A request, and what became of it."""

    question: str
    model: str
    began: float
    ended: float
    verdict: Verdict
    code: str = ""
    why: str = ""


def fault_of(attempt: Attempt, windows: Sequence[Window]) -> str:
    """Return why an attempt is a failure of the server, "" if it is none.

    An error is none where a step may cause it, and so is a connection that is cut.
    """
    near = [own for own in windows if own.touches(attempt.began, attempt.ended)]
    if attempt.verdict == "same":
        return ""
    if attempt.verdict == "refused" and any(_explains(own, attempt.code) for own in near):
        return ""
    if attempt.verdict == "cut" and any(
        own.ended_front_end or KINDS[own.kind].cuts for own in near
    ):
        return ""
    lasted = attempt.ended - attempt.began
    steps = ", ".join(f"{own.number} ({own.kind})" for own in near[-SHOWN_STEPS:]) or "none"
    return (
        f"{attempt.verdict} after {lasted:.1f} s: {attempt.question} of {attempt.model}; "
        f"steps: {steps}; {attempt.why}"
    )


def _explains(window: Window, code: str) -> bool:
    kind = KINDS[window.kind]
    # The Messages API has types only, as "api_error".
    is_any = not kind.codes or code.endswith("_error") or window.ended_front_end
    return kind.fails and (is_any or code in kind.codes)


def choose_questions(seed: int) -> list[Question]:
    """Return a request of every kind to every API that has it, streamed or whole by chance."""
    rng = Random(seed)
    found: dict[tuple[str, str], list[Question]] = {}
    for own in questions(seed):
        short = Question(own.kind, own.door, own.is_streamed, own.seed, MOST_TOKENS)
        found.setdefault((own.kind, own.door), []).append(short)
    return [rng.choice(both) for both in found.values()]


async def record(url: str, model: str, asked: Sequence[Question], slots: int) -> Known:
    """Return the answers of an undisturbed server. Raises `ErrorAnswer`."""
    known: Known = {}
    waiting = list(asked)

    async def work(client: httpx.AsyncClient) -> None:
        while waiting:
            question = waiting.pop()
            answer = await Asking(question, model, is_plain=True).ask(client)
            known[question] = _without_model(answer.content)

    async with _client(url) as client:
        await asyncio.gather(*(work(client) for _ in range(slots)))
    return known


async def ask_plainly(url: str, first: int, count: int, slots: int) -> int:
    """Ask `count` short questions, numbered from `first` on, and return how many were answered."""
    numbers, answered = iter(range(first, first + count)), 0

    async def work(client: httpx.AsyncClient) -> None:
        nonlocal answered
        for number in numbers:
            body = {
                "messages": [{"role": "user", "content": f"Question {number}: how are you?"}],
                "max_tokens": 4,
                "seed": number,
                "stream": number % 2 == 0,
            }
            with suppress(httpx.TransportError):
                answer = await client.post("/chat/completions", json=body)
                answered += answer.status_code == httpx.codes.OK

    async with _client(url) as client:
        await asyncio.gather(*(work(client) for _ in range(slots)))
    return answered


class Witness:
    """A client that asks one known question after the other, and keeps what became of each.

    Args:
        url: of the API.
        model: returns the id of the model to ask now, "" to wait.
    """

    def __init__(self, url: str, known: Known, model: Callable[[], str], rng: Random) -> None:
        self.attempts: list[Attempt] = []
        self._url = url
        self._known = known
        self._model = model
        self._rng = rng

    async def run(self, until: float) -> None:
        """Ask until a monotonic time, and to the end of the last answer."""
        async with _client(self._url) as client:
            while time.monotonic() < until:
                for question in self._rng.sample(list(self._known), len(self._known)):
                    if time.monotonic() >= until:
                        return
                    model = self._model()
                    if not model:
                        await asyncio.sleep(PAUSE_S / 5)
                        continue
                    self.attempts.append(await self._try(client, question, model))
                    if self.attempts[-1].verdict != "same":
                        await asyncio.sleep(PAUSE_S)

    async def recover(self, model: str, count: int) -> str:
        """Ask some questions until each gets its right answer. Return what is wrong, or ""."""
        async with _client(self._url) as client:
            for question in self._rng.sample(list(self._known), count):
                until = time.monotonic() + ANSWER_S
                while True:
                    attempt = await self._try(client, question, model)
                    self.attempts.append(attempt)
                    if attempt.verdict == "same":
                        break
                    if attempt.verdict == "altered" or time.monotonic() > until:
                        return f"does not recover: {attempt}"
                    await asyncio.sleep(PAUSE_S)
        return ""

    async def _try(self, client: httpx.AsyncClient, question: Question, model: str) -> Attempt:
        began = time.monotonic()
        is_plain = self._rng.random() < PLAIN_SHARE
        verdict, code, why = await self._ask(client, Asking(question, model, is_plain))
        return Attempt(str(question), model, began, time.monotonic(), verdict, code, why)

    async def _ask(self, client: httpx.AsyncClient, asking: Asking) -> tuple[Verdict, str, str]:
        try:
            async with asyncio.timeout(ANSWER_S):
                answer = await asking.ask(client)
        except TimeoutError:
            return "silent", "", f"no answer in {ANSWER_S:.0f} s"
        except ErrorAnswer as error:
            is_clear = bool(error.message) and not any(own in error.message for own in UNCLEAR)
            return "refused" if is_clear else "unclear", error.code, str(error)[:600]
        except (httpx.TransportError, ValueError) as error:
            return "cut", "", repr(error)
        got, want = _without_model(answer.content), self._known[asking.question]
        return ("same", "", "") if got == want else ("altered", "", _differ(got, want))


def _without_model(content: Any) -> Any:
    """Return an answer without the model's id: all models have the same target."""
    if isinstance(content, dict):
        return {key: _without_model(own) for key, own in content.items() if key != "model"}
    return [_without_model(own) for own in content] if isinstance(content, list) else content


def _differ(got: Any, want: Any) -> str:
    expected, found = str(want), str(got)
    place = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), 0)
    begin = max(0, place - 80)
    return f"expected ...{expected[begin : begin + 300]} and got ...{found[begin : begin + 300]}"


def _client(url: str) -> httpx.AsyncClient:
    # A new connection for each request: one that a dead front end has left is no fault.
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=url, timeout=ANSWER_S, limits=limits)
