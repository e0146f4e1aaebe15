"""Padded draft steps, tested without a device: shapes, logits, the slots they use, captures."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.drafting.growth import Growth
from engine.drafting.model import cuda_graphs
from engine.drafting.model.cuda_graphs import (
    Bucket,
    GraphedSteps,
    PaddedStep,
    all_buckets,
    graphed_steps,
)
from engine.kv.page_pool import PAGE, PagePool
from engine.messages import LoadProgress
from engine.model.attention import Batch
from engine.model.segment import Segment
from engine.runtime.engine import Engine
from engine.spec import DraftSpec
from engine.streaming import cuda_link
from engine.streaming.cpu_link import CpuDevice
from engine.streaming.cuda_link import CudaDevice
from engine.streaming.cuda_streams import CudaCapture
from engine.streaming.device import Device, Work
from tests.engine.models import (
    PLAIN,
    SMALL,
    SUBSPEC,
    alone,
    checkpoint,
    exact,
    load,
    prompt,
    request as asked_for,
    run as serve,
)
from tests.engine.padded import Compared, draft_of, grow, uncaptured
from tests.engine.sequence_makers import make_sequence
from tests.engine.structures import STRUCTURES, save_structure

CPU = CpuDevice()
CUDA = CudaDevice(torch.device("cuda:0"))
FAMILIES = ("llama", "gemma2", "gpt_oss", "phi3", "gemma4_text")


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_step_gives_the_logits_and_kv_of_a_plain_step(family: str, tmp_path: Path) -> None:
    is_other = family in STRUCTURES
    folder = save_structure(family, tmp_path) if is_other else checkpoint(family)
    model = draft_of(folder, CPU)
    steps = Compared(model, uncaptured)
    long, short = make_sequence(prompt(300, 1)), make_sequence(prompt(20, 2))
    growths = [Growth(long, 40), Growth(short, 40)]
    grow(model, growths[1:], 5)  # the prompt as a chain, then the tree of one sequence
    assert steps.num_plain == 0
    grow(model, growths[:1], 2)  # the long prompt has more rows than any bucket
    assert len(steps.compared) == 5 + 1
    grow(model, growths, 4)  # both in one step
    for sequence in (long, short):
        sequence.tokens += [5, 6, 7]  # these were not drafted, so they are pending
    grow(model, [Growth(long, 40), Growth(short, 40)], 3)
    assert {bucket.kv for bucket in steps.compared} == {256, 512}
    assert {bucket.rows for bucket in steps.compared} == {16, 32}
    assert len(steps.compared) == 5 + 1 + 4 + 3


@torch.inference_mode()
def test_the_smallest_bucket_is_chosen() -> None:
    pool = PagePool(
        num_layers=1, num_pages=1, num_kv_heads=1, head_dim=1, dtype=torch.float32, device=CPU
    )

    def bucket(*segments: tuple[int, int, int]) -> Bucket | None:
        """Return the bucket of segments, given as (rows, prefix, scratch)."""
        made = tuple(
            Segment(
                first=0,
                count=n,
                start=start,
                slots=torch.empty(0),
                positions=torch.empty(scratch + n),
                mask=None,
                cancelled=Event(),
            )
            for n, start, scratch in segments
        )
        return Bucket.of(Batch(pool, made, range(sum(n for n, _, _ in segments)), False))

    assert bucket((1, 0, 0)) == Bucket(16, 256)
    assert bucket((16, 200, 56)) == Bucket(16, 256)
    assert bucket((17, 200, 57)) == Bucket(32, 512)
    assert bucket((30, 1000, 0), (34, 24, 0)) == Bucket(64, 1024)
    assert bucket((65, 10, 0)) is None
    assert bucket((6, cuda_graphs.MAX_KV, 0)) == Bucket(16, cuda_graphs.MAX_KV)
    assert bucket((6, cuda_graphs.MAX_KV, 1)) is None


@pytest.mark.parametrize(
    ("slots", "sizes"),
    [(64, [256]), (256, [256]), (257, [512, 256]), (1 << 20, [1 << n for n in range(15, 7, -1)])],
)
def test_there_is_a_bucket_for_every_step_over_a_cache(slots: int, sizes: list[int]) -> None:
    wanted = [Bucket(rows, kv) for kv in sizes for rows in (64, 32, 16)]
    assert all_buckets(slots) == wanted


@torch.inference_mode()
def test_padding_reads_the_steps_own_slots_only() -> None:
    """Other slots must not be read even with a weight of zero: zero times infinity is NaN."""
    model = draft_of(checkpoint("llama"), CPU)
    pool, width = model.caches.cache.pool, model.decoder.embedding.weight.shape[1]
    step = PaddedStep(model.decoder, pool, Bucket(8, 256))
    for count, start in ((7, 200), (2, 9)):
        slots = torch.randperm(1000)[: start + count]
        positions = torch.arange(start, start + count)
        segment = Segment(
            first=0,
            count=count,
            start=start,
            slots=slots,
            positions=positions,
            mask=None,
            cancelled=Event(),
        )
        step.fill([torch.randn(count, width)], [segment])
        read = step._segment
        assert set(read.slots.tolist()) == set(slots.tolist())
        assert set(read.slots[256:].tolist()) == set(slots[start:].tolist())
        assert read.mask is not None
        assert int(read.mask.sum()) == sum(start + min(row, count - 1) + 1 for row in range(8))


class CountedCapture:
    """A capture that runs the work once and counts its calls; some of them raise an error."""

    def __init__(self, errors: Mapping[int, RuntimeError] | None = None) -> None:
        self.count = 0
        self.errors = errors or {}  # by number of the call

    def __call__(self, work: Work) -> Work:
        self.count += 1
        if self.count in self.errors:
            raise self.errors[self.count]
        assert work().isfinite().all(), "the KV cache would be filled with NaN"
        return work


NUM_BUCKETS = len(all_buckets(40 * PAGE))  # of `draft_of`


@torch.inference_mode()
def test_all_graphs_are_captured_before_the_first_step() -> None:
    model, capture = draft_of(checkpoint("llama"), CPU), CountedCapture()
    steps = Compared(model, capture)
    assert capture.count == NUM_BUCKETS == 15
    for length in (1, 3, 20, 33, 60):
        grow(model, [Growth(make_sequence(prompt(length, length)), 40)], 2)
    assert steps.num_plain == 0
    assert capture.count == NUM_BUCKETS


@torch.inference_mode()
@pytest.mark.parametrize(
    ("errors", "captured"),
    [
        ({1: torch.OutOfMemoryError("out of memory")}, NUM_BUCKETS - 1),
        ({1: RuntimeError("not permitted when stream is capturing")}, 0),
        ({3: RuntimeError("not permitted when stream is capturing")}, 2),
    ],
)
def test_steps_without_a_graph_run_plainly(
    errors: dict[int, RuntimeError], captured: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = draft_of(checkpoint("llama"), CPU)
    with caplog.at_level(logging.WARNING):
        steps = Compared(model, CountedCapture(errors))
    assert len(steps._graphs) == captured
    ((number, error),) = errors.items()
    bucket = all_buckets(40 * PAGE)[number - 1]
    assert caplog.messages == [f"draft steps of {bucket} run without a CUDA graph: {error}"]
    grow(model, [Growth(make_sequence(prompt(20)), 40)], 4)
    assert steps.num_plain == (4 if captured < 10 else 0)


@torch.inference_mode()
def test_the_inputs_of_a_step_are_moved_by_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    model = draft_of(checkpoint("llama"), CPU)
    Compared(model, uncaptured)
    moved: list[int] = []

    def count(values: list[Tensor], device: torch.device) -> list[Tensor]:
        moved.append(len(values))
        return list(values)

    monkeypatch.setattr("engine.model.segment.upload_all", count)
    monkeypatch.setattr("engine.model.decoder.upload_all", None)  # of rows without a graph
    growths = [Growth(make_sequence(prompt(length, length)), 40) for length in (20, 30)]
    grow(model, growths, 3)
    # The rows that need logits and embeddings; slots and positions of both; then masks too.
    assert moved == [2 + 4, 2 + 6, 2 + 6]


@pytest.mark.parametrize(
    ("device", "changes", "made"),
    [
        (CUDA, {}, True),
        (CUDA, {"strict": True}, False),
        (CUDA, {"original_length": 4096}, False),
        (CUDA, {"has_recurrent_layers": True}, False),
        (CPU, {}, False),
    ],
)
def test_graphs_are_made_on_cuda_for_drafts_whose_steps_are_alike(
    monkeypatch: pytest.MonkeyPatch, device: Device, changes: dict[str, Any], made: bool
) -> None:
    monkeypatch.setattr(cuda_link, "CudaCapture", lambda device: uncaptured)
    usual = {"strict": False, "original_length": None, "has_recurrent_layers": False}
    decoder: Any = SimpleNamespace(**{**usual, **changes})
    pool: Any = None
    monkeypatch.setattr(GraphedSteps, "capture_all", lambda steps, progress, slot: 1)
    steps = graphed_steps(decoder, pool, device.capture(), lambda *_: None)
    assert (steps is not None) == made


@torch.inference_mode()
def test_a_model_that_cannot_be_captured_has_no_graphs() -> None:
    model = draft_of(checkpoint("llama"), CPU)
    pool, refusal = model.caches.cache.pool, {1: RuntimeError("not permitted")}
    assert graphed_steps(model.decoder, pool, CountedCapture(refusal), lambda *_: None) is None
    reported: list[LoadProgress] = []
    made = graphed_steps(model.decoder, pool, CountedCapture(), reported.append)
    assert made is not None
    assert [(step.done, step.total) for step in reported] == [
        (number + 1, NUM_BUCKETS) for number in range(NUM_BUCKETS)
    ]


def padded(engine: Engine) -> Compared:
    """Make an engine's draft run padded steps, and compare them with plain ones."""
    model = engine._drafting._model
    assert model is not None and model.graphs is None
    return Compared(model, uncaptured, tolerance=0.1)  # substitutes compute in bfloat16


@pytest.mark.parametrize("method", ["subspec", "specexec"])
def test_an_engine_with_padded_draft_steps_emits_the_same_tokens(method: str) -> None:
    folder = checkpoint("llama")
    asked = [
        asked_for("greedy", prompt(40, 1)),
        asked_for("sampled", prompt(250, 2), temperature=1.0, seed=3),
        asked_for("choices", prompt(9, 4), n=3, temperature=1.2, seed=4),
    ]
    want = exact(alone(load(folder, PLAIN), asked))
    draft = SUBSPEC if method == "subspec" else DraftSpec("specexec", source=str(folder), **SMALL)
    engine = load(folder, draft)
    steps = padded(engine)
    answers = serve(engine, asked)
    assert exact(answers) == want
    stats = answers["greedy", 0].stats
    assert stats is not None and stats.accepted > 0
    assert len(steps.compared) > 10 and {b.kv for b in steps.compared} == {256, 512}
    assert engine._cache.num_free_pages == engine._cache.num_pages


class FakeCuda:
    """A fake of torch.cuda's streams and capture; a failed capture leaves its stream current."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current: Any = self.stream("caller")
        self.log: list[str] = []
        self.replayed = 0
        for name, fake in {
            "Stream": lambda device: self.stream("capture"),
            "current_stream": lambda device: self.current,
            "stream": self.use,
            "graph_pool_handle": lambda: (0, 1),
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: self.log.append("replay")),
            "graph": self.graph,
        }.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    def stream(self, name: str) -> Any:
        def wait_stream(other: Any) -> None:
            self.log.append(f"{name} waits for {other.name}")

        return SimpleNamespace(name=name, wait_stream=wait_stream)

    @contextmanager
    def use(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(
        self, graph: Any, *, pool: Any, stream: Any, capture_error_mode: str
    ) -> Iterator[None]:
        assert pool == (0, 1) and capture_error_mode == "thread_local"
        self.current = stream
        self.log.append("capture")
        yield
        self.log.append("captured")


def test_work_runs_once_and_is_then_recorded_on_the_capture_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = FakeCuda(monkeypatch)
    caller = cuda.current

    def work() -> Tensor:
        cuda.log.append(f"work on {cuda.current.name}")
        return torch.ones(2, 3)

    replay = CudaCapture(torch.device("cuda", 0))(work)
    assert torch.equal(replay(), torch.ones(2, 3))
    assert cuda.current is caller
    assert cuda.log == [
        "capture waits for caller",
        "work on capture",
        "capture",
        "work on capture",
        "captured",
        "caller waits for capture",
        "replay",
    ]


def test_a_failed_capture_restores_the_callers_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    caller = cuda.current
    runs = iter([torch.ones(1)])

    def work() -> Tensor:
        for logits in runs:
            return logits
        raise RuntimeError("not permitted")

    with pytest.raises(RuntimeError, match="not permitted"):
        CudaCapture(torch.device("cuda", 0))(work)
    assert cuda.current is caller
