"""One engine process as the front end sees it: spawned, talked to, watched, ended."""

import asyncio
import atexit
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection

from engine.messages import Inbound, Outbound
from engine.process.pipe import PipeReader, PipeWriter
from engine.process.signals import group_signals_blocked
from engine.spec import ModelSpec

Target = Callable[[Connection, ModelSpec], None]

# Read by the child's libraries before any line of ours runs; the user's own settings stand.
CHILD_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads stall each other on a busy machine
    "TOKENIZERS_PARALLELISM": "false",
}


class Child:
    """An engine process and both directions of its pipe. Made and used inside the event loop."""

    def __init__(
        self, target: Target, spec: ModelSpec, on_message: Callable[[Outbound], None]
    ) -> None:
        """Spawn the process. Raises OSError when the system cannot."""
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(
            target=target, args=(theirs, spec), name=f"engine {spec.id}", daemon=True
        )
        try:
            with _environment(CHILD_ENVIRONMENT), group_signals_blocked():
                self._process.start()
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()  # or its end of file would never come
        # multiprocessing's own end would wait for ever: its SIGTERM is ignored.
        atexit.register(self.kill)
        self._connection = ours
        self._reader = PipeReader(ours)
        self._writer = PipeWriter(ours)
        self._on_message = on_message
        self._gone = asyncio.Event()
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._reader.fileno(), self._read)
        self._loop.add_reader(self._process.sentinel, self._on_exit)

    @property
    def pid(self) -> int:
        pid = self._process.pid
        assert pid is not None, "the process was started"
        return pid

    def send(self, message: Inbound) -> None:
        """Send in order, without waiting; dropped when the process is gone."""
        self._writer.send(message)

    async def gone(self) -> None:
        """Wait until the process ended or closed its pipe; all it sent has been delivered then."""
        await self._gone.wait()

    def dump_stacks(self) -> None:
        """Have the process write the stacks of its threads to stderr. Only once it is loaded."""
        self._signal(signal.SIGUSR1)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    async def exit_code(self) -> int:
        """Wait for the end of the process: its code, or minus the signal that ended it.

        A driver may take seconds to give pinned memory back.
        """
        await asyncio.to_thread(self._process.join)
        code = self._process.exitcode
        assert code is not None, "the process has been joined"
        return code

    async def close(self) -> None:
        """End the process if it still lives, wait for it, and give everything back."""
        self._stop_reading()
        self.kill()
        await self.exit_code()
        await asyncio.to_thread(self._writer.close)
        self._reader.close()
        self._connection.close()
        self._process.close()
        self._closed = True
        atexit.unregister(self.kill)

    def _read(self) -> None:
        for messages in self._reader.read():
            for message in messages:
                self._on_message(message)
        if self._reader.at_end:
            self._stop_reading()
            self._gone.set()

    def _on_exit(self) -> None:
        self._read()
        self._stop_reading()
        self._gone.set()

    def _stop_reading(self) -> None:
        self._loop.remove_reader(self._reader.fileno())
        self._loop.remove_reader(self._process.sentinel)

    def _signal(self, number: int) -> None:
        if not self._closed and self._process.exitcode is None:
            os.kill(self.pid, number)


def explain_exit(code: int) -> str:
    """An exit code in words, with what may have caused it."""
    if code >= 0:
        return f"exit code {code}, see its last lines on stderr"
    number = -code
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    if number == signal.SIGKILL:
        return f"{name}: often the system's answer to a lack of memory, see memory.ram"
    return name


@contextmanager
def _environment(defaults: dict[str, str]) -> Iterator[None]:
    """Adds variables that are not set while a process is started."""
    added = [name for name in defaults if name not in os.environ]
    os.environ.update({name: defaults[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
