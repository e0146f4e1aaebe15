"""Tests of work that overlaps on a device: layers, drafting ahead, choices."""

# mypy: disallow-untyped-calls=False
# torch.cuda declares no types for events and sleeps.

from typing import Any

import pytest
import torch
from torch import Tensor

from engine.drafting.model.guess import draft_children
from engine.kv.page_pool import PAGE
from engine.messages import SamplingParams
from engine.sampling.choose import UNDECIDED, choose_rows, choose_rows_at_once
from engine.sampling.large_vocabularies.blocks import Rows
from engine.spec import DraftSpec, MemorySpec
from engine.streaming.cuda_link import CudaDevice
from engine.streaming.cuda_streams import CudaSideStream
from tests.engine.models import (
    PLAIN,
    SMALL,
    SUBSPEC,
    alone,
    checkpoint,
    exact,
    hooks,
    load,
    prompt,
    request,
    run,
)
from tests.gpu.waiting import no_waiting

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda", 0)
GPU: dict[str, Any] = {"device": "cuda:0", "memory": MemorySpec(device=1 << 30)}
CYCLES = 100_000_000  # about fifty milliseconds


def asked() -> list[Any]:
    return [
        request("greedy", prompt(40, 1)),
        request("long", prompt(150, 2)),
        request("sampled", prompt(30, 3), temperature=1.0, top_p=0.9, seed=3),
        request("logprobs", prompt(12, 5), logprobs=2),
        request("penalized", prompt(12, 6), repetition_penalty=1.3, temperature=0.8, seed=5),
        request("choices", prompt(9, 4), n=3, temperature=1.2, seed=4),
    ]


@pytest.mark.parametrize("numerics", ["strict", "fast"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_no_layer_makes_the_host_wait(
    monkeypatch: pytest.MonkeyPatch, family: str, numerics: Any
) -> None:
    engine = load(checkpoint(family), PLAIN, numerics=numerics, **GPU)
    run(engine, asked()[:2])  # libraries initialise themselves
    forward, passes = engine._decoder.forward, 0

    def watched(*arguments: Any) -> Tensor:
        nonlocal passes
        passes += 1
        with no_waiting():
            return forward(*arguments)

    monkeypatch.setattr(engine._decoder, "forward", watched)
    run(engine, asked()[:2])
    assert passes > 10


@pytest.mark.parametrize("method", ["subspec", "specexec"])
def test_drafting_during_every_layer_changes_no_token(method: str) -> None:
    folder = checkpoint("llama", torch.bfloat16)
    some = asked()[::2]
    want = exact(alone(load(folder, PLAIN, **GPU), some))
    source = str(folder) if method == "specexec" else None
    engine = load(folder, DraftSpec(method, source=source, **SMALL), **GPU)
    drafting, ahead, inside = engine._drafting, 0, False
    assert isinstance(drafting.side_stream, CudaSideStream)

    def draft(_: int) -> None:
        nonlocal ahead, inside
        if not inside:  # the draft's own layers call this too
            inside = True
            torch.cuda._sleep(CYCLES // 100)  # delays the layer's kernels
            ahead += drafting.draft_ahead(1.0)
            inside = False

    hooks(engine).on_unit = draft
    for attempt in ("cold", "prefix cached"):
        assert exact(run(engine, some)) == want, attempt
    assert ahead > 10
    assert engine._cache.num_free_pages == engine._cache.num_pages


def test_drafting_does_not_wait_for_kernels_of_the_pass() -> None:
    CudaDevice(CUDA).use_compute_stream()
    side_stream, ended = CudaSideStream(CUDA), torch.cuda.Event()
    numbers = torch.arange(1000, device=CUDA)
    numbers.sum().item()
    with side_stream.during_pass():
        torch.cuda._sleep(20 * CYCLES)
        ended.record()
        with side_stream.drafting():
            assert numbers.sum().item() == 499_500
        assert not ended.query(), "drafting waited for the pass"
    numbers.zero_()  # runs after the draft
    torch.cuda.synchronize(CUDA)


def test_the_pass_has_the_higher_priority() -> None:
    CudaDevice(CUDA).use_compute_stream()
    side_stream = CudaSideStream(CUDA)
    assert torch.cuda.current_stream(CUDA).priority < side_stream._stream.priority


@pytest.mark.parametrize("method", ["none", "subspec"])
def test_choosing_all_rows_at_once_equals_choosing_one_by_one(method: str) -> None:
    draft = PLAIN if method == "none" else SUBSPEC
    at_once = load(checkpoint("llama"), draft, **GPU)
    assert at_once._at_once
    one_by_one = load(checkpoint("llama"), draft, **GPU)
    one_by_one._at_once = False
    assert exact(run(at_once, asked())) == exact(run(one_by_one, asked()))


def test_a_second_turn_computes_only_what_is_new() -> None:
    engine = load(checkpoint("llama"), SUBSPEC, **GPU)
    first = prompt(3 * PAGE + 5, 1)
    answer = run(engine, [request("first", first)])["first", 0]
    second = [*first, *answer.ids, *prompt(10, 2)]
    want = exact(run(load(checkpoint("llama"), PLAIN, **GPU), [request("second", second)]))
    found = run(engine, [request("second", second)])
    assert exact(found) == want
    stats = found["second", 0].stats
    assert stats is not None
    assert (
        stats.cached_tokens == len(first) + len(answer.ids) - 1
    )  # the last token's KV is computed too


def test_greedy_choices_do_not_make_the_host_wait() -> None:
    logits = torch.randn(64, 50_257, device=CUDA)
    greedy = SamplingParams(temperature=0)
    with no_waiting():
        chosen = choose_rows(Rows.of(logits), greedy, None, positions=range(64), choice=0)
    assert torch.equal(chosen, logits.argmax(-1))


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(seed=4),
        SamplingParams(seed=4, temperature=0.1),
        SamplingParams(seed=4, top_p=0.9, temperature=0.5),
        SamplingParams(seed=4, top_p=0.9, top_k=200, min_p=0.001, logit_bias=((3, 2.0),)),
    ],
    ids=str,
)
def test_choices_of_whole_rows_do_not_make_the_host_wait(params: SamplingParams) -> None:
    logits = torch.randn(64, 50_257, device=CUDA) * 4
    asked: dict[str, Any] = {
        "positions": range(64),
        "choice": 0,
        "banned": [[row, 7] for row in range(64)],
    }
    with no_waiting():
        rows = Rows.of(logits)
        found = choose_rows_at_once(rows, params, **asked)
        draft_children(logits, params, None, tau=0.7, branch=4, at_once=True, **asked)
    want = choose_rows(Rows.of(logits), params, None, **asked)
    decided = found != UNDECIDED
    assert torch.equal(found[decided], want[decided])
    assert decided.any()
