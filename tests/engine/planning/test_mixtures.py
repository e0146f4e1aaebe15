"""Plans and forecasts of mixtures of experts count the experts that rows are expected to choose."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.drafting.method import DraftNeeds, facts_of
from engine.errors import ModelError
from engine.planning import assumed, probe
from engine.planning.blueprint import Blueprint
from engine.planning.choice import _needs
from engine.planning.experts import Experts
from engine.planning.footprint import Demand
from engine.planning.memory import Memory
from engine.planning.plan import make_plan
from engine.planning.preview import WhatIf, preview
from engine.spec import DraftSpec, ModelSpec, StreamSpec, TargetSpec
from engine.streaming.cpu_link import CpuDevice
from engine.weights.expert_weights import ExpertWeights
from tests.engine.checkpoints import save_tiny
from tests.engine.models import checkpoint, model_spec

QWEN = Experts(chosen=8, count=128, share=0.9, units=frozenset())
QWEN_30B: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "decoder_sparse_step": 1,
    "dtype": "bfloat16",
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000,
    "tie_word_embeddings": False,
    "vocab_size": 151936,
}


@pytest.mark.parametrize(
    ("experts", "rows", "expected"),
    [
        (QWEN, 1, 8),
        (QWEN, 2, 8 + 8 * (1 - 8 / 128)),
        (QWEN, 64, 125.9),
        (replace(QWEN, chosen=128), 1, 128),
        (Experts(chosen=2, count=8, share=1.0, units=frozenset()), 6, 6.58),
    ],
)
def test_rows_choose_experts_independently(experts: Experts, rows: int, expected: float) -> None:
    assert experts.expected(rows) == pytest.approx(expected, rel=1e-3)


def demand_of(folder: Path, **changes: Any) -> Demand:
    blueprint = Blueprint(model_spec(folder, DraftSpec("subspec")), folder)
    return replace(blueprint.demand(DraftNeeds(scratch_rows=8), packed=False), **changes)


def test_a_mixture_takes_more_products_with_each_row_and_others_with_each_tile() -> None:
    dense = demand_of(checkpoint("llama"))
    assert dense.experts is None
    assert [dense.products(rows, 0.0) for rows in (1, 64, 65)] == [1, 1, 2]
    mixed = replace(dense, experts=QWEN)
    one, some, tile, many = (mixed.products(rows, QWEN.share) for rows in (1, 8, 64, 4096))
    assert one == pytest.approx(0.1 + 0.9 * 8 / 128)
    assert one < some < tile < 1 < many
    # Of many rows, 256 are given to each expert: four tiles, and half of one that is not full.
    assert many == pytest.approx(0.1 * 64 + 0.9 * 4.5)


def test_the_sizes_of_a_mixture_are_known_from_its_layers() -> None:
    found = demand_of(checkpoint("deepseek_v3")).experts
    assert found is not None and (found.chosen, found.count) == (2, 8)
    assert found.units == {1, 2}, "the first layer is dense"
    assert 0 < found.share < 1


def test_assumed_times_of_passes_and_steps_grow_with_the_experts() -> None:
    demand = demand_of(checkpoint("qwen3_moe"), experts=QWEN)
    passes = assumed.pass_times(demand, assumed.CPU)
    one, tile = passes.expect(1), passes.expect(64)
    assert one is not None and tile is not None and one < 0.2 * tile
    dense = assumed.pass_times(replace(demand, experts=None), assumed.CPU)
    assert dense.expect(1) == dense.expect(64) == pytest.approx(tile, rel=0.02)
    # All copies are on the device, and a step reads the copies of the experts that its rows chose.
    needs = DraftNeeds(scratch_rows=8, weight_bytes=10**9, expert_bytes=9 * 10**8)
    needs = replace(needs, substitute_bytes=[10**9 // 4] * 4)
    memory = Memory(1 << 34, 1 << 34, has_own_memory=True)
    drafted = replace(demand, draft=needs)
    plan = make_plan(
        ModelSpec("m", TargetSpec("m"), stream=StreamSpec(tier="ram")), drafted, memory
    )
    still = len(demand.layers) * assumed.LAUNCH_SECONDS
    times = assumed.draft_times(drafted, plan, replace(assumed.CARD, gbps=100.0))
    for rows, share in ((1, 0.1 + 0.9 / 16), (64, 0.1 + 0.9 * 0.9839)):
        assert times.expect(rows) == pytest.approx(0.01 * share + still, rel=1e-3)


def test_the_layers_with_experts_have_copies_also_where_they_are_resident() -> None:
    demand = demand_of(checkpoint("deepseek_v3"))
    needs = replace(demand.draft, weight_bytes=40, substitute_bytes=[10] * 4)
    drafted = replace(demand, draft=needs)
    units = set(range(4))
    assert drafted.draft_bytes(set()) == 40
    assert drafted.draft_bytes({0}) == 30 and drafted.draft_bytes({1, 2}) == 40
    assert drafted.net_bytes(1) == drafted.unit_bytes[1]
    assert drafted.draft_bytes(units) >= 20
    assert replace(drafted, experts=None).draft_bytes(units) == 0


def test_the_products_of_chosen_experts_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "fastest", lambda step, device: 1.0)
    folder = save_tiny("qwen3_moe", tmp_path, layers=3, vocab_size=192)
    blueprint = Blueprint(ModelSpec("m", TargetSpec(str(folder))), folder)
    times = probe.substitute_times(blueprint, CpuDevice(), width=3)
    experts = blueprint.demand(DraftNeeds(scratch_rows=0), packed=False).experts
    assert experts is not None
    for rows in (1, 3, 24):
        # Of each layer q, k and v joined, o, and two products of each expert; and the head.
        assert times.expect(rows) == pytest.approx(3 * (2 + 2 * experts.expected(rows)) + 1)


def test_passes_of_few_rows_are_timed_too() -> None:
    blueprint = Blueprint(model_spec(checkpoint("qwen3_moe"), DraftSpec()), checkpoint("qwen3_moe"))
    with torch.inference_mode():
        found = probe.pass_times(blueprint, CpuDevice()).rows
    assert {1, 4, 16, 64} <= found._known.keys()


# The choice of the method


def test_experts_of_another_kind_are_refused_by_name() -> None:
    folder = checkpoint("qwen3_moe")
    blueprint = Blueprint(model_spec(folder, DraftSpec("subspec")), folder)
    blueprint.experts = ExpertWeights(unknown=frozenset({"DbrxExperts"}))
    with pytest.raises(ModelError, match=r"experts as 'qwen3_moe' has them \(DbrxExperts\)"):
        _needs(facts_of("subspec"), blueprint.spec, blueprint, packed=False)


@pytest.mark.slow
@pytest.mark.parametrize(("gib", "method"), [(16, "ngram"), (24, "subspec"), (48, "subspec")])
def test_auto_drafts_with_copies_where_they_fit(gib: int, method: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN_30B))
    spec = ModelSpec("q", TargetSpec(str(tmp_path)), DraftSpec(), context_length=8192)
    machine = WhatIf(device_memory=gib << 30, ram=128 << 30)
    found = preview(spec, machine)
    assert found.scheme.method == method
    asked = replace(spec, draft=DraftSpec("subspec"))
    if method == "subspec":
        draft = found.scheme.plan.draft_bytes
        # 5 bits of all weights but the embedding, which has no copy.
        assert draft == pytest.approx((30.53e9 - 151936 * 2048) * 5 / 8, rel=0.01)
        assert found.scheme.forecast.draft_step_seconds < draft / 500e9
    else:
        with pytest.raises(ModelError, match=r"memory\.device: .* too little.*draft 1\d\.\d GiB"):
            preview(asked, machine)
