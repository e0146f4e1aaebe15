"""Run an engine in this process, pass by pass; the benchmarks of the engine share this."""

import json
import os
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from benchmarks.grow import grow
from benchmarks.random_model import Shape
from engine.errors import EngineError
from engine.malloc import keep_freed_memory
from engine.messages import (
    Failed,
    Generate,
    LoadProgress,
    PassStats,
    SamplingParams,
    Stats,
    Tokens,
)
from engine.runtime.engine import Engine
from engine.runtime.load import Loaded, load
from engine.runtime.target_files import TargetFiles
from engine.spec import DraftSpec, ModelSpec, StreamSpec, TargetSpec

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "configs" / "demo"
MODELS = ROOT / "build" / "benchmarks"  # checkpoints are kept here between runs
MID = Shape(  # 22 M parameters: a pass over a tree takes about 40 ms on two cores
    layers=12, hidden=384, intermediate=1024, heads=6, kv_heads=2, vocabulary=4096
)
GREEDY = SamplingParams(temperature=0.0)
UNLIMITED_GBPS = 1e4  # no pass ever waits for this link


@dataclass(frozen=True)
class Session:
    """A loaded model with its engine."""

    engine: Engine
    loaded: Loaded
    streamed_bytes: int  # W: bytes that travel in one pass

    @property
    def link_bytes(self) -> int:
        """Return the bytes of the units that have arrived since the model was loaded."""
        return self.loaded.stream.stats.bytes


@dataclass
class Emission:
    """The tokens of one request that one pass emitted."""

    request_id: str
    at: float  # seconds of `time.perf_counter`
    ids: tuple[int, ...]
    text: str


@dataclass
class Run:
    """The emissions and statistics of some steps of an engine."""

    began: float
    ended: float = 0.0
    emissions: list[Emission] = field(default_factory=list)
    passes: list[PassStats] = field(default_factory=list)
    finished: dict[str, Stats] = field(default_factory=dict)
    nats: list[float] = field(default_factory=list)  # of each token, if logprobs were requested

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    @property
    def answered(self) -> set[str]:
        """Return the ids of the requests that got tokens."""
        return {emission.request_id for emission in self.emissions}

    @property
    def num_tokens(self) -> int:
        return sum(len(emission.ids) for emission in self.emissions)

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds

    def tokens_of(self, request_id: str) -> tuple[int, ...]:
        """Return all tokens that were emitted for a request."""
        own = (e.ids for e in self.emissions if e.request_id == request_id)
        return tuple(token for ids in own for token in ids)

    def times_of(self, request_id: str) -> list[float]:
        """Return the times of the emissions of a request."""
        return [e.at for e in self.emissions if e.request_id == request_id]


@contextmanager
def session(spec: ModelSpec) -> Iterator[Session]:
    """Load a model into this process for a `with` block. Raises `ModelError`."""
    keep_freed_memory()
    with torch.inference_mode():
        loaded = load(spec, _quiet)
        engine = Engine(loaded)
    try:
        yield Session(engine, loaded, streamed_bytes(spec, loaded))
    finally:
        engine.close()


def streamed_bytes(spec: ModelSpec, loaded: Loaded) -> int:
    """Return W: the bytes of all units that are not resident."""
    layouts = TargetFiles(spec, _quiet).units.layouts
    pairs = zip(layouts, loaded.plan.tiers, strict=True)
    return sum(layout.nbytes for layout, tier in pairs if tier != "resident")


def grow_demo(name: str, shape: Shape) -> Path:
    """Return the folder of the demo's target in a larger shape; the first call makes it."""
    return grow(DEMO / "target", MODELS / name, shape).folder


def ram_spec(
    folder: Path, draft: DraftSpec, *, gbps: float | None, max_sequences: int | None = None
) -> ModelSpec:
    """Return a specification that streams all layers from RAM over a simulated link, on the CPU.

    The prefix cache is off, so that a repeated prompt is computed again.
    """
    return ModelSpec(
        id=folder.name,
        target=TargetSpec(str(folder)),
        draft=draft,
        device="cpu",
        stream=StreamSpec(tier="ram", resident=0, simulate_gbps=gbps),
        max_sequences=max_sequences,
        prefix_cache=False,
    )


def make_request(
    name: str, prompt: Sequence[int], params: SamplingParams, **fields: Any
) -> Generate:
    """Return a request whose answer no token ends."""
    return Generate(name, tuple(prompt), replace(params, ignore_eos=True), **fields)


def drive(session: Session, requests: Iterable[Generate] = (), *, passes: int | None = None) -> Run:
    """Add the requests; step until all are answered, or until `passes` passes have run."""
    for message in requests:
        session.engine.add(message)
    run = Run(began=time.perf_counter())
    while session.engine.has_work() and (passes is None or len(run.passes) < passes):
        step(session, run)
    run.ended = time.perf_counter()
    return run


def step(session: Session, run: Run) -> None:
    """Run one step and record it in `run`. Raises `EngineError` if a request fails."""
    engine = session.engine
    before = engine.last_pass
    events = engine.step()
    now = time.perf_counter()
    if engine.last_pass is not None and engine.last_pass is not before:
        run.passes.append(engine.last_pass)
    for event in events:
        if isinstance(event, Failed):
            raise EngineError(event.message)
        if isinstance(event, Tokens):
            run.emissions.append(Emission(event.request_id, now, event.ids, event.text))
            run.nats += [-logprob.logprob for logprob in event.logprobs]
            if event.stats is not None:
                run.finished[event.request_id] = event.stats


def abort_requests(session: Session, names: Iterable[str]) -> None:
    """Abort the named requests and step until the engine has no work."""
    for name in names:
        session.engine.abort(name)
    while session.engine.has_work():
        session.engine.step()


def load_chat_prompts(kind: str) -> list[list[int]]:
    """Return the token ids of the demo's chats: `starters` (trained on) or `held_out`."""
    tokenizer: Any = AutoTokenizer.from_pretrained(DEMO / "target")
    entries = json.loads((DEMO / f"{kind}.json").read_text(encoding="utf-8"))
    texts = [
        tokenizer.apply_chat_template(
            entry["messages"],
            tokenize=False,
            add_generation_prompt=True,
            tools=entry.get("tools") or None,
            enable_thinking=entry.get("enable_thinking", False),
        )
        for entry in entries
        if "messages" in entry
    ]
    return [tokenizer(text, add_special_tokens=False).input_ids for text in texts]


def describe_machine() -> dict[str, Any]:
    """Return a description of this machine for the report."""
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "load_average": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _quiet(step: LoadProgress) -> None:
    """Ignore the progress of loading, which is not measured."""
