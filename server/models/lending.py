"""The loaded model: requests borrow it, and the order of arrival decides which is loaded next.

One model is loaded at a time. Another one replaces it when no request holds it any more.
"""

import asyncio
import contextlib
import functools
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from cluster.held_pages import PageBooks
from engine.errors import EngineDied, QueueFull
from engine.messages import LoadProgress, ModelInfo
from engine.moves import LimitMemory, Replanned
from engine.parsing.selection import formats_of
from engine.process.callbacks import EngineCallbacks
from engine.process.client import EngineClient
from engine.process.interface import Engine
from engine.spec import ModelSpec
from server.config.registry import ModelEntry
from server.config.settings import Settings
from server.errors import ApiError, reason_of
from server.logs.context import create_background_task
from server.metrics.load_speed import LoadMeter, step_text
from server.metrics.prometheus import Metrics
from server.metrics.wait_status import Wait, in_line
from server.models.idle import IdleTimer
from server.models.loaded_model import LoadedModel
from server.models.peers import peer_statuses, run_at_peers
from server.models.statistics import EngineStatistics
from server.schemas.status import LoadStep, PeerStatus, Together
from server.text.work import TextWork

if TYPE_CHECKING:
    from cluster.peers import Peers

log = logging.getLogger("understudy")

SHUTTING_DOWN = "The server is shutting down."


class EngineFactory(Protocol):
    """A function that makes the engine of one model: `EngineClient` itself, or a fake in tests."""

    def __call__(
        self, spec: ModelSpec, *, max_queue: int, callbacks: EngineCallbacks
    ) -> Engine: ...


@dataclass
class _Waiter:
    """A request in the queue for a model, and the future that is set when it may use it."""

    entry: ModelEntry
    is_request: bool  # else it is the load before the first request
    granted: asyncio.Future[LoadedModel] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Models:
    """A queue of requests for models, and the one model that is loaded.

    Requests for the loaded model use it together. When the first request in the queue is for
    another model, the models are swapped as soon as no request holds the loaded one. Later requests
    wait for their turn even if they are for the loaded model, so that no request waits forever.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        text: TextWork,
        engine_factory: EngineFactory = EngineClient,
        progress: Callable[[LoadStep], None] = lambda _: None,
        peers: "Peers | None" = None,
    ) -> None:
        self._settings = settings
        self._peers = peers
        self._metrics = metrics
        self._engine_factory = engine_factory
        self.text = text
        self._progress = progress
        self._current: LoadedModel | None = None
        self._swap: asyncio.Task[None] | None = None
        self._loading: ModelEntry | None = None
        self._meter = LoadMeter()
        self._step: LoadStep | None = None  # the latest one, of a load or a restart
        self._unloading = False
        self._idle = IdleTimer(self._unload_idle)
        self._idle_unloads: dict[str, float] = {}  # when `idle_unload` did so, by id, until a load
        self.failures: dict[str, str] = {}  # why the latest load of a model failed, by id
        self._returned = asyncio.Event()  # set when a request gives its model back
        self._waiters: deque[_Waiter] = deque()
        self._closed = False

    @property
    def ready(self) -> LoadedModel | None:
        """The loaded model if its engine is ready, else None."""
        current = self._current
        return current if current is not None and current.engine.state == "ready" else None

    @property
    def in_memory(self) -> LoadedModel | None:
        """The model that was loaded last, also while its engine restarts."""
        return self._current

    @property
    def loading(self) -> ModelEntry | None:
        """The model that is being loaded or swapped in, if there is one."""
        return self._loading

    @property
    def is_unloading(self) -> bool:
        """Whether the model in memory is being unloaded because somebody asked for it."""
        return self._unloading

    @property
    def idle_seconds_left(self) -> float | None:
        """The seconds until the model in memory is unloaded if no request comes; None: it stays."""
        return self._idle.seconds_left

    def seconds_since_idle_unload(self, model_id: str) -> float | None:
        """Return how long ago a model was unloaded for want of requests; None if it was not."""
        at = self._idle_unloads.get(model_id)
        return None if at is None else max(0.0, time.monotonic() - at)

    @property
    def step(self) -> LoadStep | None:
        """The latest step of a load or restart; None before the first one."""
        return self._step

    def peer_statuses(self) -> tuple[list[PeerStatus], Together | None]:
        """Return the state of each peer, and the sums over this server and them."""
        return ([], None) if self._peers is None else peer_statuses(self._peers, self.ready)

    @property
    def num_waiting(self) -> int:
        """The number of requests that wait for a model."""
        return sum(waiter.is_request for waiter in self._waiters)

    async def preload(self, entry: ModelEntry) -> ModelInfo:
        """Load a model before the first request for it, and return the engine's facts about it.

        Raises the `EngineError` of a load that fails.
        """
        async with self._lend(_Waiter(entry, is_request=False), Wait(), timeout=None) as model:
            return model.info

    @contextlib.asynccontextmanager
    async def borrow(self, entry: ModelEntry, wait: Wait) -> AsyncGenerator[LoadedModel, None]:
        """Yield a loaded model, and hold it until the block ends, which is one request.

        `wait` receives the reason for waiting, which a client can be shown.

        Raises `QueueFull` when too many requests wait, `ApiError` 503 after the load timeout, and
        the `EngineError` of a load that fails.
        """
        if (num_waiting := self.num_waiting) >= self._settings.max_queue:
            raise QueueFull(f"{num_waiting} requests wait for a model; try again later.")
        waiter = _Waiter(entry, is_request=True)
        async with self._lend(waiter, wait, self._settings.load_timeout) as model:
            yield model

    async def unload(self, entry: ModelEntry, grace: float) -> None:
        """Unload a model, if it is in memory, as soon as no request holds it.

        A load that is running is waited for. Requests that arrive meanwhile wait, and load the
        model again.

        Args:
            grace: seconds after which requests that still hold the model get an error.
        """
        while self._swap is not None:
            await asyncio.wait([self._swap])
        current = self._current
        if current is None or current.entry.id != entry.id or self._closed:
            return
        await asyncio.wait([self._begin_unload(current, grace, "as asked")])

    def limit(self, entry: ModelEntry, limits: LimitMemory) -> None:
        """Limit the memory of a model until it is unloaded; its weights move before the next pass.

        Raises `ApiError` 409 if the model is not in memory.
        """
        current = self._current
        if current is None or current.entry.id != entry.id or not current.usable:
            message = f"The model {entry.id!r} is not in memory: load it first."
            raise ApiError(message, code="model_not_loaded", status=409)
        current.engine.limit_memory(limits)

    def drain(self) -> None:
        """Refuse new and waiting requests and cancel a load; running requests may finish."""
        self._closed = True
        self._idle.end()
        if self._swap is not None:
            self._swap.cancel()
        self._refuse(list(self._waiters), EngineDied(SHUTTING_DOWN, "engine_closed"))
        if self._current is not None:
            self._current.engine.drain(SHUTTING_DOWN)

    async def close(self) -> None:
        """End the engine and the text process; waiting and running requests get an error."""
        self.drain()
        if self._swap is not None:
            await asyncio.wait([self._swap])
        closing = [self.text.close()]
        if self._current is not None:
            closing.append(self._current.engine.close())
            self._current = None
        await asyncio.gather(*closing)

    @contextlib.asynccontextmanager
    async def _lend(
        self, waiter: _Waiter, wait: Wait, timeout: float | None
    ) -> AsyncGenerator[LoadedModel, None]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self._settings.load_timeout if timeout is None else timeout)
        wait.set_reason(lambda: self._place(waiter))
        model = await self._turn(waiter, timeout)
        try:
            if model.engine.state == "restarting":
                wait.set_reason(lambda: f"the engine restarts{self._step_text()}")
                await model.restart(max(0.0, deadline - loop.time()))
            yield model
        finally:
            self._give_back(model)

    async def _turn(self, waiter: _Waiter, timeout: float | None) -> LoadedModel:
        """Wait in the queue for a model and return it, already counted as borrowed.

        A cancelled request leaves the queue. Raises `ApiError` 503 after `timeout` seconds.
        """
        if self._closed:
            raise EngineDied(SHUTTING_DOWN, "engine_closed")
        self._waiters.append(waiter)
        self._advance()
        try:
            await asyncio.wait([waiter.granted], timeout=timeout)
        except asyncio.CancelledError:
            self._withdraw(waiter)
            raise
        if not waiter.granted.done():
            self._withdraw(waiter)
            message = f"The model {waiter.entry.id!r} is still loading; try again later."
            raise ApiError.unavailable(message, "model_loading")
        return waiter.granted.result()

    def _place(self, waiter: _Waiter) -> str:
        if waiter not in self._waiters:  # it has its model and has left the queue
            return "waiting"
        what = "waiting for" if self._loading is None else "loading"
        own = f"{what} {self._waiters[0].entry.id}{self._step_text()}"
        before = self._waiters.index(waiter)
        requests = sum(other.is_request for other in list(self._waiters)[:before])
        return in_line(own, requests + 1)

    def _step_text(self) -> str:
        """Return the latest step of a load or restart, as the end of a line."""
        return "" if self._step is None else f": {step_text(self._step)}"

    def _withdraw(self, waiter: _Waiter) -> None:
        if not waiter.granted.done():
            self._waiters.remove(waiter)
            self._advance()
        elif waiter.granted.exception() is None:
            self._give_back(waiter.granted.result())

    def _give_back(self, model: LoadedModel) -> None:
        model.give_back()
        self._returned.set()
        if model is self._current and not model.num_borrowers:
            self._idle.begin(model)
        self._advance()

    def _advance(self) -> None:
        """Give the loaded model to the first requests in the queue that are for it.

        When the first request is for another model and the loaded one is not in use, begin to load
        the other model.
        """
        while self._waiters and self._swap is None and not self._closed:
            entry = self._waiters[0].entry
            current = self._current
            if current is not None and current.entry.id == entry.id and current.usable:
                self._idle.end()
                self._waiters.popleft().granted.set_result(current.borrow())
            elif current is None or current.num_borrowers == 0:
                self._idle.end()
                self._loading, self._step = entry, None
                self.failures.pop(entry.id, None)
                self._swap = create_background_task(self._load(entry), f"load {entry.id}")
                self._swap.add_done_callback(functools.partial(self._loaded, entry))
            else:
                return

    async def _load(self, entry: ModelEntry) -> None:
        """Replace the loaded model by `entry`. It is unloaded first, since both may not fit."""
        if self._current is not None:
            log.info("unloading %s", self._current.entry.id)
            old, self._current = self._current, None
            await old.engine.close()
        self._idle_unloads.pop(entry.id, None)
        log.info("loading %s from %s", entry.id, entry.spec.target.source)
        self.text.renew()  # the text process imports its libraries while the engine loads
        statistics = EngineStatistics(entry.id, self._metrics)
        books = PageBooks()

        def restarted() -> None:
            self._step = None
            books.clear()
            statistics.restarted()

        def replanned(moved: Replanned) -> None:
            statistics.replanned(moved)
            if self._current is not None and self._current.engine is engine:
                self._current.note_move(moved)

        engine = self._engine_factory(
            entry.spec,
            max_queue=self._settings.max_queue,
            callbacks=EngineCallbacks(
                self._note_step,
                statistics.passed,
                statistics.audited,
                statistics.checked,
                replanned,
                statistics.kept,
                restarted,
                statistics.resumed,
            ),
        )
        try:
            info = await engine.start()
            facts = await self.text.load(info.tokenizer_path, entry.chat_template)
            statistics.loaded(info)
            formats = formats_of(facts.template, entry.parsers.tools, entry.parsers.reasoning)
            loaded = LoadedModel(entry, engine, info, self.text, facts, statistics, formats, books)
            if self._peers is not None:
                run_at_peers(loaded, self._peers, self._settings.load_timeout)
                if self._peers.runs_here:
                    loaded.read_contents()
            loaded.log_remarks()
            self._current = loaded
        finally:
            if self._current is None:
                await engine.close()
        log.info("loaded %s: %s", entry.id, info.plan)

    def _loaded(self, entry: ModelEntry, swap: asyncio.Task[None]) -> None:
        self._swap = self._loading = self._step = None
        error = None if swap.cancelled() else swap.exception()
        if error is not None:
            log.error("%s could not be loaded", entry.id)  # the waiting requests get the reason
            self.failures[entry.id] = reason_of(error)
            self._refuse([w for w in self._waiters if w.entry.id == entry.id], error)
        self._advance()

    def _unload_idle(self, model: LoadedModel) -> None:
        if model is self._current and self._swap is None:
            self._idle_unloads[model.entry.id] = time.monotonic()
            self._begin_unload(model, 0.0, f"idle for {model.entry.idle_unload:g} s")

    def _begin_unload(self, model: LoadedModel, grace: float, why: str) -> asyncio.Task[None]:
        self._idle.end()
        self._unloading = True
        unloading = self._unload(model, grace, why)
        self._swap = create_background_task(unloading, f"unload {model.entry.id}")
        self._swap.add_done_callback(self._unloaded)
        return self._swap

    async def _unload(self, model: LoadedModel, grace: float, why: str) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                while model.num_borrowers:
                    self._returned.clear()
                    await self._returned.wait()
        log.info("unloading %s, %s", model.entry.id, why)
        await model.engine.close()
        if not model.num_borrowers:
            self.text.rest()
        self._current = None

    def _unloaded(self, _: asyncio.Task[None]) -> None:
        self._swap, self._unloading = None, False
        self._advance()

    def _note_step(self, step: LoadProgress) -> None:
        self._step = self._meter.measure(step, time.monotonic())
        self._progress(self._step)

    def _refuse(self, waiters: list[_Waiter], error: BaseException) -> None:
        for waiter in waiters:
            self._waiters.remove(waiter)
            waiter.granted.set_exception(error)
