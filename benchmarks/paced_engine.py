"""An engine without a model that emits tokens for every sequence at fixed intervals.

It replaces the real engine in the engine's process, so that the front end can be measured at any
rate of tokens on any machine.
"""

import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from benchmarks.runs import DEMO
from engine.kv.disk.saves import IdleSaves
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
from engine.moves import LimitMemory
from engine.pass_trace import DraftedNodes, PassTrace
from engine.process.worker import OnPassProgress, OnPrompt, StepEngine, serve
from engine.spec import ModelSpec
from engine.streaming.recheck import Rechecks

WORD = " word"  # the text of every token
TOKEN = 100
CONTEXT = 1 << 20
TREE = 64  # drafted nodes of a pass in its trace


@dataclass(frozen=True)
class Schedule:
    """The interval between passes, and the number of tokens that a pass emits per sequence."""

    seconds: float
    burst: int


class NoMoves:
    """Weights that never move: there are none."""

    def seconds_until_due(self) -> None:
        """Return None: nothing is ever due."""

    def limit(self, limits: LimitMemory) -> None:
        """Ignore the limits."""

    def run(self) -> None:
        """Do nothing."""

    def take_report(self) -> None:
        """Return None: nothing has moved."""


class NoAudits:
    """An implementation of `engine.process.worker.Audits` that checks nothing."""

    has_pending = False

    def preempt(self) -> None:
        pass

    def run(self) -> None:
        pass


@dataclass
class PacedEngine:
    """The part of `engine.runtime.engine.Engine` that `engine.process.worker` calls."""

    schedule: Schedule
    max_sequences: int
    info: ModelInfo = field(init=False)
    last_pass: PassStats | None = None
    auditor: NoAudits = field(default_factory=NoAudits)
    rechecks: Rechecks = field(default_factory=lambda: Rechecks(None, [], 0))
    residence: NoMoves = field(default_factory=NoMoves)
    saves: IdleSaves = field(default_factory=lambda: IdleSaves(None))
    _lengths: dict[str, int] = field(default_factory=dict)  # number of emitted tokens
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
            plan="no model: tokens at fixed intervals",
        )

    def compile(self, request: Generate) -> None:
        """Return nothing: the tokens follow no grammar."""

    def queue(self, request: Generate, constraint: object) -> None:
        self._messages[request.request_id] = request
        self._lengths[request.request_id] = 0

    def abort(self, request_id: str) -> None:
        self._messages.pop(request_id, None)

    def has_work(self) -> bool:
        return bool(self._messages)

    def step(self) -> list[Tokens | Failed]:
        """Wait until the pass is due; return tokens for the sequences that came first."""
        now = time.perf_counter()
        self._due = max(self._due, now - self.schedule.seconds) + self.schedule.seconds
        time.sleep(max(0.0, self._due - now))
        running = list(self._messages.values())[: self.max_sequences]
        return [self._emit(message) for message in running]

    def close(self) -> None:
        """Do nothing: there is no memory to release."""

    def _emit(self, message: Generate) -> Tokens:
        name, most = message.request_id, message.params.max_tokens or CONTEXT
        before = self._lengths[name]
        after = self._lengths[name] = min(before + self.schedule.burst, most)
        finish = "length" if after == most else None
        origin = Origin("target", 0, -(-after // self.schedule.burst))
        if finish is not None:
            self._messages.pop(name, None)
        return Tokens(
            name,
            0,
            ids=(TOKEN,) * (after - before),
            text=WORD * (after - before),
            origins=(origin,) * (after - before),
            finish=finish,
            stats=None if finish is None else self._make_stats(message, after),
            traces=(self._trace(after - before, origin.pass_number),)
            if message.traced_nodes
            else (),
        )

    def _trace(self, tokens: int, number: int) -> PassTrace:
        """Return the trace of a pass: a path of the emitted tokens, and rejected nodes below it."""
        path = tokens - 1
        nodes = DraftedNodes(
            parents=(*range(-1, path - 1), *(n % tokens - 1 for n in range(TREE - path))),
            tokens=(*(TOKEN,) * path, *(TOKEN + 1 + n for n in range(TREE - path))),
            sources=("subspec",) * TREE,
            scores=tuple(-0.123 * n for n in range(TREE)),
            accepted=(*(True,) * path, *(False,) * (TREE - path)),
        )
        milliseconds = self.schedule.seconds * 1e3
        return PassTrace(
            number=number,
            tokens=tokens,
            own_rows=1 + TREE,
            rows=self.max_sequences * (1 + TREE),
            sequences=len(self._messages),
            pass_ms=milliseconds,
            draft_ms=0.0,
            copy_stall_ms=milliseconds,
            link_bytes=1 << 30,
            nodes=nodes,
        )

    def _make_stats(self, message: Generate, tokens: int) -> Stats:
        passes = -(-tokens // self.schedule.burst)
        return make_stats(len(message.prompt), tokens, passes, self.schedule.seconds * passes)


def make_stats(prompt_tokens: int, tokens: int, passes: int, seconds: float) -> Stats:
    """Return the statistics of an answer that took `seconds` and was not drafted."""
    return Stats(
        prompt_tokens=prompt_tokens,
        cached_tokens=0,
        completion_tokens=tokens,
        passes=passes,
        drafted=0,
        accepted=0,
        prompt_ms=0.0,
        predicted_ms=seconds * 1e3,
    )


def main(connection: Connection, spec: ModelSpec, schedule: Schedule) -> None:
    """Run the engine's process, in place of `engine.process.worker.main`."""

    def load(
        spec: ModelSpec,
        progress: ReportProgress,
        on_pass_progress: OnPassProgress,
        on_prompt: OnPrompt,
    ) -> StepEngine:
        """Return the paced engine; it has no use for the callbacks."""
        return PacedEngine(schedule, spec.max_sequences or 1)

    serve(connection, spec, load)
