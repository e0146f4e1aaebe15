"""The front end's client of the text process: it runs functions in worker processes under limits.

`TextProcess` starts the host process again when it dies, keeps a pool of workers for each range of
body sizes (`Lane`), and turns the end of a worker into an error for the request that caused it.
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

from engine.errors import EngineDied
from engine.log_lines import write_line
from server.errors import ApiError
from server.logs.context import create_background_task
from server.text import frames
from server.text.handle import Host
from server.text.limits import LANES, Lane, too_large, too_slow
from server.text.messages import Answer, Call, Ended, TextFacts
from server.text.tokenizer import Tokenizer

log = logging.getLogger("understudy.text")

SLOW_S = 1.0  # a call that runs longer than this frees its slot for another call
IDLE_S = 10.0  # an idle worker beyond the lane's `kept` is ended after this time
RESTART_WAIT_S = 20.0  # the longest time that a call waits for a host that is being restarted
FIRST_DELAY_S, LONGEST_DELAY_S = 0.25, 30.0  # bounds of the growing delay between restarts
GOOD_SERVICE_S = 30.0  # a host that lived at least this long is restarted without a delay

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(eq=False)
class _Worker:
    """A worker process as the front end sees it: its number, its host and its pipe."""

    number: int
    host: Host
    has_tokenizer: bool
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    retirement: asyncio.TimerHandle | None = None  # the timer that ends it while it is idle


@dataclass
class _Seat:
    """A running call's place in a pool: the worker that runs it, and whether it freed its slot."""

    worker: _Worker | None = None
    is_slow: bool = False  # it has run for `SLOW_S` and no longer occupies a slot
    timer: asyncio.TimerHandle | None = None  # calls `_Pool._become_slow`


@dataclass
class _Pool:
    """The workers of one lane, with the slots that limit how many calls run at once."""

    lane: Lane
    slots: asyncio.Semaphore
    idle: list[_Worker] = field(default_factory=list)
    num_slow: int = 0

    @contextlib.asynccontextmanager
    async def seat(self) -> AsyncGenerator[_Seat, None]:
        """Wait for a free slot, and hold it until the block ends or the call has become slow."""
        await self.slots.acquire()
        seat = _Seat()
        self._watch(seat)
        try:
            yield seat
        finally:
            if seat.timer is not None:
                seat.timer.cancel()
            if seat.is_slow:
                self.num_slow -= 1
            else:
                self.slots.release()

    def _watch(self, seat: _Seat) -> None:
        seat.timer = asyncio.get_running_loop().call_later(SLOW_S, self._become_slow, seat)

    def _become_slow(self, seat: _Seat) -> None:
        """Free the slot of a call that takes long, and lower the priority of its worker.

        Nothing changes if the lane has `slow_workers` slow calls already.
        """
        if seat.worker is None:  # the call has not begun: the host is still starting
            self._watch(seat)
        elif self.num_slow < self.lane.slow_workers:
            self.num_slow += 1
            seat.is_slow = True
            self.slots.release()
            seat.worker.host.give_way(seat.worker.number)


class TextProcess:
    """A host process and its workers. All methods must be called in the same event loop.

    The host is started by the first call or by `renew`, and again whenever it dies. When a worker
    dies for a reason that is not the call itself (such as the death of its host), the call is run
    once more in another worker.
    """

    def __init__(self, modules: Sequence[str] = (), lanes: Sequence[Lane] = LANES) -> None:
        """Create the client without starting a process.

        Args:
            modules: modules that the host imports once, so that workers share them: those with the
                functions that will be called.
            lanes: the ranges of body sizes and their limits, smallest first.
        """
        self._modules = modules
        self._pools = [_Pool(lane, asyncio.Semaphore(lane.workers)) for lane in lanes]
        self._host: Host | None = None
        self._model: tuple[str, str | None] | None = None  # folder and template of the tokenizer
        self._up = asyncio.Event()  # set while there is a host
        self._watching: set[asyncio.Task[None]] = set()
        self._is_reviving = False  # a host has died, and another one is being started
        self._delay = 0.0
        self._num_forked = 0
        self._closed = False

    def renew(self) -> None:
        """Start a new host unless the present one never loaded a tokenizer.

        The old host ends, which frees the memory of the tokenizer that it loaded.
        """
        if self._host is None or self._host.was_used:
            self._model = None
            self._start()

    def rest(self) -> None:
        """End the host, which frees its memory; running calls are finished.

        The next call or load starts another one.
        """
        if self._host is not None:
            self._host.retire()
            self._drop_idle()
            self._host = self._model = None
            self._up.clear()

    async def load(self, folder: str, chat_template: str | None) -> TextFacts:
        """Load the tokenizer of a folder and return what the front end needs to know of it.

        Raises `ModelError` when the tokenizer or its chat template cannot be used.
        """
        self.renew()
        assert self._host is not None, "it was renewed"
        loading = self._host.load(folder, chat_template, self._pools[0].lane)
        facts = await asyncio.shield(loading)  # cancelling the caller does not stop the host's load
        self._model = (folder, chat_template)
        self._drop_idle()  # workers forked before the load have no tokenizer
        return facts

    async def call(
        self, function: Callable[Concatenate[bytes, P], T], raw: bytes, *args: P.args, **_: P.kwargs
    ) -> T:
        """Run `function(raw, *args)` in a worker and return its result.

        Raises the `ApiError` that the function raised, or one that says which limit ended it.
        """
        result: T = await self._run(Call(function, args, on_model=False), raw)
        return result

    async def call_on_model(
        self,
        function: Callable[Concatenate[Tokenizer, bytes, P], T],
        raw: bytes,
        *args: P.args,
        **_: P.kwargs,
    ) -> T:
        """Run `function(tokenizer, raw, *args)` in a worker and return its result, as `call`."""
        result: T = await self._run(Call(function, args, on_model=True), raw)
        return result

    async def close(self) -> None:
        """End the host and all its workers. Calls that are running raise `EngineDied`."""
        self._closed = True
        self._up.set()
        self._drop_idle()
        for watching in self._watching:
            watching.cancel()
        if self._host is not None:
            await self._host.close()

    # -- calls

    async def _run(self, call: Call, raw: bytes) -> Any:
        """Run a call in a worker of the lane for the size of `raw`, and return its result."""
        message = frames.frame(call, raw)
        pool = next(pool for pool in self._pools if len(raw) <= pool.lane.most_bytes)
        async with pool.seat() as seat:
            for _ in range(2):
                worker = seat.worker = await self._take(pool)
                reply = await self._ask(worker, message)
                if reply is not None:
                    return await self._result(pool, worker, reply, seat.is_slow)
                ended = await worker.host.ended(worker.number)
                _close(worker)
                if self._closed:
                    raise EngineDied("The server is shutting down.", "engine_closed")
                if ended is not None and (error := fault_of(ended, pool.lane)) is not None:
                    raise error
        log.error(
            "A worker of the text process ended twice during the same request (%s). If the system "
            "is short of memory, give it more, or let fewer requests in.",
            "unknown how" if ended is None else f"exit code {ended.exit_code}",
        )
        message_ = "The process that prepares requests ended twice during this one; try again."
        raise ApiError.unavailable(message_, "text_process_died")

    async def _take(self, pool: _Pool) -> _Worker:
        """Return an idle worker of the present host, or fork a new one."""
        host = await self._running_host()
        while pool.idle:
            worker = pool.idle.pop()
            if worker.retirement is not None:
                worker.retirement.cancel()
            if worker.host is host:
                return worker
            _close(worker)
        self._num_forked += 1
        number, has_tokenizer = self._num_forked, self._model is not None
        return _Worker(number, host, has_tokenizer, *await host.fork(number, pool.lane))

    async def _running_host(self) -> Host:
        """Return the host once it is ready; start one if there is none.

        Raises `ApiError` 503 if it takes more than `RESTART_WAIT_S`, `EngineDied` after `close`.
        """
        if self._host is None and not self._is_reviving and not self._closed:
            self._start()
        try:
            async with asyncio.timeout(RESTART_WAIT_S):
                while True:
                    await self._up.wait()
                    if self._closed or self._host is None:
                        raise EngineDied("The server is shutting down.", "engine_closed")
                    host = self._host
                    await host.ready()
                    if host is self._host:
                        return host
        except TimeoutError:
            message = "The process that prepares requests is being started again; try again later."
            raise ApiError.unavailable(message, "text_process_starting") from None

    async def _ask(self, worker: _Worker, message: frames.Frame) -> frames.Frame | None:
        """Send a message to a worker and return its reply, or None if the worker died.

        If the caller is cancelled, the worker is killed.
        """
        try:
            await frames.write(worker.writer, message)
            return await frames.read(worker.reader)
        except (OSError, asyncio.IncompleteReadError):
            return None
        except BaseException:
            worker.host.kill(worker.number)
            _close(worker)
            raise

    async def _result(
        self, pool: _Pool, worker: _Worker, reply: frames.Frame, is_slow: bool
    ) -> Any:
        answer: Answer = await frames.unpickled(reply)
        self._give_back(pool, worker, answer, is_slow)
        for line in answer.log:
            write_line(line, log)
        if answer.error is not None:
            raise answer.error
        if answer.bug:
            raise RuntimeError(f"A call failed in the text process:\n{answer.bug}")
        return reply.raw or answer.value

    def _give_back(self, pool: _Pool, worker: _Worker, answer: Answer, is_slow: bool) -> None:
        """Keep a worker for later calls, or close it if it cannot serve them."""
        is_current = worker.host is self._host
        has_tokenizer = worker.has_tokenizer == (self._model is not None)
        if answer.is_last or is_slow or not is_current or not has_tokenizer:
            _close(worker)
            return
        pool.idle.append(worker)
        loop = asyncio.get_running_loop()
        worker.retirement = loop.call_later(IDLE_S, self._retire, pool, worker)

    def _retire(self, pool: _Pool, worker: _Worker) -> None:
        if worker in pool.idle and len(pool.idle) > pool.lane.kept:
            pool.idle.remove(worker)
            _close(worker)

    def _drop_idle(self) -> None:
        for pool in self._pools:
            for worker in pool.idle:
                if worker.retirement is not None:
                    worker.retirement.cancel()
                _close(worker)
            pool.idle.clear()

    # -- the host

    def _start(self) -> None:
        """Start a new host in place of the present one, with the tokenizer that was loaded."""
        if self._host is not None:
            self._host.retire()
        self._drop_idle()
        self._host = Host(self._modules)
        if self._model is not None:
            self._host.load(*self._model, self._pools[0].lane).add_done_callback(_log_failure)
        self._up.set()
        watching = create_background_task(self._watch(self._host), "text host's end")
        self._watching.add(watching)
        watching.add_done_callback(self._watching.discard)

    async def _watch(self, host: Host) -> None:
        """Wait until `host` dies, and start another one unless it was replaced on purpose."""
        await host.gone()
        if host.is_retired or host is not self._host:
            return
        self._host = None
        self._up.clear()
        lived = asyncio.get_running_loop().time() - host.started_at
        if lived >= GOOD_SERVICE_S:
            self._delay = 0.0
        log.error(
            "The text process ended (exit code %s) and is started again; requests wait for it. If "
            "this goes on, the system may be short of memory.",
            host.exit_code,
        )
        self._is_reviving = True
        while self._host is None and not self._closed:
            await asyncio.sleep(self._delay)
            self._delay = min(max(2 * self._delay, FIRST_DELAY_S), LONGEST_DELAY_S)
            try:
                self._start()
            except OSError as error:
                log.error("The text process could not be started: %s. It is tried again.", error)
        self._is_reviving = False


def fault_of(ended: Ended, lane: Lane) -> ApiError | None:
    """Return the error for a call that exceeded a limit and so ended its worker.

    Returns None if the worker ended for a reason that is not the call's fault.
    """
    match -ended.exit_code:
        case signal.SIGPROF | signal.SIGALRM:
            return too_slow(ended.stage, lane)
        case signal.SIGABRT | signal.SIGSEGV | signal.SIGBUS:  # Rust and C code out of memory
            return too_large(ended.stage, lane)
        case _:
            return None


def _close(worker: _Worker) -> None:
    """Close the pipe of a worker; the worker process ends when it reads the end of the pipe."""
    worker.host.forget(worker.number)
    with contextlib.suppress(OSError):
        worker.writer.close()


def _log_failure(loading: "asyncio.Future[TextFacts]") -> None:
    if not loading.cancelled() and (error := loading.exception()) is not None:
        log.error("The tokenizer could not be loaded again: %s", error)
