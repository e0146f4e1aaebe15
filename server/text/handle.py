"""The front end's hold on one host process: spawned, told what to do, and ended."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Sequence
from multiprocessing import get_context

from engine.errors import ModelError
from server.text import frames, host
from server.text.limits import LOAD, Lane
from server.text.messages import (
    Ended,
    Fork,
    GiveWay,
    Kill,
    Load,
    Loaded,
    NotLoaded,
    Ready,
    Retire,
    TextFacts,
)

END_S = 5.0  # for a host that was told to end; then it is killed
READ_AHEAD = 1 << 20  # bytes that are read of a pipe before anybody asks for them


class Host:
    """One host process. Made and used inside the event loop."""

    def __init__(self, modules: Sequence[str]) -> None:
        """Spawn the process, which imports `modules`. Raises OSError when the system cannot."""
        ours, theirs = socket.socketpair()
        context = get_context("spawn")  # it inherits no file but its own: no listening socket
        self._process = context.Process(
            target=host.main, args=(theirs, tuple(modules)), name="text host", daemon=True
        )
        try:
            self._process.start()
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()  # or its end of file would never come
        self._control = ours
        self._ready = asyncio.Event()
        self._loading: asyncio.Future[TextFacts] | None = None
        self._ended: dict[int, asyncio.Future[Ended | None]] = {}
        self._retired = False
        loop = asyncio.get_running_loop()
        self.started_at = loop.time()
        self.exit_code: int | None = None  # once it has ended
        self._reading = loop.create_task(self._read(), name="text host")

    @property
    def is_retired(self) -> bool:
        """Whether it was told to end."""
        return self._retired

    async def ready(self) -> None:
        """Wait until the process takes orders, or has ended: it does not while it loads."""
        await self._ready.wait()
        if self._loading is not None:
            await asyncio.wait([self._loading])

    @property
    def was_used(self) -> bool:
        """Whether a tokenizer was ever asked for: only a fresh host takes another."""
        return self._loading is not None

    async def gone(self) -> None:
        """Wait until the process has ended."""
        await asyncio.wait([self._reading])

    def load(
        self, folder: str, chat_template: str | None, trial: Lane
    ) -> "asyncio.Future[TextFacts]":
        """Load a tokenizer; workers that are forked from now on have it.

        The chat template must be compiled within the limits of `trial`.

        The future raises `ModelError` when it cannot be loaded.
        """
        self._loading = asyncio.get_running_loop().create_future()
        self._loading.add_done_callback(_retrieve)
        self._folder = folder
        self._send(Load(folder, chat_template, trial))
        return self._loading

    async def fork(
        self, number: int, lane: Lane
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return the pipe of a new worker."""
        ours, theirs = socket.socketpair()
        self._ended[number] = asyncio.get_running_loop().create_future()
        with theirs:
            self._send(Fork(number, lane), [theirs.fileno()])
        if self._reading.done():
            self._lose(number)
        try:
            return await asyncio.open_unix_connection(sock=ours, limit=READ_AHEAD)
        except BaseException:
            ours.close()
            self.kill(number)
            raise

    def give_way(self, number: int) -> None:
        """Let whatever else runs go before a worker."""
        self._send(GiveWay(number))

    def kill(self, number: int) -> None:
        """End a worker whose answer nobody waits for."""
        self._send(Kill(number))
        self.forget(number)

    async def ended(self, number: int) -> Ended | None:
        """Return how a worker ended; None where its host ended before it."""
        ended = self._ended.get(number)
        return None if ended is None else await ended

    def forget(self, number: int) -> None:
        """Take no interest in how a worker ends any more."""
        self._ended.pop(number, None)

    def retire(self) -> None:
        """Have the process end; its workers finish what they are doing."""
        self._retired = True
        self._send(Retire())
        self._kill_if_busy()

    async def close(self) -> None:
        """End the process and its workers, and wait for it."""
        self._retired = True
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        self._kill_if_busy()
        await asyncio.wait([self._reading], timeout=END_S)
        if not self._reading.done():
            self._process.kill()
            await asyncio.wait([self._reading])

    def _kill_if_busy(self) -> None:
        """Kill a host that imports or loads: it reads nothing meanwhile, and has no worker yet."""
        is_loading = self._loading is not None and not self._loading.done()
        if self.exit_code is None and (is_loading or not self._ready.is_set()):
            self._process.kill()

    def _send(
        self, message: Load | Fork | GiveWay | Kill | Retire, fds: Sequence[int] = ()
    ) -> None:
        try:
            frames.send(self._control, frames.frame(message), fds)
        except BlockingIOError:  # room for hundreds of messages is full: the host hangs
            self._process.kill()
        except OSError:
            pass  # it is gone, and `_read` tells so

    async def _read(self) -> None:
        reader, writer = await asyncio.open_unix_connection(
            sock=self._control.dup(), limit=READ_AHEAD
        )
        try:
            while True:
                self._hear(await frames.read_message(reader))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
        await asyncio.to_thread(self._process.join)
        self.exit_code = self._process.exitcode
        self._process.close()
        self._control.close()
        if self._loading is not None and not self._loading.done():
            self._loading.set_exception(ModelError(self._why_not_loaded()))
        self._ready.set()
        for number in list(self._ended):
            self._lose(number)

    def _hear(self, message: Ready | Loaded | NotLoaded | Ended) -> None:
        match message:
            case Ready():
                self._ready.set()
            case Ended(number):
                if number in self._ended and not self._ended[number].done():
                    self._ended[number].set_result(message)
            case Loaded(facts):
                if self._loading is not None and not self._loading.done():
                    self._loading.set_result(facts)
            case NotLoaded(reason):
                if self._loading is not None and not self._loading.done():
                    self._loading.set_exception(ModelError(reason))

    def _lose(self, number: int) -> None:
        ended = self._ended.get(number)
        if ended is not None and not ended.done():
            ended.set_result(None)

    def _why_not_loaded(self) -> str:
        if self.exit_code in (-signal.SIGPROF, -signal.SIGALRM):
            return f"{self._folder}: loading its tokenizer took more than {LOAD.seconds:g} s"
        how = f"the process that loads it ended ({self.exit_code})"
        return f"{self._folder}: its tokenizer could not be loaded: {how}"


def _retrieve(loading: "asyncio.Future[TextFacts]") -> None:
    """Take notice of how a load ended that nobody waits for any more."""
    if not loading.cancelled():
        loading.exception()
