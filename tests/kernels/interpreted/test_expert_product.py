"""The product with all experts at once equals the product with each one, within one rounding."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.triton_kernels import expert_product, int4_product
from engine.weights.formats.linear import ExpertLayers
from tests.engine import int4_codes, models
from tests.engine.kernel_nodes import KernelNodes, padded_step
from tests.engine.models import SUBSPEC, checkpoint, draft_model
from tests.engine.structures import save_structure

pytestmark = pytest.mark.usefixtures("bfloat16_rounded")
ROUNDING = 2**-8  # of bfloat16


@pytest.mark.parametrize("group", int4_product.GROUPS)
@pytest.mark.parametrize(
    ("rows", "chosen", "experts", "inputs", "outputs"),
    [
        (1, 1, 4, 128, 64),
        (3, 2, 5, 192, 72),  # edges in both dimensions of a weight
        (24, 4, 4, 64, 24),  # all experts, in more than one block each
        (40, 1, 3, 64, 8),
    ],
)
def test_each_place_is_multiplied_with_its_experts_weight(
    rows: int, chosen: int, experts: int, inputs: int, outputs: int, group: int
) -> None:
    torch.manual_seed(rows)
    index = torch.rand(rows, experts).topk(chosen).indices
    codes = [
        int4_codes.quantize(torch.randn(outputs, inputs) * inputs**-0.5, group)
        for _ in range(experts)
    ]
    pairs = torch.stack([own.pairs for own in codes])
    scales = torch.stack([own.scales_and_zeros for own in codes])
    bias = torch.randn(experts, outputs).bfloat16()
    blocks = expert_product.group_places(index, experts)
    places = rows * chosen
    for values in (torch.randn(rows, inputs), torch.randn(places, inputs)):
        values = values.bfloat16()
        each = values.repeat_interleave(places // len(values), 0).float()
        for own in (None, bias):
            found = expert_product.multiply(values, pairs, scales, own, blocks)
            for place, expert in enumerate(index.flatten().tolist()):
                want = each[place] @ codes[expert].dense().bfloat16().float().T
                want += 0 if own is None else own[expert].float()
                torch.testing.assert_close(found[place].float(), want, rtol=ROUNDING, atol=2e-4)


@pytest.mark.parametrize("experts", [[0] * 33, [3, 1, 2, 0], [2], [*range(40)] * 2])
def test_blocks_hold_each_place_once_and_those_of_one_expert(experts: list[int]) -> None:
    blocks = expert_product.group_places(torch.tensor(experts)[:, None], max(experts) + 2)
    found = [place for place in blocks.places.flatten().tolist() if place >= 0]
    assert sorted(found) == [*range(len(experts))]
    for expert, places in zip(blocks.experts.tolist(), blocks.places.tolist(), strict=True):
        assert {experts[place] for place in places if place >= 0} <= {expert}
        assert (expert < 0) == (max(places) < 0)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "llama4_text"])
@torch.inference_mode()
def test_a_step_gives_the_same_and_the_host_learns_no_expert(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    if family == "llama4_text":
        folder = save_structure(family, tmp_path / "model")
    else:
        folder = checkpoint(family, torch.bfloat16)

    def run(*, has_triton: bool) -> Tensor:
        monkeypatch.setattr(int4_product, "is_usable", lambda device: has_triton)
        engine = models.load(folder, replace(SUBSPEC, calibrate=False))
        model = draft_model(engine)
        layers = [m for m in model.decoder.decoder.modules() if isinstance(m, ExpertLayers)]
        assert layers and {own.is_grouped for own in layers} == {has_triton}
        step, nodes = padded_step(model, rows=4), KernelNodes()
        torch.manual_seed(0)
        step._inputs[0].normal_()
        with nodes:
            found = step.run()
        asks = {"nonzero", "_local_scalar_dense"} & nodes.counts.keys()
        assert bool(asks) != has_triton, nodes.counts
        return found.float()

    found, want = run(has_triton=True), run(has_triton=False)
    assert torch.linalg.vector_norm(found - want) <= 0.03 * torch.linalg.vector_norm(want)
