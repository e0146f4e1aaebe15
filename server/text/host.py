"""The host of the text process: it imports libraries, loads a tokenizer, and forks workers.

The workers share the memory of both. The host has a single thread, so that a fork copies no lock
that another thread holds. It runs no work of requests itself, so that it can always react to a
message that asks it to kill a worker. It ends when its pipe to the front end is closed, which also
happens when the front end dies.
"""

import gc
import importlib
import logging
import mmap
import os
import select
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from engine.errors import ModelError
from engine.log_lines import LogLine, adopt_libraries, send_logs
from engine.process.signals import ignore_group_signals
from server.text import frames, stages, worker
from server.text.limits import LOAD, MB, Lane, bounded
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
from server.text.stages import Stage
from server.text.tokenizer import Tokenizer, load_tokenizer, template_file
from server.text.trial import forked, tried

log = logging.getLogger("understudy.text")

# The libraries read these variables when they are imported. Their threads would not survive a fork,
# and a Rust backtrace in the log for each text that a tokenizer rejects would be of no use.
ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "RUST_BACKTRACE": "0",
}
LOWEST_PRIORITY = 19


@dataclass(frozen=True)
class _Child:
    """A forked worker as its host tracks it."""

    number: int
    stage: mmap.mmap  # one byte, shared with the worker, which writes its `Stage` there


def main(control: socket.socket, modules: Sequence[str]) -> None:
    """Run the spawned process: import `modules`, then handle messages until `control` is closed."""
    ignore_group_signals()
    os.environ.update(ENVIRONMENT)
    for name in modules:
        importlib.import_module(name)
    host = _Host(control)
    send_logs(host.send)
    host.run()


class _Host:
    """The state of the host process and the loop that handles the front end's messages."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, _Child] = {}  # by process id
        self._tokenizer: Tokenizer | None = None
        self._woken, self._waker = socket.socketpair()  # readable when a worker has ended
        self._waker.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)

    def run(self) -> NoReturn:
        """Handle the front end's messages and the ends of workers until the control pipe closes.

        Then kill the remaining workers and exit this process; the method never returns.
        """
        _share_memory()
        self.send(Ready())
        while True:
            ready, _, _ = select.select([self._control, self._woken], [], [])
            if self._woken in ready:
                self._woken.recv(4096)
            self._reap()
            if self._control in ready:
                received = frames.receive(self._control)
                if received is None:
                    self._end()
                message, fds = received
                self._obey(message.message, fds)

    def _obey(self, message: Load | Fork | GiveWay | Kill | Retire, fds: Sequence[int]) -> None:
        match message:
            case Load():
                self._load(message)
            case Fork(number, lane):
                with socket.socket(fileno=fds[0]) as connection:
                    self._fork(number, lane, connection)
            case Kill(number):
                for pid in self._pids(number):
                    os.kill(pid, signal.SIGKILL)
            case GiveWay(number):
                for pid in self._pids(number):
                    os.setpriority(os.PRIO_PROCESS, pid, LOWEST_PRIORITY)
            case Retire():
                os._exit(0)

    def _pids(self, number: int) -> list[int]:
        """Return the id of a worker's process in a list, which is empty once it was reaped.

        The system may give the id of a reaped process to another one, so it must not be used.
        """
        return [pid for pid, child in self._children.items() if child.number == number]

    def _end(self) -> NoReturn:
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        os._exit(0)

    def _fork(self, number: int, lane: Lane, connection: socket.socket) -> None:
        stage = mmap.mmap(-1, 1)

        def work() -> None:
            self._control.close()
            logged: list[LogLine] = []
            send_logs(logged.append)
            stages.use_shared(stage)
            worker.serve(connection, lane, self._tokenizer, logged)

        self._children[forked(work)] = _Child(number, stage)

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            child = self._children.pop(pid)
            stage = Stage(child.stage[0])
            child.stage.close()
            self.send(Ended(child.number, os.waitstatus_to_exitcode(status), stage))

    def _load(self, order: Load) -> None:
        self._tokenizer = None
        folder, chat_template = order.folder, order.chat_template
        try:
            with bounded(LOAD):
                tokenizer = load_tokenizer(folder, chat_template)
                facts = TextFacts(tokenizer.bytes, tokenizer.template)
        except ModelError as error:
            self.send(NotLoaded(str(error)))
            return
        except MemoryError:
            size = f"{LOAD.memory // MB} MiB"
            self.send(NotLoaded(f"{folder}: loading its tokenizer takes more memory than {size}"))
            return
        reason = tried(tokenizer.compile_template, order.trial).reason
        if reason:
            where = template_file(folder, chat_template)
            message = (
                f"{where}: the chat template cannot be compiled: {reason}. Correct it, or set "
                "another with `chat_template` in the model's YAML file"
            )
            self.send(NotLoaded(message))
            return
        with bounded(
            order.trial
        ):  # the trial's limits, so that jinja folds the same constants as in the trial
            tokenizer.compile_template()  # again in this process, so that workers share the result
        found = tried(tokenizer.probed, order.trial)
        if found.value is None:
            log.warning(
                "%s: the trial of the chat template ended early: %s. Conversations that it does "
                "not take are found out at each request.",
                template_file(folder, chat_template),
                found.reason,
            )
        self._tokenizer = replace(tokenizer, support=found.value or tokenizer.support)
        self._tokenizer.grammar_checker.prepare()
        _share_memory()
        adopt_libraries()
        self.send(Loaded(facts))

    def send(self, message: Ready | Loaded | NotLoaded | Ended | LogLine) -> None:
        """Send a message to the front end, and end this process where that has ended."""
        try:
            frames.send(self._control, frames.frame(message))
        except OSError:
            self._end()


def _share_memory() -> None:
    """Keep the garbage collector from writing to the memory that forked workers share.

    Each write would make the system copy a page for the process that wrote.
    """
    gc.collect()
    gc.freeze()
