"""An engine process, seen from the front end: it is spawned, sent messages, and ended."""

import asyncio
import atexit
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection

from engine.cgroups import count_kills, let_die_first
from engine.log_lines import LogLine, write_line
from engine.messages import Inbound, Outbound
from engine.process.pipe import PipeReader, PipeWriter
from engine.process.signals import group_signals_blocked
from engine.spec import ModelSpec

log = logging.getLogger("understudy.engine")

EntryPoint = Callable[[Connection, ModelSpec], None]  # the function that a spawned process runs

# Set before the process starts, as its libraries read them at import. The user's own values win.
CHILD_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads block each other on a busy machine
    "TOKENIZERS_PARALLELISM": "false",
    # Segments that grow waste less of a device's memory. CUDA's allocator reads it when it starts.
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
}
_OLDER_NAMES = {"PYTORCH_ALLOC_CONF": "PYTORCH_CUDA_ALLOC_CONF"}


class Child:
    """An engine process and both directions of its pipe. It is used inside an event loop only."""

    def __init__(
        self, target: EntryPoint, spec: ModelSpec, on_message: Callable[[Outbound], None]
    ) -> None:
        """Spawn a process that runs `target`. Raise OSError when the system cannot.

        Args:
            on_message: is called in the event loop with each message of the process. Its log lines
                are no messages: they are logged here.
        """
        self._kills_before = count_kills()
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(
            target=target, args=(theirs, spec), name=f"engine {spec.id}", daemon=True
        )
        try:
            with child_environment(), group_signals_blocked():
                self._process.start()
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()  # else the end of the process would not close the pipe
        let_die_first(self.pid)
        # At exit multiprocessing sends SIGTERM, which the process ignores, and waits for ever.
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
        """The process id of the engine."""
        pid = self._process.pid
        assert pid is not None, "the process was started"
        return pid

    def send(self, message: Inbound) -> None:
        """Send a message in order, without waiting. It is dropped when the process has ended."""
        self._writer.send(message)

    async def wait_until_gone(self) -> None:
        """Wait until the process has ended or closed its pipe, and all its messages are read."""
        await self._gone.wait()

    def dump_stacks(self) -> None:
        """Make the process write the stacks of its threads to stderr. The model must be loaded."""
        self._signal(signal.SIGUSR1)

    def kill(self) -> None:
        """End the process at once, if it is running."""
        self._signal(signal.SIGKILL)

    async def exit_code(self) -> int:
        """Wait for the end of the process, and return its exit code or minus the signal.

        The end may take seconds, in which a driver releases pinned memory.
        """
        await asyncio.to_thread(self._process.join)
        code = self._process.exitcode
        assert code is not None, "the process has been joined"
        return code

    @property
    def had_no_memory(self) -> bool:
        """Whether the kernel has ended a process of the cgroup since this one was started."""
        return count_kills() > self._kills_before

    async def close(self) -> None:
        """End the process if it is running, wait for its end, and release its resources."""
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
                if isinstance(message, LogLine):
                    write_line(message, log)
                else:
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
            # The thread of `exit_code` may have collected the process, with its code not set yet.
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def explain_exit(code: int, *, had_no_memory: bool = False) -> str:
    """Return an exit code in words, with its cause or its likely cause.

    Args:
        had_no_memory: whether the kernel has ended a process of its cgroup for lack of memory.
    """
    if code >= 0:
        return f"exit code {code}, see the last lines on stderr"
    if code == -signal.SIGKILL and had_no_memory:
        return (
            "SIGKILL by the kernel: the memory limit of its cgroup was reached. The next plan fits "
            "what is left; before a limit is lowered, lower that of the model, or set memory.high"
        )
    number = -code
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    if number == signal.SIGKILL:
        return f"{name}: the system often sends it when memory runs out, see memory.ram"
    return name


@contextmanager
def child_environment() -> Iterator[None]:
    """Set those variables of `CHILD_ENVIRONMENT` that have no value, within this block."""
    added = [
        name
        for name in CHILD_ENVIRONMENT
        if not {name, _OLDER_NAMES.get(name, name)} & os.environ.keys()
    ]
    os.environ.update({name: CHILD_ENVIRONMENT[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
