"""Plans of published models from their config.json alone add up to the published sizes."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.drafting.method import DraftNeeds
from engine.planning.blueprint import Blueprint
from engine.planning.preview import WhatIf, preview
from engine.spec import DraftSpec, ModelSpec, StreamSpec, TargetSpec
from engine.weights.family import kv_shape, make_config
from tests.engine.models import PLAIN, model_spec

MACHINE = WhatIf(device_memory=24 << 30, ram=256 << 30)
DELTA: dict[str, Any] = {
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_value_head_dim": 128,
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 262144,
    "partial_rotary_factor": 0.25,
    "rope_theta": 10_000_000,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
QWEN_27B = {
    **DELTA,
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "model_type": "qwen3_5_text",
    "hidden_size": 5120,
    "intermediate_size": 17408,
    "num_attention_heads": 24,
    "num_key_value_heads": 4,
    "num_hidden_layers": 64,
    "linear_num_value_heads": 48,
    "vocab_size": 248320,
}
QWEN_NEXT = {
    **DELTA,
    "architectures": ["Qwen3NextForCausalLM"],
    "model_type": "qwen3_next",
    "decoder_sparse_step": 1,
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "linear_num_value_heads": 32,
    "mlp_only_layers": [],
    "moe_intermediate_size": 512,
    "norm_topk_prob": True,
    "num_attention_heads": 16,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "shared_expert_intermediate_size": 512,
    "vocab_size": 151936,
}
GRANITE_SMALL = {
    "architectures": ["GraniteMoeHybridForCausalLM"],
    "model_type": "granitemoehybrid",
    "attention_multiplier": 0.0078125,
    "dtype": "bfloat16",
    "embedding_multiplier": 12,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 768,
    "layer_types": ["attention" if layer in (5, 15, 25, 35) else "mamba" for layer in range(40)],
    "logits_scaling": 16,
    "mamba_chunk_size": 256,
    "mamba_conv_bias": True,
    "mamba_d_conv": 4,
    "mamba_d_head": 64,
    "mamba_d_state": 128,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_n_heads": 128,
    "mamba_proj_bias": False,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_experts_per_tok": 10,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "num_local_experts": 72,
    "position_embedding_type": "nope",
    "residual_multiplier": 0.22,
    "rms_norm_eps": 1e-5,
    "shared_intermediate_size": 1536,
    "tie_word_embeddings": True,
    "vocab_size": 100352,
}
GPT_OSS = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "attention_bias": True,
    "dtype": "bfloat16",
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 18,
    "max_position_embeddings": 131072,
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "num_local_experts": 128,
    "quantization_config": {
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
        "quant_method": "mxfp4",
    },
    "rms_norm_eps": 1e-5,
    "rope_theta": 150000,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "vocab_size": 201088,
}

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
QWEN_SMALL = {
    **DELTA,
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "model_type": "qwen3_5_text",
    "hidden_size": 1024,
    "intermediate_size": 3584,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_hidden_layers": 24,
    "linear_num_value_heads": 16,
    "tie_word_embeddings": True,
    "vocab_size": 248320,
}


@dataclass(frozen=True)
class Published:
    """A model's config.json, and what is known of it.

    Args:
        billions: of bytes of its weights; those of images and of further heads left out.
        state_layers: of recurrent layers.
        state: the values of a layer's state, and of its window.
        key_values: of a token in all layers with attention.
    """

    config: dict[str, Any]
    billions: float
    state_layers: int = 0
    state: int = 0
    window: int = 0
    key_values: int = 0


MODELS = {
    "Qwen3.5-27B": Published(
        QWEN_27B, 2 * 26.9, 48, 48 * 128 * 128, 3 * (2 * 16 + 48) * 128, 16 * 2 * 4 * 256
    ),
    "Qwen3-Next-80B-A3B": Published(
        QWEN_NEXT, 2 * 79.7, 36, 32 * 128 * 128, 3 * (2 * 16 + 32) * 128, 12 * 2 * 2 * 256
    ),
    "Granite-4.0-H-Small": Published(
        GRANITE_SMALL, 2 * 32.2, 36, 128 * 64 * 128, 3 * (8192 + 2 * 128), 4 * 2 * 8 * 128
    ),
    "gpt-oss-120b": Published(GPT_OSS, 65.2, key_values=36 * 2 * 8 * 64),
}


# Others take seconds: their layers are checked first.
QUICK = "Granite-4.0-H-Small"


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == QUICK else [pytest.mark.long]) for name in MODELS],
)
def test_the_sizes_of_published_models(name: str, tmp_path: Path) -> None:
    known = MODELS[name]
    (tmp_path / "config.json").write_text(json.dumps(known.config))
    spec = ModelSpec(
        name,
        TargetSpec(str(tmp_path)),
        DraftSpec("recycling"),
        stream=StreamSpec(coding="none"),  # else packed weights may be expanded, to be coded
        context_length=8192,
    )
    scheme = preview(spec, MACHINE).scheme
    plan, demand = scheme.plan, scheme.demand
    weights = sum(demand.unit_bytes) + demand.other_device_bytes
    if not known.config["tie_word_embeddings"]:
        weights += demand.embedding_bytes
    assert weights / 1e9 == pytest.approx(known.billions, rel=0.01)
    assert demand.kv_bytes_per_token == 2 * known.key_values
    one = known.state_layers * (4 * known.state + 2 * known.window)
    assert demand.state_bytes == one
    assert scheme.bounds.budget == 64
    # A tree takes half of what the states of its sequence do, or less.
    assert demand.stash_bytes <= one / 2
    states = (plan.num_states + plan.stored_states) * one + plan.num_states * demand.stash_bytes
    assert plan.state_bytes == states
    assert MACHINE.device_memory is not None and plan.device_bytes <= MACHINE.device_memory


@pytest.mark.slow
def test_a_small_qwen_as_the_draft_of_a_large_one(tmp_path: Path) -> None:
    folders = tmp_path / "large", tmp_path / "small"
    for folder, config in zip(folders, (QWEN_27B, QWEN_SMALL), strict=True):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
    draft = DraftSpec("specexec", source=str(folders[1]))
    spec = ModelSpec("large", TargetSpec(str(folders[0])), draft, context_length=8192)
    scheme = preview(spec, MACHINE).scheme
    plan, demand, known = scheme.plan, scheme.demand, MODELS["Qwen3.5-27B"]
    assert plan.draft_bytes / 1e9 == pytest.approx(2 * 0.75, rel=0.02)  # the head is its embedding
    channels = 3 * 16 * 128
    own = 18 * (4 * 16 * 128 * 128 + 3 * 2 * channels)
    one = own + 48 * (4 * known.state + 2 * known.window)
    assert (demand.draft.state_bytes, demand.state_bytes) == (own, one)
    # The row of the convolution, a key and a value of each head, and a decay of each head.
    assert demand.node_bytes == 18 * (2 * channels + 2 * 2 * 16 * 128 + 4 * 16)
    assert plan.num_nodes == 2 * 64 + 32 * (plan.max_sequences - 1)
    states = (plan.num_states + plan.stored_states) * one + plan.num_states * demand.stash_bytes
    assert plan.state_bytes == states + plan.num_nodes * demand.node_bytes
    assert demand.kv_bytes_per_token == 2 * (known.key_values + 6 * 2 * 2 * 256)
    assert MACHINE.device_memory is not None and plan.device_bytes <= MACHINE.device_memory


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
