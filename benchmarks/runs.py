"""An engine in this process, driven by hand: what each benchmark of the engine shares."""

import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from engine.messages import Failed, Generate, PassStats, SamplingParams, Stats, Tokens
from engine.runtime.engine import Engine
from engine.runtime.load import Loaded, load
from engine.runtime.target_files import TargetFiles
from engine.spec import DraftSpec, ModelSpec, StreamSpec, TargetSpec

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "configs" / "demo"
MODELS = ROOT / "build" / "benchmarks"  # where checkpoints are kept between runs
MID = Shape(  # 22 M parameters: a pass over a tree takes two cores some 40 ms
    layers=12, hidden=384, intermediate=1024, heads=6, kv_heads=2, vocabulary=4096
)
GREEDY = SamplingParams(temperature=0.0)
UNLIMITED_GBPS = 1e4  # a link that is never waited for

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Session:
    """A loaded model and how much of it travels."""

    engine: Engine
    loaded: Loaded
    streamed_bytes: int  # W: over the link in one pass

    @property
    def link_bytes(self) -> int:
        """Bytes that have travelled since the model was loaded; a unit counts when it is there."""
        return self.loaded.stream.stats.bytes


@dataclass
class Emission:
    """Tokens of one request that one pass emitted."""

    request_id: str
    at: float  # seconds of the process's clock (time.perf_counter)
    ids: tuple[int, ...]
    text: str


@dataclass
class Run:
    """What some steps of an engine did."""

    began: float
    ended: float = 0.0
    emissions: list[Emission] = field(default_factory=list)
    passes: list[PassStats] = field(default_factory=list)
    finished: dict[str, Stats] = field(default_factory=dict)
    nats: list[float] = field(default_factory=list)  # of each token, where logprobs were asked

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    @property
    def answered(self) -> set[str]:
        """Requests that got tokens."""
        return {emission.request_id for emission in self.emissions}

    @property
    def num_tokens(self) -> int:
        return sum(len(emission.ids) for emission in self.emissions)

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds

    def tokens_of(self, request_id: str) -> tuple[int, ...]:
        own = (e.ids for e in self.emissions if e.request_id == request_id)
        return tuple(token for ids in own for token in ids)

    def times_of(self, request_id: str) -> list[float]:
        """When each pass that emitted for the request ended."""
        return [e.at for e in self.emissions if e.request_id == request_id]


@contextmanager
def session(spec: ModelSpec) -> Iterator[Session]:
    """Load a model into this process; it is closed at the end. Raises `ModelError`."""
    keep_freed_memory()
    with torch.inference_mode():
        loaded = load(spec, _quiet)
        engine = Engine(loaded)
    try:
        yield Session(engine, loaded, streamed_bytes(spec, loaded))
    finally:
        engine.close()


def streamed_bytes(spec: ModelSpec, loaded: Loaded) -> int:
    """W: the bytes of all units that are not resident."""
    layouts = TargetFiles(spec, _quiet).units.layouts
    pairs = zip(layouts, loaded.plan.tiers, strict=True)
    return sum(layout.nbytes for layout, tier in pairs if tier != "resident")


def grown(name: str, shape: Shape) -> Path:
    """The demo's target in a larger shape: its folder, made at the first call."""
    return grow(DEMO / "target", MODELS / name, shape).folder


def ram_spec(
    folder: Path, draft: DraftSpec, *, gbps: float | None, max_sequences: int | None = None
) -> ModelSpec:
    """All layers of a checkpoint in RAM behind a pretended link, on the CPU, without a prefix
    cache: a prompt that is repeated is computed again."""
    return ModelSpec(
        id=folder.name,
        target=TargetSpec(str(folder)),
        draft=draft,
        device="cpu",
        stream=StreamSpec(tier="ram", resident=0, simulate_gbps=gbps),
        max_sequences=max_sequences,
        prefix_cache=False,
    )


def request(name: str, prompt: Sequence[int], params: SamplingParams, **fields: Any) -> Generate:
    """A request whose answer is as long as it may be: no token ends it."""
    return Generate(name, tuple(prompt), replace(params, ignore_eos=True), **fields)


def drive(session: Session, requests: Iterable[Generate] = (), *, passes: int | None = None) -> Run:
    """Add the requests and step until all are answered, or for so many passes."""
    for message in requests:
        session.engine.add(message)
    run = Run(began=time.perf_counter())
    while session.engine.has_work() and (passes is None or len(run.passes) < passes):
        step(session, run)
    run.ended = time.perf_counter()
    return run


def step(session: Session, run: Run) -> None:
    """One pass. Raises `EngineError` when a request fails."""
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


def forget(session: Session, names: Iterable[str]) -> None:
    """Abort requests and let the engine drop them."""
    for name in names:
        session.engine.abort(name)
    while session.engine.has_work():
        session.engine.step()


def chat_prompts(kind: str) -> list[list[int]]:
    """The demo's `starters` (in its training) or `held_out` chats, as token ids."""
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


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
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


def _quiet(what: str, done: int, total: int) -> None:
    """Loading is not what is measured: no progress is shown."""
