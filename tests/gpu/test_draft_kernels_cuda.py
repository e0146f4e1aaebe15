"""Draft steps by Triton's kernels on a device, against functions of torch and as graphs.

They need only the dependencies of the engine.
"""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from engine.drafting.model.fused.modules import FusedLayer
from engine.drafting.model.fused.operations import NormRule, TorchOperations
from engine.drafting.model.fused.triton_operations import TritonOperations
from engine.triton_kernels import draft_attention, expert_product, int4_product
from tests.engine import int4_codes
from tests.engine.kernel_nodes import padded_step
from tests.engine.models import SUBSPEC, checkpoint, draft_model, load

CUDA = torch.device("cuda", 0)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_the_kernels_are_used() -> None:
    assert int4_product.is_usable(CUDA)


@pytest.mark.parametrize("rows", [1, 6, 16, 17, 33, 64, 100])
@pytest.mark.parametrize(
    ("outputs", "inputs"), [(4608, 3584), (3584, 18944), (37888, 3584), (1000, 448)]
)
def test_products(rows: int, outputs: int, inputs: int) -> None:
    codes = int4_codes.quantize(torch.randn(outputs, inputs, device=CUDA) * inputs**-0.5, 32)
    values = torch.randn(rows, inputs, device=CUDA).bfloat16()
    want = values.float() @ codes.dense().T
    first, second = want.chunk(2, dim=-1)
    product = int4_product.multiply(values, codes.pairs, codes.scales_and_zeros)
    gated = int4_product.multiply(values, codes.pairs, codes.scales_and_zeros, gate="silu")
    for found, own in ((product, want), (gated, F.silu(first) * second)):
        assert (found.float() - own).norm() < 0.01 * own.norm()


@pytest.mark.parametrize("width", [64, 80, 128, 256])
@pytest.mark.parametrize("rows", [1, 6, 64])
@pytest.mark.parametrize("num_keys", [300, 4000])
@pytest.mark.parametrize(("window", "bound"), [(None, None), (200, 20.0)])
def test_attention(
    width: int, rows: int, num_keys: int, window: int | None, bound: float | None
) -> None:
    keys, values = torch.randn(2, 8192, 4, width, device=CUDA).bfloat16()
    queries = torch.randn(rows, 28, width, device=CUDA).bfloat16()
    slots = torch.randperm(8192, device=CUDA)[:num_keys]
    mask = torch.rand(rows, num_keys, device=CUDA) < 0.7
    mask[:, -rows:] = torch.eye(rows, dtype=torch.bool, device=CUDA)
    positions = torch.arange(num_keys, device=CUDA)
    found = draft_attention.attend(
        queries, (keys, values), slots, mask, positions, scale=0.2, window=window, bound=bound
    )
    near = mask if window is None else mask & (positions[-rows:, None] - positions < window)
    own = (part[slots].float().repeat_interleave(7, 1) for part in (keys, values))
    key, value = own
    scores = torch.einsum("rhd,khd->hrk", queries.float(), key) * 0.2
    scores = scores if bound is None else torch.tanh(scores / bound) * bound
    weights = scores.masked_fill(~near, -torch.inf).softmax(-1)
    want = torch.einsum("hrk,khd->rhd", weights, value).flatten(1)
    assert (found.float() - want).norm() < 0.01 * want.norm()


@pytest.mark.parametrize("width", [64, 896, 3584, 8192])
def test_sums_and_norms(width: int) -> None:
    rows, update = torch.randn(6, width, device=CUDA).bfloat16(), torch.randn(1, 6, width)
    own, update = rows.clone(), update.to(CUDA, torch.bfloat16)
    norm = NormRule(torch.randn(width, device=CUDA).bfloat16(), 1e-6, 1.0)
    want = TorchOperations().add_norm(own, update, norm)
    found = TritonOperations().add_norm(rows, update, norm)
    assert torch.equal(rows, own)
    assert (found.float() - want.float()).norm() < 0.01 * want.float().norm()


@pytest.mark.parametrize("rows", [1, 6, 64])
@pytest.mark.parametrize(("outputs", "inputs"), [(1536, 2048), (2048, 768)])
def test_products_of_experts(rows: int, outputs: int, inputs: int) -> None:
    index = torch.rand(rows, 32, device=CUDA).topk(8).indices
    codes = [
        int4_codes.quantize(torch.randn(outputs, inputs, device=CUDA) * inputs**-0.5, 32)
        for _ in range(32)
    ]
    values = torch.randn(rows, inputs, device=CUDA).bfloat16()
    found = expert_product.multiply(
        values,
        torch.stack([own.pairs for own in codes]),
        torch.stack([own.scales_and_zeros for own in codes]),
        None,
        expert_product.group_places(index, 32),
    )
    weights = torch.stack([own.dense() for own in codes])
    want = torch.einsum("ri,rkoi->rko", values.float(), weights[index]).flatten(0, 1)
    assert (found.float() - want).norm() < 0.01 * want.norm()


@torch.inference_mode()
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_steps_of_mixtures_of_experts_are_graphs(family: str) -> None:
    folder = checkpoint(family, torch.bfloat16)
    model = draft_model(load(folder, replace(SUBSPEC, calibrate=False), device="cuda:0"))
    step = padded_step(model, rows=4)
    step._inputs[0].normal_()
    plain = step.run().clone()
    assert model.graphs is not None and model.graphs._graphs
    assert torch.equal(model.graphs._capture(step.run)(), plain)


@torch.inference_mode()
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral_window"])
def test_a_draft_runs_triton_layers_in_graphs(family: str) -> None:
    folder = checkpoint(family, torch.bfloat16)
    model = draft_model(load(folder, replace(SUBSPEC, calibrate=False), device="cuda:0"))
    for layer in model.decoder.decoder.layers:
        assert type(layer.inner) is FusedLayer
        assert isinstance(layer.inner.operations, TritonOperations)
    step = padded_step(model, rows=4)
    step._inputs[0].normal_()
    plain = step.run().clone()
    assert model.graphs is not None
    replay = model.graphs._capture(step.run)
    assert torch.equal(replay(), plain)
