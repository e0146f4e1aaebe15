"""The supervised process of one model: it is started, restarted, and given requests."""

import asyncio
import contextlib
import logging
import time
from dataclasses import replace
from typing import Literal, Protocol

from engine.errors import EngineDied, EngineError, ModelError, PassFailed, RequestError
from engine.kv_disk_stats import KVDiskStats
from engine.messages import (
    Abort,
    Audited,
    Failed,
    Generate,
    LoadFailed,
    LoadProgress,
    ModelInfo,
    Outbound,
    PassStats,
    PromptProgress,
    Ready,
    Shutdown,
    Tokens,
    WeightsChecked,
)
from engine.moves import LimitMemory, Replanned
from engine.process import worker
from engine.process.callbacks import NO_CALLBACKS, EngineCallbacks
from engine.process.child import Child, EntryPoint, explain_exit
from engine.process.watchdog import MIN_SILENCE_S, Backoff, Watchdog
from engine.spec import ModelSpec

log = logging.getLogger("understudy.engine")

State = Literal["new", "loading", "ready", "restarting", "failed", "closed"]
STABLE_STATES = ("ready", "failed", "closed")  # a load or restart is not in progress

STARTING = "starting the engine process"  # the first step of each load

DUMP_S = 1.0  # for the stacks of a stalled process to reach stderr
EXIT_CODE_S = 1.0  # for the exit code, before requests fail without it
SHUTDOWN_S = 5.0  # for the process to end by itself, before it is killed


class Listener(Protocol):
    """The functions that `EngineProcess` calls. It calls none for a request that has ended."""

    def note_state(self) -> None:
        """React to a state of `STABLE_STATES` that was reached."""

    def note_prompt(self, name: str, done: int) -> None:
        """Note that a request takes part in a pass, with `done` tokens of its prompt stored."""

    def deliver(self, tokens: Tokens) -> None:
        """Receive tokens of a request, which ends with the finish of its last choice."""

    def fail(self, name: str, error: EngineError) -> None:
        """Receive the error that ends a request: `EngineDied` if the process has ended."""


class EngineProcess:
    """One model that is loaded in a process of its own.

    All methods must be called in the event loop that called `start`. The process is restarted when
    it dies or stalls. Its requests fail then: they are never retried here.
    """

    def __init__(
        self,
        spec: ModelSpec,
        listener: Listener,
        *,
        callbacks: EngineCallbacks = NO_CALLBACKS,
        target: EntryPoint = worker.main,
    ) -> None:
        self.info: ModelInfo | None = None
        self.state: State = "new"
        self._spec = spec
        self._callbacks = callbacks
        self._target = target
        self._listener = listener
        self._running: dict[str, int] = {}  # request id -> choices without a finish
        self._watchdog = Watchdog(time.monotonic())
        self._check: asyncio.TimerHandle | None = None
        self._child: Child | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._is_stable = asyncio.Event()  # set in `STABLE_STATES`
        self._closing = asyncio.Event()
        self.failure: ModelError | EngineDied | None = None  # why the model is not loaded again
        self.refusal: str | None = None  # why no further request is accepted
        self._ready_at: float | None = None
        self._has_served = False  # whether the current process has completed a pass
        self._stalled = ""  # why the current process is being ended
        self._limits = LimitMemory()

    async def start(self) -> ModelInfo:
        """Spawn the process, wait until the model is loaded, and describe the model.

        Raise `ModelError` when it cannot be loaded, `EngineDied` when the process ended.
        """
        assert self.state == "new", "a client is started once"
        self._set_state("loading")
        self._supervisor = asyncio.create_task(self._supervise(), name=f"engine {self._spec.id}")
        await self._is_stable.wait()
        return self._loaded()

    async def ready(self, timeout: float) -> ModelInfo:
        """Wait until the model is loaded, during a start or restart, and describe the model.

        Raise `ModelError` or `EngineDied` when the model will not be loaded, `TimeoutError` when
        it is not loaded after `timeout` seconds.
        """
        try:
            async with asyncio.timeout(timeout):
                while self.state not in STABLE_STATES and self.refusal is None:
                    await self._is_stable.wait()
        except TimeoutError:
            raise TimeoutError(
                f"The model {self._spec.id!r} is still {self.state} after {timeout:g} s."
            ) from None
        return self._loaded()

    def accepting_info(self) -> ModelInfo:
        """Return the properties of the model, which may be restarting.

        Raise `EngineDied` if it takes no new requests.
        """
        if self.state not in ("ready", "restarting") or self.info is None or self.refusal:
            raise self._not_ready()
        return self.info

    def submit(self, message: Generate) -> None:
        """Send a request, which was checked, to the process, which must be ready."""
        assert self.state == "ready" and self._child is not None, "there is no process"
        assert message.request_id not in self._running, f"id {message.request_id!r} is in use"
        if not self._running:
            self._watchdog.restart_timer(time.monotonic())
        self._running[message.request_id] = message.num_unfinished
        self._child.send(message)
        self._schedule_check()

    def abort(self, request_id: str) -> None:
        """End a request, if it runs, without an error for its listener."""
        if self._running.pop(request_id, None) is not None and self._child is not None:
            self._child.send(Abort(request_id))

    def limit_memory(self, limits: LimitMemory) -> None:
        """Set limits of memory, for this process and those that follow it."""
        self._limits = limits
        if self.state == "ready" and self._child is not None:
            self._child.send(limits)

    def refuse(self, reason: str) -> None:
        """Refuse new requests with this reason. Running ones go on until `close`."""
        self.refusal = reason
        self._is_stable.set()  # wakes `ready`, which then fails

    async def close(self) -> None:
        """Ask the process to end, and kill it if it does not. Running requests get an error."""
        running, was_ready = list(self._running), self.state == "ready"
        self._set_state("closed")
        self._closing.set()
        reason = self.refusal or "The model was unloaded while the request was running."
        self._fail_running(reason, "engine_closed")
        self._cancel_check()
        if self._supervisor is None:
            return
        if self._child is not None:
            await self._end_child(self._child, self._supervisor, running if was_ready else None)
        await self._supervisor

    async def _end_child(
        self, child: Child, supervisor: asyncio.Task[None], running: list[str] | None
    ) -> None:
        """End the process. `running` is None while it loads and does not read messages."""
        if running is not None:
            for request_id in running:  # else the current pass would run to its end
                child.send(Abort(request_id))
            child.send(Shutdown())
            await asyncio.wait({supervisor}, timeout=SHUTDOWN_S)
        child.kill()

    def _set_state(self, state: State) -> None:
        self.state = state
        if state in STABLE_STATES:
            self._is_stable.set()
            self._listener.note_state()
        else:
            self._is_stable.clear()

    def _loaded(self) -> ModelInfo:
        if self.state == "ready" and self.info is not None:
            return self.info
        if self.state == "failed" and self.failure is not None:
            raise self.failure.with_traceback(None)
        raise self._not_ready()

    def _not_ready(self) -> EngineDied:
        if self.refusal is not None:
            return EngineDied(self.refusal, "engine_closed")
        if self.state == "closed":
            said = f"The model {self._spec.id!r} was closed, because it was unloaded."
            return EngineDied(said, "engine_closed")
        return EngineDied(f"The model {self._spec.id!r} is not ready ({self.state}).")

    # -- supervision

    async def _supervise(self) -> None:
        """Keep a process running until the model is closed or cannot be loaded."""
        backoff = Backoff()
        while not self._closing.is_set():
            died = await self._run_child()
            if self.state == "closed":
                return
            if self.failure is None and self.info is None:
                self.failure = EngineDied(died)
            if self.failure is not None:
                self._set_state("failed")
                return
            now = time.monotonic()
            served_s = now - (self._ready_at or now)
            delay = backoff.next_delay(now, served_s, has_served=self._has_served)
            log.error("%s: %s It is started again in %.1f s.", self._spec.id, died, delay)
            self._callbacks.on_restart()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), delay)

    async def _run_child(self) -> str:
        """Start a process, wait for its end, and return why it ended."""
        self._ready_at = None
        self._has_served = False
        self._stalled = ""
        self._watchdog = Watchdog(time.monotonic(), is_loading=True)
        spec = self._spec
        if self.info is not None and self.info.num_pages:
            spec = replace(spec, kv_pages=self.info.num_pages)
        self._callbacks.progress(LoadProgress(STARTING, 0, 0))  # importing libraries takes seconds
        try:
            child = Child(self._target, spec, self._on_message)
        except OSError as error:
            return f"The engine process could not be started: {error}."
        self._child = child
        if self.info is not None:  # requests may wait for it
            self._cancel_check()
            self._schedule_check()
        try:
            await child.wait_until_gone()
            if self.state == "ready":
                self._set_state("restarting")
            ending = asyncio.create_task(child.exit_code())
            await asyncio.wait({ending}, timeout=EXIT_CODE_S)
            reason = "its pipe was closed"
            if ending.done():
                reason = explain_exit(ending.result(), had_no_memory=child.had_no_memory)
            died = self._stalled or f"The engine process ended ({reason})."
            self._fail_running(died, "engine_died")
        finally:
            self._child = None
            child.kill()
            await child.close()
        return died

    def _on_message(self, message: Outbound) -> None:
        self._watchdog.restart_timer(time.monotonic())
        match message:
            case PromptProgress(request_id, done):
                if request_id in self._running:
                    self._listener.note_prompt(request_id, done)
            case Tokens():
                self._deliver(message)
            case Failed():
                self._fail(message)
            case PassStats():
                self._has_served = True
                self._watchdog.record_pass((message.draft_ms + message.pass_ms) / 1e3)
                self._callbacks.on_pass(message)
            case Audited():
                self._callbacks.on_audit(message)
            case WeightsChecked():
                self._callbacks.on_check(message)
            case Replanned():
                self._note_move(message)
            case KVDiskStats():
                self._callbacks.on_kv_disk(message)
            case LoadProgress():
                self._callbacks.progress(message)
            case Ready(info):
                self._accept(info)
            case LoadFailed(reason):
                self.failure = ModelError(reason)

    def _note_move(self, moved: Replanned) -> None:
        if self.info is not None:
            self.info = replace(
                self.info, plan=moved.plan, tiers=moved.tiers, tier_bytes=moved.tier_bytes
            )
        self._callbacks.on_replan(moved)

    def _accept(self, info: ModelInfo) -> None:
        """Begin to serve, unless a restarted process has loaded other files than the first one.

        The front end has the tokenizer and the template of the first files, so that it must load
        the model anew. A process that computes other bits from the same files is used.
        """
        self._ready_at = time.monotonic()
        self._watchdog.end_load()
        self._cancel_check()  # the next one may be due earlier
        if self.info is not None and info.files != self.info.files:
            self.failure = ModelError(
                f"The files of the model {self._spec.id!r} were changed after it was loaded, and "
                "its engine had to be restarted. Send the request again: it loads the new files."
            )
            log.error("%s: %s", self._spec.id, self.failure)
            if self._child is not None:
                self._child.kill()
            return
        if self.info is not None and info.fingerprint != self.info.fingerprint:
            log.warning(
                "%s: the restarted engine has another fingerprint (%s, before %s): its device or "
                "its libraries were changed",
                self._spec.id,
                info.fingerprint,
                self.info.fingerprint,
            )
        self.info = info
        if self.state != "closed":
            self._set_state("ready")
            self.limit_memory(self._limits)

    def _schedule_check(self) -> None:
        """Schedule the next check for a stall, unless one is scheduled."""
        if self._check is None:
            now = time.monotonic()
            wait = min(self._watchdog.remaining_s(now), MIN_SILENCE_S)
            loop = asyncio.get_running_loop()
            self._check = loop.call_later(wait, self._check_silence, now + wait)

    def _cancel_check(self) -> None:
        if self._check is not None:
            self._check.cancel()
            self._check = None

    def _check_silence(self, due: float) -> None:
        self._check = None
        is_reloading = self.state == "restarting" and self._child is not None
        if not self._running and not is_reloading:
            return
        self._watchdog.restart_timer_if_late(time.monotonic(), due)
        if self._watchdog.remaining_s(time.monotonic()) > 0:
            self._schedule_check()
            return
        self._end_stalled()

    def _end_stalled(self) -> None:
        self._stalled = f"The engine made no progress for {self._watchdog.max_silence_s:.0f} s."
        log.error("%s: %s The stacks of its threads are on stderr.", self._spec.id, self._stalled)
        self._set_state("restarting")
        self._fail_running(self._stalled, "engine_stalled")
        if self._child is not None:
            self._child.dump_stacks()
            asyncio.get_running_loop().call_later(DUMP_S, self._child.kill)

    # -- requests

    def _deliver(self, message: Tokens) -> None:
        name = message.request_id
        if name not in self._running:
            return  # aborted
        self._running[name] -= message.finish is not None
        if not self._running[name]:
            del self._running[name]
        self._listener.deliver(message)

    def _fail(self, message: Failed) -> None:
        if self._running.pop(message.request_id, None) is None:
            return  # aborted
        error: EngineError
        if message.code == "engine_error":  # the process ends after this
            self._set_state("restarting")
            error = EngineDied(message.message, message.code)
        elif message.code in PassFailed.CODES:
            error = PassFailed(message.message, message.code)
        else:
            error = RequestError(message.message, message.code, message.param)
        self._listener.fail(message.request_id, error)

    def _fail_running(self, message: str, code: str) -> None:
        running, self._running = list(self._running), {}
        for name in running:
            self._listener.fail(name, EngineDied(message, code))
