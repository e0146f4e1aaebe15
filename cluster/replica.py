"""One replica: an engine that runs the requests of front ends elsewhere.

Nothing here depends on how it is reached: `cluster.app` makes it an actor of Ray Serve.
"""

import contextlib
import functools
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, replace
from secrets import token_hex
from typing import Any, Protocol

from cluster.answering import AskedTexts, Frame, Observe, frames_of, no_observer
from cluster.held_pages import PageBooks
from cluster.pass_speeds import PassSpeeds
from cluster.queue_waits import QueueWaits, WaitFigures
from cluster.reporting import load_of_engine, report_with
from cluster.served_model import ServedModel
from cluster.wire import Ask, Failure, Report
from engine import __version__
from engine.errors import EngineDied, EngineError
from engine.messages import ModelInfo, PassStats, Tokens
from engine.process.callbacks import EngineCallbacks
from engine.process.client import EngineClient
from engine.process.interface import Engine
from engine.spec import ModelSpec

MOST_EVENTS = 4096  # that are kept for front ends
OWNER = "cluster"  # of the pages: all front ends belong to one cluster
# What of an engine front ends count, as `EngineCallbacks` names it. `on_replan` is left out: it
# says where the weights of one engine are, and front ends describe the model once.
TOLD = ("on_pass", "on_audit", "on_check", "on_kv_disk", "on_restart", "on_resume")

Event = tuple[str, tuple[Any, ...]]  # the name of a callback, and its arguments


class EngineFactory(Protocol):
    """A function that makes the engine of a replica."""

    def __call__(
        self, spec: ModelSpec, *, max_queue: int, callbacks: EngineCallbacks
    ) -> Engine: ...


@dataclass(frozen=True)
class Told:
    """What a replica tells a front end, once a second.

    Args:
        events: what its engine reported since the number that the front end named.
        number: that of the latest event.
    """

    report: Report
    events: tuple[Event, ...]
    number: int


class Replica:
    """One engine, and what front ends ask of it.

    Args:
        version: of the program; tests give another one.
        wait_limit: seconds, above which the wait of a request is a long one.
        observe: returns the observer of a request, which may trace it.
        make_engine: makes the engine; tests give a fake.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        version: str = __version__,
        max_queue: int,
        wait_limit: float,
        observe: Observe = no_observer,
        make_engine: EngineFactory = EngineClient,
    ) -> None:
        self._version, self._observe = version, observe
        self._waits = QueueWaits(wait_limit)
        self._books = PageBooks()
        self._speeds = PassSpeeds()
        self._free_pages: int | None = None
        self._events: deque[tuple[int, Event]] = deque(maxlen=MOST_EVENTS)
        self._number = 0
        told: dict[str, Callable[..., None]] = {
            name: functools.partial(self._note_event, name) for name in TOLD
        }
        self._engine = make_engine(spec, max_queue=max_queue, callbacks=EngineCallbacks(**told))

    async def start(self) -> None:
        """Load the model. Raise `ModelError` or `EngineDied`."""
        await self._engine.start()

    async def close(self) -> None:
        """End the engine. Requests that run are lost, and go on elsewhere."""
        await self._engine.close()

    def check_health(self) -> None:
        """Raise `EngineDied` if the engine is gone for good; while it restarts, it is not."""
        if self._engine.state in ("failed", "closed"):
            raise EngineDied(f"The engine is {self._engine.state}.")

    def describe(self) -> ModelInfo:
        """Return the properties of the model."""
        assert self._engine.info is not None, "the model is loaded"
        return self._engine.info

    def waits(self) -> WaitFigures:
        """Return the queue waits, by which the number of replicas is chosen."""
        return self._waits.figures()

    def tell(self, since: int, instance: str, events_since: int) -> Told:
        """Return what has changed since an earlier call, of which these are the numbers.

        Args:
            since, instance: of its report.
            events_since: its `number`; -1: events that are past do not matter.
        """
        if self._engine.state != "ready":
            report = Report(self._version, "", 0, None, None, [], [], is_whole=True)
        else:
            info, books = self.describe(), self._books
            report = report_with(
                self._version,
                ServedModel.of(info),
                load_of_engine(self._engine, info, self._speeds, self._free_pages),
                books.of(OWNER, info.num_pages),
                instance=books.instance,
                since=since if instance == books.instance else None,
            )
        new = [event for number, event in self._events if number > events_since >= 0]
        return Told(report, tuple(new), self._number)

    async def generate(
        self, ask: Ask, headers: Mapping[str, str]
    ) -> AsyncGenerator[Frame | None, None]:
        """Run a request, and yield its frames; None is a sign of life.

        Args:
            headers: those that continue its trace.
        """
        name = f"{ask.message.request_id}@{token_hex(4)}"  # it may have been here a moment ago
        info = self.describe()
        if (info.files, info.fingerprint) != (ask.files, ask.fingerprint):
            yield Failure("died", f"This replica has the fingerprint {info.fingerprint}.")
            return
        message = replace(ask.message, request_id=name)
        texts = AskedTexts(ask, lambda: self._books.of(OWNER, info.num_pages))
        observer = self._observe(info.model_id, ask, headers)

        async def run(on_prompt: Callable[[int], None]) -> AsyncGenerator[Tokens, None]:
            def note_prompt(done: int) -> None:
                self._waits.begin(name)
                observer.note_prompt(done)
                on_prompt(done)

            try:
                stream = self._engine.run(
                    message,
                    on_prompt=note_prompt,
                    on_lost=observer.note_lost,
                    on_tokens=observer.note_generated,
                )
                async with contextlib.aclosing(stream):
                    async for tokens in stream:
                        texts.note(tokens)
                        observer.note(tokens)
                        yield tokens
                observer.complete()
            except EngineError as error:
                observer.fail(error)
                raise

        self._waits.arrive(name)
        try:
            async with contextlib.aclosing(frames_of(run, f"replica's {name}")) as frames:
                async for frame in frames:
                    yield frame
        finally:
            self._waits.leave(name)
            observer.leave()

    def _note_event(self, name: str, *args: object) -> None:
        if name == "on_restart":
            self._books.clear()
        if args and isinstance(args[0], PassStats):
            stats = args[0]
            self._speeds.add(stats)
            self._free_pages = stats.free_pages
        self._number += 1
        self._events.append((self._number, (name, args)))
