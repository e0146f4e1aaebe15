"""A fake engine without a model, which echoes prompts and fails in ways that prompts ask for.

`main` is the entry point for `EngineClient`. The id of a spec can ask for a failure of the load.
"""

import contextlib
import logging
import os
import resource
import signal
import threading
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from engine.errors import ModelError, RequestError
from engine.kv.disk.saves import IdleSaves
from engine.messages import (
    Audited,
    Failed,
    Generate,
    LoadProgress,
    ModelInfo,
    PassStats,
    ReportProgress,
    Stats,
    Tokens,
)
from engine.moves import LimitMemory, Reason, Replanned
from engine.process.worker import OnPassProgress, OnPrompt, serve
from engine.spec import ModelSpec, TargetSpec
from engine.streaming.recheck import Rechecks

log = logging.getLogger("engine.fake")

_hoard: list[bytearray] = []  # what `EXHAUST` has allocated

VOCAB_SIZE = 1000
CONTEXT_LENGTH = 64

# The behaviours that the first token of a prompt asks for. Other prompts are echoed.
ENDLESS = 901  # one token in each pass, until aborted
SPIN = 902  # a pass that runs units until the request is aborted
STALL = 903  # a pass that never ends
RAISE = 904  # a pass that raises
KILL = 905  # a pass that kills the process
REFUSE = 906  # `add` raises
FAIL = 907  # the pass fails this request and no other
REPORT = 908  # one token whose text has the aborted ids and two environment variables
AUDIT = 909  # an answer whose audit waits for another request, and is reported after it
KILL_LATER = 910  # a pass that kills the process before the third token
KILL_OTHERS = 911  # a pass that kills the process if it has another request too
EXHAUST = 912  # a pass that allocates all memory that the process may have

UNLOADABLE = "unloadable"  # ModelError at once
DEADBORN = "deadborn"  # the process dies while it loads
BROKEN = "broken"  # an unexpected exception, and a thread that would keep the process alive
SLOW = "slow"  # the load never ends
CHANGING = "changing"  # each load has another fingerprint
ONCE = "once"  # loads once; ModelError in later loads
DIES_ONCE = "dies once"  # its second load dies, and others succeed
STOPS_ONCE = "stops once"  # its second load is stopped by a signal, and others succeed


def fake_spec(name: str = "fake", folder: Path | str = "") -> ModelSpec:
    """Return a spec for `main`. In `folder`, some models count how often they were loaded."""
    return ModelSpec(name, TargetSpec(str(folder)))


def main(connection: Connection, spec: ModelSpec) -> None:
    serve(connection, spec, FakeEngine.load)


@dataclass
class _Request:
    message: Generate
    emitted: list[int] = field(init=False)  # for each choice
    aborted: threading.Event = field(default_factory=threading.Event)
    has_run: bool = False

    def __post_init__(self) -> None:
        begun = {tail.choice: len(tail.ids) for tail in self.message.emitted}
        ended = len(self.message.prompt) if begun else 0
        self.emitted = [begun.get(choice, ended) for choice in range(self.message.n)]

    @property
    def order(self) -> int:
        return self.message.prompt[0]


class FakeAudits:
    """A fake of the audit, with the interface `engine.process.worker.Audits`."""

    def __init__(self) -> None:
        self._waiting: list[Generate] = []
        self._tries = 0
        self._preempted = threading.Event()

    @property
    def has_pending(self) -> bool:
        return bool(self._waiting)

    def offer(self, message: Generate) -> None:
        self._waiting.append(message)

    def preempt(self) -> None:
        self._preempted.set()

    def run(self) -> Audited | None:
        if self._tries < 2:  # the request that is audited interrupts the first try itself
            self._tries += 1
            self._preempted.wait()
            self._preempted.clear()
            return None
        return Audited(len(self._waiting.pop().prompt), 1)


class FakeResidence:
    """A fake of weights that move, with the interface `engine.process.worker.Residence`.

    All units move to the disk under any limit of the device, and back without one.
    """

    def __init__(self) -> None:
        self._wanted: LimitMemory | None = None
        self._is_away = False
        self._report: Replanned | None = None

    def seconds_until_due(self) -> float | None:
        return None if self._wanted is None else 0.0

    def limit(self, limits: LimitMemory) -> None:
        self._wanted = limits

    def run(self) -> None:
        wanted, self._wanted = self._wanted, None
        if wanted is None or (wanted.device is not None) == self._is_away:
            return
        self._is_away = not self._is_away
        tier = "disk" if self._is_away else "resident"
        reason: Reason = "device" if self._is_away else "freed"
        self._report = Replanned(reason, f"all on {tier}", ((tier, 3),), ((tier, 300),))

    def take_report(self) -> Replanned | None:
        report, self._report = self._report, None
        return report


class FakeEngine:
    """A fake engine with the interface `engine.process.worker.StepEngine`."""

    def __init__(
        self, spec: ModelSpec, on_pass_progress: OnPassProgress, on_prompt: OnPrompt
    ) -> None:
        self.info = ModelInfo(
            model_id=spec.id,
            vocab_size=VOCAB_SIZE,
            context_length=CONTEXT_LENGTH,
            capacity_tokens=CONTEXT_LENGTH,
            max_sequences=8,
            eos_token_ids=(0,),
            numerics="strict",
            fingerprint=f"fake {os.getpid()}" if spec.id == CHANGING else "fake",
            tokenizer_path="",
            plan="nothing anywhere",
        )
        self.auditor = FakeAudits()
        self.rechecks = Rechecks(None, [], 0)
        self.residence = FakeResidence()
        self.saves = IdleSaves(None)
        self.last_pass: PassStats | None = None
        self._on_pass_progress = on_pass_progress
        self._on_prompt = on_prompt
        self._requests: dict[str, _Request] = {}
        self._aborted: list[str] = []
        self._passed = threading.Event()  # set by the first pass; a long grammar waits for it

    @classmethod
    def load(
        cls,
        spec: ModelSpec,
        progress: ReportProgress,
        on_pass_progress: OnPassProgress,
        on_prompt: OnPrompt,
    ) -> "FakeEngine":
        progress(LoadProgress("loading", 0, 2))
        _fail_if_asked(spec)
        progress(LoadProgress("loading", 2, 2))
        return cls(spec, on_pass_progress, on_prompt)

    def compile(self, request: Generate) -> None:
        match request.params.grammar:
            case "unusable":
                raise RequestError("it matches no text", "invalid_grammar")
            case "bug":
                raise ZeroDivisionError("no such grammar")
            case "long":
                self._on_prompt(request.request_id, 0)  # shows the client that compiling has begun
                self._passed.wait()

    def queue(self, request: Generate, constraint: object) -> None:
        if request.prompt[0] == REFUSE:
            raise RequestError("not this one", "refused", "prompt")
        self._requests[request.request_id] = _Request(request)

    def abort(self, request_id: str) -> None:
        request = self._requests.get(request_id)
        if request is not None:
            request.aborted.set()

    def has_work(self) -> bool:
        return bool(self._requests)

    def step(self) -> list[Tokens | Failed]:
        results = [
            result for request in list(self._requests.values()) for result in self._run(request)
        ]
        self._passed.set()
        self.last_pass = PassStats(
            rows=len(results),
            sequences=len(self._requests),
            accepted=len(results),
            draft_ms=0.0,
            pass_ms=1.0,
            link_gbps=0.0,
        )
        return results

    def close(self) -> None:
        self._requests.clear()

    def _run(self, request: _Request) -> list[Tokens | Failed]:
        if not request.has_run:
            self._on_prompt(request.message.request_id, 0)
            request.has_run = True
        self._obey(request)
        if request.aborted.is_set():
            self._aborted.append(request.message.request_id)
            del self._requests[request.message.request_id]
            return []
        if request.order == FAIL:
            del self._requests[request.message.request_id]
            return [Failed(request.message.request_id, "it is unreadable", "weights_unreadable")]
        emitted = [self._emit(request, choice) for choice in range(request.message.n)]
        tokens = [message for message in emitted if message is not None]
        if not any(message.finish is None for message in tokens):
            self._requests.pop(request.message.request_id)
            if request.order == AUDIT:
                self.auditor.offer(request.message)
        return [*tokens]

    def _obey(self, request: _Request) -> None:
        self._walk_unit()
        if request.order == STALL:
            threading.Event().wait()
        if request.order == EXHAUST:
            _exhaust()
        if request.order == RAISE:
            raise ZeroDivisionError("no such layer")
        if (
            request.order == KILL
            or (request.order == KILL_LATER and request.emitted[0] == 2)
            or (request.order == KILL_OTHERS and len(self._requests) > 1)
        ):
            os.kill(os.getpid(), signal.SIGKILL)
        while request.order == SPIN and not request.aborted.is_set():
            self._walk_unit()

    def _walk_unit(self) -> None:
        self._on_pass_progress()

    def _emit(self, request: _Request, choice: int) -> Tokens | None:
        """Return the next token of a choice, None after its end. Choice k ends k tokens early."""
        prompt = request.message.prompt
        index = request.emitted[choice]
        length = 1 if request.order == REPORT else len(prompt) - choice
        if request.order == ENDLESS:
            return Tokens(request.message.request_id, choice, (ENDLESS,), "on")
        if index >= length:
            return None
        request.emitted[choice] += 1
        done = index + 1 == length
        text = f"{prompt[index]} " if request.order != REPORT else self._report()
        return Tokens(
            request.message.request_id,
            choice,
            (prompt[index],),
            text,
            finish="stop" if done else None,
            stats=_stats(len(prompt), length) if done else None,
        )

    def _report(self) -> str:
        names = ("OMP_WAIT_POLICY", "PYTORCH_ALLOC_CONF")
        return ",".join([*self._aborted, *(os.environ.get(name, "") for name in names)])


def _exhaust() -> None:
    """Allocate until the system refuses, and then until Python has no free object either."""
    threading.Thread(target=threading.Event().wait).start()  # keeps the process if it can
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for size in (1 << 20, 1 << 10, 1):
        with contextlib.suppress(MemoryError):
            while True:
                _hoard.append(bytearray(size))
    _hoard.append(bytearray(1 << 24))


def _stats(prompt_tokens: int, completion_tokens: int) -> Stats:
    return Stats(
        prompt_tokens=prompt_tokens,
        cached_tokens=0,
        completion_tokens=completion_tokens,
        passes=completion_tokens,
        drafted=0,
        accepted=0,
        prompt_ms=0.0,
        predicted_ms=0.0,
    )


def _fail_if_asked(spec: ModelSpec) -> None:
    log.info("%s: weights are \x1b[31mconverted", spec.id)
    if spec.id == UNLOADABLE:
        raise ModelError("model.safetensors: lm_head.weight is missing")
    if spec.id == BROKEN:
        threading.Thread(target=threading.Event().wait).start()
        raise ZeroDivisionError("no such layer")
    if spec.id == DEADBORN:
        os._exit(9)
    if spec.id == SLOW:
        threading.Event().wait()
    if spec.id in (ONCE, DIES_ONCE, STOPS_ONCE):
        loads = Path(spec.target.source) / "loads"
        number = int(loads.read_text()) + 1 if loads.exists() else 1
        loads.write_text(str(number))
        if spec.id == ONCE and number > 1:
            raise ModelError("model.safetensors: gone")
        if spec.id != ONCE and number == 2:
            os.kill(os.getpid(), signal.SIGSTOP if spec.id == STOPS_ONCE else signal.SIGABRT)
