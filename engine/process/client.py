"""The front end's client of one model: it streams tokens, also beyond the death of a process.

Output follows from weights, prompt, parameters and seed. So when the process of a model dies, its
requests are sent again to the next one, with the tokens that were sent already, and their streams
go on with the very text of an unbroken run.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable

from engine.errors import EngineDied, EngineError, QueueFull, RequestError
from engine.messages import (
    Generate,
    ModelInfo,
    Tokens,
)
from engine.moves import LimitMemory
from engine.process import worker
from engine.process.admission import check_request
from engine.process.callbacks import NO_CALLBACKS, EngineCallbacks
from engine.process.child import EntryPoint
from engine.process.engine_process import EngineProcess, State
from engine.process.suspects import (
    DEATHS_TO_REFUSE,
    GOOD_TOKENS,
    MORE_TOKENS_ALONE,
    TOKENS_ALONE,
    DeathHistory,
    Held,
    Quarantine,
    suspects_of,
)
from engine.process.token_stream import EventQueue, RunningRequest, TokenStream
from engine.spec import ModelSpec

log = logging.getLogger("understudy.engine")

LOST_CODES = ("engine_died", "engine_stalled", "engine_error")  # another process can go on


class EngineClient:
    """A client of one model, which is loaded in a process of its own.

    All methods must be called in the event loop that called `start`. The process is restarted when
    it dies or stalls, and then the requests go on.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        max_queue: int = 256,
        callbacks: EngineCallbacks = NO_CALLBACKS,
        target: EntryPoint = worker.main,
    ) -> None:
        self._id = spec.id
        self._max_queue = max_queue
        self._on_resume = callbacks.on_resume
        self._process = EngineProcess(spec, self, callbacks=callbacks, target=target)
        self._requests: dict[str, RunningRequest] = {}  # by id, in the order of arrival
        self._sent: dict[str, RunningRequest] = {}  # those that the process has, by their names
        self._deaths = DeathHistory()
        self._quarantine = Quarantine()
        self._death: EngineDied | None = None  # of the last process, until the next one is ready

    @property
    def state(self) -> State:
        """The state of the process."""
        return self._process.state

    @property
    def info(self) -> ModelInfo | None:
        """The properties of the model; None before it is loaded."""
        return self._process.info

    @property
    def num_outstanding(self) -> int:
        """The number of requests that were accepted and have not finished."""
        return len(self._requests)

    def limit_memory(self, limits: LimitMemory) -> None:
        """Set limits of memory, which hold until the next ones, also for a restarted process."""
        self._process.limit_memory(limits)

    @property
    def num_prompt_tokens_left(self) -> int:
        """The number of prompt tokens of all requests that no pass has run yet."""
        return sum(request.num_prompt_left for request in self._requests.values())

    def position(self, request_id: str) -> int:
        """Return a waiting request's position in the queue, from 1; 0 if it runs or has ended.

        Positions are in the order of arrival, although the engine takes turns between keys.
        """
        waiting = [name for name, request in self._requests.items() if request.is_waiting]
        return waiting.index(request_id) + 1 if request_id in waiting else 0

    async def start(self) -> ModelInfo:
        """Start the process, wait until the model is loaded, and describe the model.

        Raise `ModelError` when it cannot be loaded, `EngineDied` when the process ended.
        """
        return await self._process.start()

    async def ready(self, timeout: float) -> ModelInfo:
        """Wait until the model is loaded, during a start or restart, and describe the model.

        Raise `ModelError` or `EngineDied` when the model will not be loaded, `TimeoutError` when
        it is not loaded after `timeout` seconds.
        """
        return await self._process.ready(timeout)

    def run(
        self,
        message: Generate,
        *,
        on_prompt: Callable[[int], None] | None = None,
        on_lost: Callable[[], None] | None = None,
        on_tokens: Callable[[int], None] | None = None,
    ) -> AsyncGenerator[Tokens, None]:
        """Send a request to the engine, or to the next one, and return the stream of its tokens.

        Raise `EngineDied` when the model is not loaded, `RequestError` when it cannot serve the
        request, and `QueueFull`. Iterating raises `RequestError`, `PassFailed` or `EngineDied`.

        Args:
            message: its tails may be those of another engine with the same fingerprint.
            on_prompt: is called with the number of prompt tokens whose KV is stored, when the first
                pass of the request begins, about once a second, and when the prompt is complete;
                after a restart of the process again.
            on_lost: is called when the process has died and the request waits for the next one.
            on_tokens: is called with the number of new tokens when they arrive, read or not.
        """
        info = self._process.accepting_info()
        check_request(message, info)
        events: EventQueue = asyncio.Queue()
        most = min(info.context_length, info.capacity_tokens) - len(message.prompt)
        request = RunningRequest(message, events, on_prompt, on_lost, on_tokens, most)
        if self._is_refused(request):
            raise _refusal()
        if len(self._requests) >= self._max_queue:
            raise QueueFull(f"{len(self._requests)} requests are waiting or running. Try again.")
        name = message.request_id
        assert name not in self._requests, f"request id {name!r} is in use"
        self._requests[name] = request
        self._send_requests()
        return TokenStream(events, lambda: self._abort(request))

    def drain(self, reason: str) -> None:
        """Refuse new and waiting requests with this reason. Running ones go on until `close`."""
        self._process.refuse(reason)
        for request in list(self._requests.values()):
            if request.is_waiting:
                self._end(request, EngineDied(reason, "engine_closed"))

    async def close(self) -> None:
        """Ask the process to end, and kill it if it does not. Running requests get an error."""
        reason = self._process.refusal or "The model was unloaded while the request was running."
        for request in list(self._requests.values()):
            if not request.is_sent:
                self._end(request, EngineDied(reason, "engine_closed"))
        await self._process.close()

    # -- what the process reports

    def note_state(self) -> None:
        """Send the lost requests to a process that is ready, or end them if there will be none."""
        if self.state == "failed":
            death = self._death or EngineDied(f"{self._id!r} is not loaded.")
            reason = f"{death} It could not be loaded again: {self._process.failure}"
            for request in list(self._requests.values()):
                self._end(request, EngineDied(reason, death.code))
        elif self.state == "ready":
            self._death = None
            if self._requests:
                log.info("%s: %d requests go on", self._id, len(self._requests))
            self._send_requests()

    def note_prompt(self, name: str, done: int) -> None:
        """Note that a request takes part in a pass, with `done` tokens of its prompt stored."""
        self._sent[name].note_prompt(done)

    def deliver(self, tokens: Tokens) -> None:
        """Pass tokens on to the stream of their request."""
        request = self._sent[tokens.request_id]
        request.deliver(tokens)
        if self._deaths and (request.num_new >= GOOD_TOKENS or not request.num_unfinished):
            self._deaths.forget(request.fingerprint)
        num_new = 0 if tokens.is_replayed else len(tokens.ids)
        is_done = self._quarantine.note_tokens(request.message.request_id, num_new)
        if not request.num_unfinished:
            self._end(request, None)
        elif is_done:
            if self._quarantine.next is not None:
                self._withdraw(request)
            self._send_requests()

    def fail(self, name: str, error: EngineError) -> None:
        """End a request that failed, or keep it for the next process if this one has died."""
        request = self._sent[name]
        if not isinstance(error, EngineDied) or error.code not in LOST_CODES:
            self._end(request, error)
            return
        if self._death is None:
            self._death = error
            self._judge()
        if self._is_refused(request):
            self._end(request, _refusal(error))
        else:
            del self._sent[name]
            request.lose()

    # -- requests

    def _judge(self) -> None:
        """Record the death of the process for all requests that it has, and find the suspects."""
        now, sent = time.monotonic(), list(self._sent.values())
        has_run = {own.fingerprint for own in sent if own.has_run}
        progressed = {own.fingerprint for own in sent if own.num_new}
        for fingerprint in dict.fromkeys(own.fingerprint for own in sent):
            self._deaths.record(
                fingerprint,
                now,
                was_alone=len(sent) == 1,
                has_run=fingerprint in has_run,
                has_progressed=fingerprint in progressed,
            )
        held = [
            Held(own.message.request_id, own.has_run, self._deaths.count(own.fingerprint))
            for own in sorted(sent, key=lambda own: own.num_tokens)  # a long prompt delays no other
        ]
        self._quarantine.begin(suspects_of(held))

    def _send_requests(self) -> None:
        """Send the requests that may run now: one that has to run alone, or else all."""
        if self.state != "ready" or self._quarantine.current is not None:
            return
        while (name := self._quarantine.next) is not None:
            request = self._requests[name]
            has_died_before = self._deaths.count(request.fingerprint) >= DEATHS_TO_REFUSE
            alone = MORE_TOKENS_ALONE if has_died_before else TOKENS_ALONE
            self._quarantine.start_next(alone * request.num_unfinished)
            if self._send(request):
                return
        for request in list(self._requests.values()):
            if not request.is_sent:
                self._send(request)

    def _send(self, request: RunningRequest) -> bool:
        """Send a request to the process. Return False if it ends instead, because it cannot run."""
        assert self.info is not None, "the process is ready"
        fingerprint = self.info.fingerprint
        error: EngineError | None = None
        if self._is_refused(request):
            error = _refusal()
        elif not request.can_run_on(fingerprint):
            error = EngineDied(
                "The engine died, and the next one has another fingerprint "
                f"({fingerprint}, before {request.engine}), so this answer cannot go on with it. "
                "Send the request again.",
                "engine_died",
            )
        if error is not None:
            self._quarantine.remove(request.message.request_id)
            del self._requests[request.message.request_id]
            request.events.put_nowait(error)
            return False
        if request.is_lost:
            self._on_resume()
        message = request.next_message(fingerprint)
        self._sent[message.request_id] = request
        self._process.submit(message)
        return True

    def _withdraw(self, request: RunningRequest) -> None:
        """Take a request back from the process, to be sent again later."""
        self._process.abort(request.name)
        del self._sent[request.name]
        request.withdraw()

    def _abort(self, request: RunningRequest) -> None:
        """End a request whose client has left."""
        if self._requests.get(request.message.request_id) is request:
            self._end(request)

    def _end(self, request: RunningRequest, error: EngineError | None = None) -> None:
        """End the stream of a request, with an error if there is one."""
        if request.is_sent:
            self._withdraw(request)
        del self._requests[request.message.request_id]
        request.events.put_nowait(error)
        self._quarantine.remove(request.message.request_id)
        self._send_requests()

    def _is_refused(self, request: RunningRequest) -> bool:
        """Return whether a request is refused, because processes died of it."""
        is_known = bool(self._deaths)
        return is_known and self._deaths.is_refused(request.fingerprint, time.monotonic())


def _refusal(death: EngineError | None = None) -> RequestError:
    """Return the error of a request that processes died of; `death` is the last one if known."""
    reason = "" if death is None else f" {death}"
    return RequestError(
        "The engine died twice or more while this same request was running, the last time while "
        "no other one was; it is not tried again for some minutes. Change the prompt or its "
        f"parameters.{reason}",
        code="request_failed",
    )
