"""The host of the text process: imports, loads a tokenizer, and forks workers that share both.

It has a single thread, so that a fork copies no lock that another thread holds, and it runs
nothing of a request itself, so that it always hears when a worker is to be ended. It ends with the
front end: then its pipe does.
"""

import gc
import importlib
import logging
import mmap
import os
import pickle
import select
import signal
import socket
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, NoReturn, TypeVar

from engine.errors import ModelError
from server.text import frames, stages, worker
from server.text.limits import LOAD, MB, Lane, bound_memory, bound_time, bounded
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

log = logging.getLogger("understudy.text")

T = TypeVar("T")

# Read by the libraries when they are imported. Threads of theirs would not survive a fork, and a
# backtrace of Rust's in the log for each text that a tokenizer cannot take helps nobody.
ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "RUST_BACKTRACE": "0",
}
LOWEST_PRIORITY = 19
EXIT_CRASHED = 70  # EX_SOFTWARE: the traceback is on stderr
LONGEST_REASON = 500  # characters


@dataclass(frozen=True)
class _Child:
    number: int
    stage: mmap.mmap  # one byte, shared with the worker


def main(control: socket.socket, modules: Sequence[str]) -> None:
    """Entry of the spawned process: import `modules`, then serve the front end to its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group: parent decides
    os.environ.update(ENVIRONMENT)
    for name in modules:
        importlib.import_module(name)
    _Host(control).run()


class _Host:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, _Child] = {}  # by process id
        self._tokenizer: Tokenizer | None = None
        self._woken, self._waker = socket.socketpair()  # by the end of a worker
        self._waker.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)

    def run(self) -> NoReturn:
        """Serve the front end, and end with it."""
        _share_memory()
        self._send(Ready())
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
        """Return the process of a worker, if it is not reaped yet: then it may be another's."""
        return [pid for pid, child in self._children.items() if child.number == number]

    def _end(self) -> NoReturn:
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        os._exit(0)

    def _fork(self, number: int, lane: Lane, connection: socket.socket) -> None:
        stage = mmap.mmap(-1, 1)

        def work() -> None:
            self._control.close()
            stages.use_shared(stage)
            worker.serve(connection, lane, self._tokenizer)

        self._children[_forked(work)] = _Child(number, stage)

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            child = self._children.pop(pid)
            stage = Stage(child.stage[0])
            child.stage.close()
            self._send(Ended(child.number, os.waitstatus_to_exitcode(status), stage))

    def _load(self, order: Load) -> None:
        self._tokenizer = None
        folder, chat_template = order.folder, order.chat_template
        try:
            with bounded(LOAD):
                tokenizer = load_tokenizer(folder, chat_template)
                facts = TextFacts(tokenizer.bytes, tokenizer.template)
        except ModelError as error:
            self._send(NotLoaded(str(error)))
            return
        except MemoryError:
            size = f"{LOAD.memory // MB} MiB"
            self._send(NotLoaded(f"{folder}: loading its tokenizer takes more memory than {size}"))
            return
        reason = tried(tokenizer.compile_template, order.trial).reason
        if reason:
            where = template_file(folder, chat_template)
            message = (
                f"{where}: the chat template cannot be compiled: {reason}. Correct it, or set "
                "another with `chat_template` in the model's YAML file"
            )
            self._send(NotLoaded(message))
            return
        with bounded(
            order.trial
        ):  # as in the trial: what is folded into the template stays the same
            tokenizer.compile_template()  # again in this process: workers share what is compiled
        found = tried(tokenizer.probed, order.trial)
        if found.value is None:
            log.warning(
                "%s: the trial of the chat template ended early: %s. Conversations that it does "
                "not take are found out at each request.",
                template_file(folder, chat_template),
                found.reason,
            )
        self._tokenizer = replace(tokenizer, support=found.value or tokenizer.support)
        _share_memory()
        self._send(Loaded(facts))

    def _send(self, message: Ready | Loaded | NotLoaded | Ended) -> None:
        try:
            frames.send(self._control, frames.frame(message))
        except OSError:
            self._end()


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What a trial returned; `reason`: why it failed, "" if it did not."""

    value: T | None = None
    reason: str = ""


def tried(work: Callable[[], T], lane: Lane) -> Outcome[T]:
    """Try `work` in a process of its own, under limits."""
    theirs, ours = socket.socketpair()
    no_memory = f"it takes more than {lane.memory // MB} MiB of memory"

    def run() -> None:
        ours.close()
        bound_memory(lane.memory)
        bound_time(lane.seconds)
        try:
            outcome = Outcome(work())
        except MemoryError:
            outcome = Outcome(reason=no_memory)
        except Exception as error:
            reason = str(error)[:LONGEST_REASON] or type(error).__name__
            outcome = Outcome(reason=reason.encode(errors="replace").decode())
        theirs.sendall(pickle.dumps(outcome))

    pid = _forked(run)
    theirs.close()
    with ours:
        said = b"".join(iter(lambda: ours.recv(4096), b""))
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        outcome: Outcome[T] = pickle.loads(said)
        return outcome
    if code in (-signal.SIGPROF, -signal.SIGALRM):
        return Outcome(reason=f"it takes more than {lane.seconds:g} s")
    return Outcome(reason=no_memory)


def _forked(work: Callable[[], None]) -> int:
    """Run `work` in a forked process, which ends after it; returns the process id."""
    pid = os.fork()
    if pid:
        return pid
    code = EXIT_CRASHED
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        work()
        code = 0
    except BaseException:  # the border of the process
        traceback.print_exc()
    finally:
        os._exit(code)  # not sys.exit: the stack above this belongs to the host


def _share_memory() -> None:
    """Keep the garbage collector from writing to, and so copying, what forked workers share."""
    gc.collect()
    gc.freeze()
