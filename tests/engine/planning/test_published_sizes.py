"""Tests that plans of published configurations add up to the published sizes."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.drafting.method import DraftNeeds
from engine.planning.blueprint import Blueprint
from engine.weights.family import kv_shape, make_config
from tests.engine.models import PLAIN, model_spec

DEEPSEEK_V3: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 2048,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "v_head_dim": 128,
    "vocab_size": 129280,
}


def test_a_token_of_deepseek_v3_takes_70_kilobytes() -> None:
    shape = kv_shape(make_config(DEEPSEEK_V3))
    assert shape.bytes_per_token(torch.bfloat16) == 61 * (512 + 64) * 2


@pytest.mark.slow
def test_deepseek_v3(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DEEPSEEK_V3))
    blueprint = Blueprint(model_spec(tmp_path, PLAIN), tmp_path)
    outline = blueprint.outlines[True]
    numbers = Counter[str]()  # by the ending of the names
    for layout in outline.layouts:
        for field in layout.fields:
            numbers[field.name.rpartition(".")[2]] += torch.Size(field.shape).numel()
    scales, codes = numbers.pop("scales"), numbers["e4m3"]
    assert 1 <= scales / (codes / 128**2) < 1.001  # blocks at the edges are smaller
    others = sum(torch.Size(shape).numel() for _, shape in outline.other_tensors.values())
    assert numbers.total() + others == 671_026_419_200
    assert codes / 671_026_419_200 > 0.99
    demand = blueprint.demand(DraftNeeds(scratch_rows=0), packed=True)
    assert demand.kv_bytes_per_token == 70_272
    # One byte for each weight, and two for those of the head and of the embedding.
    assert sum(demand.unit_bytes) + demand.embedding_bytes == pytest.approx(673.15e9, rel=1e-4)
    assert demand.dense_bytes + demand.embedding_bytes == pytest.approx(2 * 671.03e9, rel=1e-4)
    assert max(demand.unit_bytes) == 2 * 7168 * 129_280  # the head: experts move in slices
