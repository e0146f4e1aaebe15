"""The front end's handle of one host process: it spawns, commands and ends the process."""

import asyncio
import atexit
import contextlib
import logging
import signal
import socket
from collections.abc import Sequence
from multiprocessing import get_context

from engine.errors import ModelError
from engine.log_lines import LogLine, write_line
from engine.process.signals import group_signals_blocked
from server.logs.context import create_background_task
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

log = logging.getLogger("understudy.text")

END_S = 5.0  # a host that has not ended after this time is killed
READ_AHEAD = 1 << 20  # bytes of a pipe that asyncio buffers ahead of the reader


class Host:
    """One host process. The object must be made and used inside a running event loop."""

    def __init__(self, modules: Sequence[str]) -> None:
        """Spawn the process, which imports `modules`.

        Raises OSError when the system cannot start a process.
        """
        ours, theirs = socket.socketpair()
        context = get_context("spawn")  # a fork would inherit all files, the listening socket too
        self._process = context.Process(
            target=host.main, args=(theirs, tuple(modules)), name="text host", daemon=True
        )
        try:
            with group_signals_blocked():
                self._process.start()
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()  # an open copy here would hide the end of the pipe
        # At exit multiprocessing sends SIGTERM, which the process ignores, and waits for ever.
        atexit.register(self._process.kill)
        self._control = ours
        self._ready = asyncio.Event()
        self._loading: asyncio.Future[TextFacts] | None = None
        self._ended: dict[int, asyncio.Future[Ended | None]] = {}
        self._retired = False
        loop = asyncio.get_running_loop()
        self.started_at = loop.time()
        self.exit_code: int | None = None  # once it has ended
        self._reading = create_background_task(self._read(), "text host")

    @property
    def is_retired(self) -> bool:
        """Whether the process was asked to end, by `retire` or `close`."""
        return self._retired

    async def ready(self) -> None:
        """Wait until the process can handle messages, or has ended.

        It handles none while it imports its libraries and while it loads a tokenizer.
        """
        await self._ready.wait()
        if self._loading is not None:
            await asyncio.wait([self._loading])

    @property
    def was_used(self) -> bool:
        """Whether `load` was called: each host loads one tokenizer, so a used one is replaced."""
        return self._loading is not None

    async def gone(self) -> None:
        """Wait until the process has ended and its exit code is known."""
        await asyncio.wait([self._reading])

    def load(
        self, folder: str, chat_template: str | None, trial: Lane
    ) -> "asyncio.Future[TextFacts]":
        """Start to load a tokenizer, which workers forked after this call will have.

        Return a future of what the front end needs to know of the tokenizer. It raises `ModelError`
        when the tokenizer cannot be loaded.

        Args:
            folder: the folder with the tokenizer's files.
            chat_template: a template to use instead of the folder's own.
            trial: the limits within which the chat template must be compiled.
        """
        self._loading = asyncio.get_running_loop().create_future()
        self._loading.add_done_callback(_retrieve)
        self._folder = folder
        self._send(Load(folder, chat_template, trial))
        return self._loading

    async def fork(
        self, number: int, lane: Lane
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Fork a worker under the limits of `lane`; return the reader and writer of its pipe."""
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
        """Give a worker the lowest scheduling priority, because its call takes long."""
        self._send(GiveWay(number))

    def kill(self, number: int) -> None:
        """Kill a worker whose answer is no longer needed."""
        self._send(Kill(number))
        self.forget(number)

    async def ended(self, number: int) -> Ended | None:
        """Wait until a worker has ended and return how.

        Returns None if its host ended first, or if `forget` was called for the worker.
        """
        ended = self._ended.get(number)
        return None if ended is None else await ended

    def forget(self, number: int) -> None:
        """Stop tracking how a worker ends, because `ended` will not be called for it."""
        self._ended.pop(number, None)

    def retire(self) -> None:
        """Ask the process to end; its workers finish their present calls."""
        self._retired = True
        self._send(Retire())
        self._kill_if_busy()

    async def close(self) -> None:
        """End the process and its workers, and wait until the process has ended."""
        self._retired = True
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        self._kill_if_busy()
        await asyncio.wait([self._reading], timeout=END_S)
        if not self._reading.done():
            self._process.kill()
            await asyncio.wait([self._reading])

    def _kill_if_busy(self) -> None:
        """Kill a host that is importing or loading.

        It would not read a message until it is done, and it has no workers that could be lost.
        """
        is_loading = self._loading is not None and not self._loading.done()
        if self.exit_code is None and (is_loading or not self._ready.is_set()):
            self._process.kill()

    def _send(
        self, message: Load | Fork | GiveWay | Kill | Retire, fds: Sequence[int] = ()
    ) -> None:
        try:
            frames.send(self._control, frames.frame(message), fds)
        except BlockingIOError:  # the pipe holds hundreds of unread messages: the host hangs
            self._process.kill()
        except OSError:
            pass  # the process has ended, which `_read` detects and handles

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
        atexit.unregister(self._process.kill)
        self._process.close()
        self._control.close()
        if self._loading is not None and not self._loading.done():
            self._loading.set_exception(ModelError(self._why_not_loaded()))
        self._ready.set()
        for number in list(self._ended):
            self._lose(number)

    def _hear(self, message: Ready | Loaded | NotLoaded | Ended | LogLine) -> None:
        match message:
            case LogLine():
                write_line(message, log)
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
    """Retrieve the exception of a finished load, or asyncio logs it as never retrieved."""
    if not loading.cancelled():
        loading.exception()
