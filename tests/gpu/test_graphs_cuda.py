"""Tests that draft steps as CUDA graphs compute the same as plain steps, with the same answers.

tests/engine/drafting/model/test_cuda_graphs.py tests the padded step without a device.
"""

# mypy: disallow-untyped-calls=False
# torch.cuda declares no types for streams.

import pytest
import torch
from torch import Tensor

from engine.drafting.growth import Growth
from engine.drafting.model.cuda_graphs import graphed_steps
from engine.spec import DraftSpec, MemorySpec
from engine.streaming.cuda_link import CudaDevice
from engine.streaming.device import Work
from tests.engine.models import PLAIN, SMALL, alone, checkpoint, exact, load, prompt, request, run
from tests.engine.padded import Compared, draft_of, grow
from tests.engine.sequence_makers import make_sequence

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda", 0)
GPU = CudaDevice(CUDA)
MEMORY = MemorySpec(device=1 << 30)


@torch.inference_mode()
@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "qwen3", "mistral"])
def test_a_replayed_step_computes_the_same_as_a_plain_step(family: str) -> None:
    model = draft_of(checkpoint(family), GPU)
    steps = Compared(model, GPU.capture(), tolerance=1e-3)
    growths = [Growth(make_sequence(prompt(length, length)), 40) for length in (20, 300)]
    grow(model, growths[:1], 5)
    grow(model, growths[1:], 2)
    grow(model, growths, 4)
    again = Growth(make_sequence(prompt(33, 9)), 40)
    grow(model, [again], 5)  # the same buckets, so graphs of other growths are replayed
    assert len(steps.compared) == 5 + 1 + 4 + 5 and len(set(steps.compared)) > 3


@torch.inference_mode()
def test_models_with_length_dependent_rope_have_no_graphs() -> None:
    model = draft_of(checkpoint("phi3_longrope"), GPU)
    pool, capture = model.caches.cache.pool, GPU.capture()
    assert graphed_steps(model.decoder, pool, capture, lambda *_: None) is None


@torch.inference_mode()
def test_graphs_replay_on_the_current_stream() -> None:
    model = draft_of(checkpoint("llama"), GPU)
    Compared(model, GPU.capture(), tolerance=1e-3)
    growth = Growth(make_sequence(prompt(20)), 40)
    grow(model, [growth], 2)
    side_stream = torch.cuda.Stream(CUDA)
    side_stream.wait_stream(torch.cuda.current_stream(CUDA))
    with torch.cuda.stream(side_stream):
        grow(model, [growth], 3)
        grow(model, [Growth(make_sequence(prompt(21, 1)), 40)], 3)
    torch.cuda.synchronize(CUDA)


@torch.inference_mode()
def test_replayed_steps_take_no_more_memory() -> None:
    model = draft_of(checkpoint("llama"), GPU)
    pool, capture = model.caches.cache.pool, GPU.capture()
    model.graphs = graphed_steps(model.decoder, pool, capture, lambda *_: None)
    assert model.graphs is not None

    def all_sizes() -> int:
        for length in (1, 3, 7, 15, 31, 60):
            grow(model, [Growth(make_sequence(prompt(length, length)), 40)], 1)
        torch.cuda.synchronize(CUDA)
        return torch.cuda.memory_allocated(CUDA)

    all_sizes()
    first = all_sizes()
    for _ in range(5):
        last = all_sizes()
    assert last <= first + (1 << 20)


@torch.inference_mode()
def test_work_that_cannot_be_captured_runs_without_a_graph(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = draft_of(checkpoint("llama"), GPU)
    pool, capture = model.caches.cache.pool, GPU.capture()

    def waits_for_the_device(work: Work) -> Work:
        def run() -> Tensor:
            logits = work()
            logits.sum().item()  # an error while a stream is captured
            return logits

        return capture(run)

    caller = torch.cuda.current_stream(CUDA)
    assert graphed_steps(model.decoder, pool, waits_for_the_device, lambda *_: None) is None
    assert [r for r in caplog.records if "without a CUDA graph" in r.message]
    assert torch.cuda.current_stream(CUDA) == caller
    # The failure left no trace on the device.
    model.graphs = graphed_steps(model.decoder, pool, GPU.capture(), lambda *_: None)
    assert model.graphs is not None
    grow(model, [Growth(make_sequence(prompt(20)), 40)], 5)
    torch.cuda.synchronize(CUDA)


@pytest.mark.parametrize("method", ["subspec", "specexec"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_engines_draft_with_graphs(
    monkeypatch: pytest.MonkeyPatch, method: str, dtype: torch.dtype
) -> None:
    folder = checkpoint("llama", dtype)
    asked = [
        request("greedy", prompt(40, 1)),
        request("long", prompt(250, 2), temperature=1.0, seed=3),
        request("choices", prompt(9, 4), n=3, temperature=1.2, seed=4),
    ]
    want = exact(alone(load(folder, PLAIN, device="cuda:0", memory=MEMORY), asked))
    source = str(folder) if method == "specexec" else None
    draft = DraftSpec(method, source=source, **SMALL)
    engine = load(folder, draft, device="cuda:0", memory=MEMORY)
    model = engine._drafting._model
    assert model is not None and model.graphs is not None

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a pass captured a graph")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    for _ in range(2):
        assert exact(run(engine, asked)) == want
