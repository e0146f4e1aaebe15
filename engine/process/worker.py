"""The main loop of the engine process: read requests from the pipe, run passes, send tokens.

The main thread loads the model and issues all device work. A second thread reads the pipe, so
that an abort takes effect at the next layer and not after a pass that may last seconds. The end of
the pipe means that the front end has ended, and the process ends at once.

A frame to the engine has one message, and a frame to the front end a tuple of messages.
"""

import faulthandler
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import TYPE_CHECKING, NoReturn, Protocol

from engine.errors import ModelError, RequestError
from engine.kv_disk_stats import KVDiskStats
from engine.log_lines import adopt_libraries, send_logs
from engine.malloc import keep_freed_memory
from engine.messages import (
    Abort,
    Audited,
    Failed,
    Generate,
    Heartbeat,
    Inbound,
    LoadFailed,
    LoadProgress,
    ModelInfo,
    Outbound,
    PassStats,
    PromptProgress,
    Ready,
    ReportProgress,
    Shutdown,
    Tokens,
    WeightsChecked,
)
from engine.moves import LimitMemory, Replanned
from engine.process.grammar_compiler import Compiled, GrammarCompiler
from engine.process.signals import ignore_group_signals
from engine.spec import ModelSpec

if TYPE_CHECKING:  # it imports torch, which only the engine process needs
    from engine.sampling.grammar.constraint import Constraint

EXIT_CRASHED = 70  # EX_SOFTWARE: an unexpected exception; its traceback is on stderr
EXIT_NOT_LOADED = 78  # EX_CONFIG: the model cannot be loaded
EXIT_ORPHANED = 75  # EX_TEMPFAIL: the front end has ended
HEARTBEAT_S = 1.0
PROGRESS_S = 0.1
TAKING_SECONDS = 0.05  # for new requests between two passes


class StepEngine(Protocol):
    """The interface of an engine that this loop needs; `engine.runtime.engine.Engine` has it."""

    info: ModelInfo
    last_pass: PassStats | None

    @property
    def auditor(self) -> "Audits": ...
    @property
    def rechecks(self) -> "Rechecks": ...
    @property
    def residence(self) -> "Residence": ...
    @property
    def saves(self) -> "Saves": ...
    def compile(self, request: Generate) -> "Constraint | None": ...
    def queue(self, request: Generate, constraint: "Constraint | None") -> None: ...
    def abort(self, request_id: str) -> None: ...
    def step(self) -> Sequence[Tokens | Failed]: ...
    def has_work(self) -> bool: ...
    def close(self) -> None: ...


class Audits(Protocol):
    """The interface of the audit that this loop needs; `engine.runtime.audit.Auditor` has it."""

    @property
    def has_pending(self) -> bool: ...
    def preempt(self) -> None: ...
    def run(self) -> Audited | None: ...


class Rechecks(Protocol):
    """The interface of checks of packed weights, which `engine.streaming.recheck.Rechecks` has."""

    def seconds_until_due(self) -> float | None: ...
    def preempt(self) -> None: ...
    def run(self) -> None: ...
    def take_report(self) -> WeightsChecked | None: ...


class Residence(Protocol):
    """The interface of weights that move, which `engine.runtime.residence.Residence` has."""

    def seconds_until_due(self) -> float | None: ...
    def limit(self, limits: LimitMemory) -> None: ...
    def run(self) -> None: ...
    def take_report(self) -> Replanned | None: ...


class Saves(Protocol):
    """The interface of writing idle KV, which `engine.kv.disk.saves.IdleSaves` has."""

    def seconds_until_due(self) -> float | None: ...
    def run(self) -> bool: ...
    def take_report(self) -> KVDiskStats | None: ...


OnPassProgress = Callable[[], None]  # called before the engine runs another part of a pass
# Called with a request's id and the number of its prompt's tokens whose KV is stored.
OnPrompt = Callable[[str, int], None]
Load = Callable[[ModelSpec, ReportProgress, OnPassProgress, OnPrompt], StepEngine]


def main(connection: Connection, spec: ModelSpec) -> None:
    """Serve `spec` until the front end asks the process to end. It runs in the spawned process."""
    serve(connection, spec, _load_engine)


def serve(connection: Connection, spec: ModelSpec, load: Load) -> None:
    """Load an engine with `load` and run it. Return after `Shutdown`, else exit the process."""
    ignore_group_signals()
    if sys.stderr is not None:
        faulthandler.enable()
        faulthandler.register(signal.SIGUSR1, all_threads=True)
    keep_freed_memory()
    outbox = _Outbox(connection)
    send_logs(outbox.send)
    inbox = _Inbox(connection)
    service: _Service | None = None
    try:
        service = _Service(_load_or_report(load, spec, outbox), inbox, outbox)
        service.run()
    except BaseException as error:  # reported to requests and stderr; then the process ends
        try:
            traceback.print_exc()
            if service is not None:
                service.fail_running(error)
        finally:  # also when memory is too short for these reports
            _exit(EXIT_CRASHED)  # not sys.exit: a thread of a broken engine could block it


def _load_or_report(load: Load, spec: ModelSpec, outbox: "_Outbox") -> StepEngine:
    try:
        engine = load(spec, outbox.report_load, outbox.count_unit, outbox.report_prompt)
    except ModelError as error:
        outbox.send(LoadFailed(str(error)))
        _exit(EXIT_NOT_LOADED)
    adopt_libraries()
    # All streams wait during a full collection, and among the objects of a loaded model and its
    # libraries it takes 0.2 s. They live as long as the process, so that they are left out.
    gc.collect()
    gc.freeze()
    return engine


def _load_engine(
    spec: ModelSpec, progress: ReportProgress, on_pass_progress: OnPassProgress, on_prompt: OnPrompt
) -> StepEngine:
    from engine.runtime.engine import Engine  # imports torch, which only this process needs

    return Engine.load(spec, progress, on_pass_progress, on_prompt)


class _Outbox:
    """The sending end of the pipe, with a lock because loaders report from their own threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = Lock()
        self._step_of_load = ""
        self._next_report = 0.0
        self._num_units = 0
        self._next_heartbeat = 0.0

    def report_load(self, step: LoadProgress) -> None:
        """Send the progress of the load, at most ten times a second for each kind of step."""
        now = time.monotonic()
        is_over = step.done == step.total
        if step.what != self._step_of_load or is_over or now >= self._next_report:
            self._step_of_load, self._next_report = step.what, now + PROGRESS_S
            self.send(step)

    def count_unit(self) -> None:
        """Count a unit of a pass, and send a heartbeat at most once a second."""
        self._num_units += 1
        now = time.monotonic()
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + HEARTBEAT_S
            self.send(Heartbeat(self._num_units))

    def report_prompt(self, request_id: str, done: int) -> None:
        """Report how many tokens of a prompt have their KV stored when a pass begins."""
        self.send(PromptProgress(request_id, done))

    def send(self, *messages: Outbound) -> None:
        """Send messages in one frame. Exit the process if the front end has ended."""
        if not messages:
            return
        try:
            with self._lock:
                self._connection.send(messages)
        except OSError:
            _exit(EXIT_ORPHANED)


class _Inbox:
    """The receiving end of the pipe, whose thread queues the messages of the front end in order.

    It also passes an abort to the engine at once, and interrupts idle checks for a request.
    """

    def __init__(self, connection: Connection) -> None:
        self._engine: StepEngine | None = None  # until it is loaded
        self._connection = connection
        self._messages: SimpleQueue[Inbound | Compiled] = SimpleQueue()
        self._aborted: set[str] = set()  # request ids of the aborts among the messages
        Thread(target=self._receive_or_exit, name="pipe reader", daemon=True).start()

    def attach(self, engine: StepEngine) -> None:
        """Set the loaded engine, which gets aborts and the interruption of checks at once."""
        self._engine = engine

    def post(self, compiled: Compiled) -> None:
        """Queue a request whose grammar is compiled behind the messages of the front end."""
        self._messages.put(compiled)
        self._interrupt_checks()

    def take(self, seconds: float | None) -> Iterator[Inbound | Compiled]:
        """Yield messages that have arrived; wait for the first, at most `seconds` if given.

        Requests whose clients have left already are left out. After `TAKING_SECONDS` the rest waits
        for the next call: a flood of requests would keep the running ones from their next pass.
        """
        try:
            message = self._messages.get(timeout=seconds)
            deadline = time.monotonic() + TAKING_SECONDS
            while True:
                if not self._is_aborted(message):
                    yield message
                if time.monotonic() >= deadline:
                    return
                message = self._messages.get_nowait()
        except Empty:
            return

    def _is_aborted(self, message: Inbound | Compiled) -> bool:
        """Return True for a request whose abort has arrived too."""
        if isinstance(message, Abort):
            self._aborted.discard(message.request_id)
        return isinstance(message, Generate) and message.request_id in self._aborted

    def _receive_or_exit(self) -> None:
        try:
            self._receive()
        except MemoryError:  # a process that receives nothing any more is of no use
            _exit(EXIT_CRASHED)

    def _receive(self) -> None:
        while True:
            try:
                message: Inbound = self._connection.recv()
            except (EOFError, OSError):
                _exit(EXIT_ORPHANED)
            if isinstance(message, Abort):
                self._aborted.add(message.request_id)
                if self._engine is not None:
                    self._engine.abort(message.request_id)
            # An abort is queued as well: the engine may not have received the request yet.
            self._messages.put(message)
            if isinstance(message, Generate | Shutdown):
                self._interrupt_checks()

    def _interrupt_checks(self) -> None:
        """End an idle check. Call this after the put, so that the main thread finds the message."""
        if self._engine is not None:
            self._engine.auditor.preempt()
            self._engine.rechecks.preempt()


class _Service:
    """The loop of the main thread: take messages, run a step or an idle check, send the results."""

    def __init__(self, engine: StepEngine, inbox: _Inbox, outbox: _Outbox) -> None:
        self._engine = engine
        self._inbox = inbox
        self._outbox = outbox
        self._unfinished: dict[str, int] = {}  # request id -> choices still running
        self._compiler = GrammarCompiler(engine.compile, self._is_wanted, self._report_compiled)
        self._reported: PassStats | None = None

    def run(self) -> None:
        """Serve until a message asks the process to end, and close the engine."""
        self._inbox.attach(self._engine)
        self._outbox.send(Ready(self._engine.info))
        while self._take_messages():
            self._engine.residence.run()
            if self._engine.has_work():
                self._step()
            elif self._engine.auditor.has_pending:
                audited = self._engine.auditor.run()
                if audited is not None:
                    self._outbox.send(audited)
            elif not self._engine.saves.run():
                self._engine.rechecks.run()
            engine = self._engine
            for own in (engine.rechecks, engine.residence, engine.saves):
                report = own.take_report()
                if report is not None:
                    self._outbox.send(report)
        self._engine.close()

    def fail_running(self, error: BaseException) -> None:
        """Send a failure for every request that has not finished."""
        reason = "".join(traceback.format_exception_only(error)).strip()
        message = f"The engine failed while this request was running: {reason}"
        self._outbox.send(*(Failed(id_, message, "engine_error") for id_ in self._unfinished))

    def _take_messages(self) -> bool:
        """Handle messages that have arrived. Return False if one asks the process to end."""
        engine = self._engine
        due = [own.seconds_until_due() for own in (engine.rechecks, engine.residence, engine.saves)]
        seconds = min((own for own in due if own is not None), default=None)
        if engine.has_work() or engine.auditor.has_pending:
            seconds = 0.0
        for message in self._inbox.take(seconds):
            match message:
                case Generate():
                    self._add(message)
                case Compiled(request):
                    if self._is_wanted(request):
                        self._queue(message)
                case Abort(request_id):
                    self._engine.abort(request_id)
                    self._unfinished.pop(request_id, None)
                case LimitMemory():
                    self._engine.residence.limit(message)
                case Shutdown():
                    return False
        return True

    def _add(self, request: Generate) -> None:
        self._unfinished[request.request_id] = request.num_unfinished
        if request.params.grammar:
            self._compiler.submit(request)
        else:
            self._queue(Compiled(request))

    def _is_wanted(self, request: Generate) -> bool:
        return request.request_id in self._unfinished

    def _report_compiled(self, compiled: Compiled) -> None:
        self._inbox.post(compiled)
        self._outbox.count_unit()  # no pass may run meanwhile, and the watchdog waits for a sign

    def _queue(self, compiled: Compiled) -> None:
        request = compiled.request
        try:
            if compiled.error is not None:
                raise compiled.error
            self._engine.queue(request, compiled.constraint)
        except RequestError as error:
            del self._unfinished[request.request_id]
            code = error.code or "invalid_request"
            self._outbox.send(Failed(request.request_id, str(error), code, error.param))

    def _step(self) -> None:
        results = self._engine.step()
        for result in results:
            self._count_finished(result)
        figures = self._engine.last_pass
        if figures is None or figures is self._reported:
            self._outbox.send(*results)
        else:
            self._reported = figures
            self._outbox.send(*results, figures)

    def _count_finished(self, result: Tokens | Failed) -> None:
        if isinstance(result, Tokens) and result.finish is None:
            return
        left = self._unfinished.pop(result.request_id, 0) - 1
        if isinstance(result, Tokens) and left > 0:
            self._unfinished[result.request_id] = left


def _exit(code: int) -> NoReturn:
    """End the process at once, from any thread, without waiting for a pass or other threads."""
    if sys.stderr is not None:
        sys.stderr.flush()
    os._exit(code)
