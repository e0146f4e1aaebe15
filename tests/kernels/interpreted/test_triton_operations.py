"""Draft steps by Triton's operations: they give the same, and launch what is counted elsewhere."""

from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from torch import nn

from engine.drafting.model.draft_model import DraftModel
from engine.drafting.model.fused.modules import FusedAttention, FusedLayer, FusedMlp
from engine.drafting.model.fused.operations import AttentionRule
from engine.drafting.model.fused.triton_operations import LAUNCHES, TritonOperations
from engine.kv.page_pool import PagePool
from engine.model.attention import Batch, LayerRule
from engine.model.segment import Segment
from engine.streaming.cpu_link import CpuDevice
from engine.triton_kernels import int4_product
from tests.engine import models
from tests.engine.kernel_nodes import KernelNodes, padded_step
from tests.engine.models import SUBSPEC, checkpoint, draft_model

pytestmark = pytest.mark.usefixtures("bfloat16_rounded")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


def load_draft(family: str, monkeypatch: pytest.MonkeyPatch, *, has_triton: bool) -> DraftModel:
    monkeypatch.setattr(int4_product, "is_usable", lambda device: has_triton)
    folder = checkpoint(family, torch.bfloat16)
    return draft_model(models.load(folder, replace(SUBSPEC, calibrate=False)))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral_window", "gemma2"])
@torch.inference_mode()
def test_a_step_gives_the_same_and_launches_what_is_counted(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime import interpreter

    model = load_draft(family, monkeypatch, has_triton=True)
    layers = [layer.inner for layer in model.decoder.decoder.layers]
    fused = FusedLayer if family != "gemma2" else (FusedAttention, FusedMlp)
    for layer in layers:
        (operations,) = {
            module.operations for module in layer.modules() if isinstance(module, fused)
        }
        assert isinstance(operations, TritonOperations)
    step, nodes = padded_step(model, rows=4), KernelNodes()
    torch.manual_seed(0)
    step._inputs[0].normal_()
    launch = interpreter.GridExecutor.__call__

    def count(self: Any, *args: Any, **named: Any) -> None:
        nodes.counts[self.fn.__name__] += 1
        with nodes.paused():
            launch(self, *args, **named)

    with monkeypatch.context() as patch, nodes:
        patch.setattr(interpreter.GridExecutor, "__call__", count)
        found = step.run()
    assert not {"index_select", "index_copy_", "linear", "mm"} & nodes.counts.keys()
    of_layer = 10 if family != "gemma2" else 15
    assert nodes.total <= len(layers) * of_layer + 20, nodes.counts
    names = {"rotate_and_store", "attend_to_slots", "join_parts"}
    assert {nodes.counts[name] for name in names} == {len(layers)}
    assert LAUNCHES["attend"] == len(names)

    other = padded_step(load_draft(family, monkeypatch, has_triton=False), rows=4)
    other._inputs[0].copy_(step._inputs[0])
    want = other.run()
    assert torch.linalg.vector_norm(found - want) <= 0.03 * torch.linalg.vector_norm(want)


def test_a_prompt_is_computed_by_functions_of_torch() -> None:
    """The parts of its sum are float32, and the cache is not."""
    torch.manual_seed(0)
    pool = PagePool(
        num_layers=1,
        num_pages=1,
        num_kv_heads=2,
        head_dim=16,
        dtype=torch.bfloat16,
        device=CpuDevice(),
    )
    segment = Segment(
        first=0,
        count=5,
        start=0,
        slots=torch.arange(5),
        positions=torch.arange(5),
        mask=None,
        cancelled=Event(),
    )
    batch = Batch(pool, (segment,), range(5), strict=False)
    rule = AttentionRule(
        layer=0,
        num_heads=4,
        num_kv_heads=2,
        width=16,
        scaling=0.25,
        sliding_window=None,
        softcap=None,
        query_norm=None,
        key_norm=None,
    )
    module: Any = nn.Module()
    module.rule = LayerRule(0)
    joined, (cosines, sines) = torch.randn(3, 5, 8 * 16), torch.randn(2, 1, 5, 16).bfloat16()
    found = TritonOperations().attend(module, rule, joined, (cosines, sines), batch)
    chain = replace(segment, mask=torch.ones(5, 5, dtype=torch.bool).tril())
    step = replace(batch, segments=(chain,))
    want = TritonOperations().attend(module, rule, joined, (cosines, sines), step)
    assert found.dtype == want.dtype == torch.bfloat16
    torch.testing.assert_close(found, want, rtol=0.02, atol=0.02)
