"""An engine without a model: so many tokens for every sequence, at a steady beat.

It stands in for the real one in the engine's process, so that the front end can be measured at
any rate of tokens on any machine.
"""

import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from benchmarks.runs import DEMO
from engine.messages import (
    Failed,
    Generate,
    ModelInfo,
    Origin,
    PassStats,
    ReportProgress,
    Stats,
    Tokens,
)
from engine.process.worker import OnPassProgress, OnStart, StepEngine, serve
from engine.spec import ModelSpec
from engine.streaming.recheck import Rechecks

WORD = " word"  # the text of every token
TOKEN = 100
CONTEXT = 1 << 20


@dataclass(frozen=True)
class Beat:
    """A pass every `seconds`; each gives every sequence `burst` tokens."""

    seconds: float
    burst: int


class NoAudits:
    """Implements `engine.process.worker.Audits`: there is no text to check."""

    has_pending = False

    def preempt(self) -> None:
        pass

    def run(self) -> None:
        pass


@dataclass
class PacedEngine:
    """What `engine.process.worker` asks of an engine; see `engine.runtime.engine.Engine`."""

    beat: Beat
    max_sequences: int
    info: ModelInfo = field(init=False)
    last_pass: PassStats | None = None
    auditor: NoAudits = field(default_factory=NoAudits)
    rechecks: Rechecks = field(default_factory=lambda: Rechecks(None, [], 0))
    _lengths: dict[str, int] = field(default_factory=dict)  # tokens emitted
    _messages: dict[str, Generate] = field(default_factory=dict)
    _due: float = 0.0  # when the next pass ends

    def __post_init__(self) -> None:
        self.info = ModelInfo(
            model_id="paced",
            vocab_size=4096,
            context_length=CONTEXT,
            capacity_tokens=CONTEXT * self.max_sequences,
            max_sequences=self.max_sequences,
            eos_token_ids=(0,),
            numerics="strict",
            fingerprint="us-paced",
            tokenizer_path=str(DEMO / "target"),
            plan="no model: tokens at a steady beat",
        )

    def add(self, request: Generate) -> None:
        self._messages[request.request_id] = request
        self._lengths[request.request_id] = 0

    def abort(self, request_id: str) -> None:
        self._messages.pop(request_id, None)

    def has_work(self) -> bool:
        return bool(self._messages)

    def step(self) -> list[Tokens | Failed]:
        """Wait for the beat; tokens for the sequences that came first."""
        now = time.perf_counter()
        self._due = max(self._due, now - self.beat.seconds) + self.beat.seconds
        time.sleep(max(0.0, self._due - now))
        running = list(self._messages.values())[: self.max_sequences]
        return [self._emit(message) for message in running]

    def close(self) -> None:
        """There is nothing to give back."""

    def _emit(self, message: Generate) -> Tokens:
        name, most = message.request_id, message.params.max_tokens or CONTEXT
        before = self._lengths[name]
        after = self._lengths[name] = min(before + self.beat.burst, most)
        finish = "length" if after == most else None
        origin = Origin("target", 0, -(-after // self.beat.burst))
        if finish is not None:
            self._messages.pop(name, None)
        return Tokens(
            name,
            0,
            ids=(TOKEN,) * (after - before),
            text=WORD * (after - before),
            origins=(origin,) * (after - before),
            finish=finish,
            stats=None if finish is None else self._stats(message, after),
        )

    def _stats(self, message: Generate, tokens: int) -> Stats:
        passes = -(-tokens // self.beat.burst)
        seconds = passes * self.beat.seconds
        return Stats(len(message.prompt), 0, tokens, passes, 0, 0, 0.0, seconds * 1e3)


def main(connection: Connection, spec: ModelSpec, beat: Beat) -> None:
    """Entry of the engine's process, in place of `engine.process.worker.main`."""

    def load(
        spec: ModelSpec,
        progress: ReportProgress,
        on_pass_progress: OnPassProgress,
        on_start: OnStart,
    ) -> StepEngine:
        """Its tokens tell that a request runs."""
        return PacedEngine(beat, spec.max_sequences or 1)

    serve(connection, spec, load)
