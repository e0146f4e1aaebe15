"""Configurations of tiny models with recurrent layers, one for each tested family."""

from typing import Any

_ALTERNATING = ["linear_attention", "full_attention", "linear_attention"]
_DELTA: dict[str, Any] = {
    "layer_types": _ALTERNATING,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "linear_conv_kernel_dim": 4,
}
_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
_MAMBA: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 32,
}
_MAMBA_HEADS: dict[str, Any] = {  # with the names of Nemotron-H
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "ssm_state_size": 16,
    "chunk_size": 32,
    "head_dim": 16,
}
# What the configuration has beside the sizes that all families share. The model's type is the name,
# unless it is given.
HYBRIDS: dict[str, dict[str, Any]] = {
    "qwen3_next": {**_DELTA, **_EXPERTS, "head_dim": 16},
    "qwen3_5_text": {**_DELTA, "head_dim": 16},
    "qwen3_5_moe_text": {**_DELTA, **_EXPERTS, "head_dim": 16},
    "lfm2": {
        "layer_types": ["conv", "full_attention", "conv"],
        "conv_L_cache": 3,
        "block_auto_adjust_ff_dim": False,
        "tie_word_embeddings": False,
    },
    "granitemoehybrid": {
        **_MAMBA,
        "layer_types": ["mamba", "attention", "mamba"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 32,
    },
    "granitemoehybrid_dense": {
        **_MAMBA,
        "model_type": "granitemoehybrid",
        "layer_types": ["mamba", "attention", "mamba"],
        "num_local_experts": 0,
        "shared_intermediate_size": 64,
    },
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 128},
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "nemotron_h": {
        **_MAMBA_HEADS,
        "num_hidden_layers": 5,
        "layers_block_type": [*_ALTERNATING, "mlp", "moe"],
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "moe_shared_expert_intermediate_size": 32,
        "n_group": 1,
        "topk_group": 1,
    },
    "nemotron_h_dense": {
        **_MAMBA_HEADS,
        "model_type": "nemotron_h",
        "num_hidden_layers": 4,
        "layers_block_type": [*_ALTERNATING, "mlp"],
    },
    "kimi_linear": {
        "layer_types": _ALTERNATING,
        "linear_num_heads": 4,
        "linear_head_dim": 16,
        "linear_conv_kernel_dim": 4,
        "num_key_value_heads": 4,
        "kv_lora_rank": 16,
        "q_lora_rank": None,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "head_dim": None,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    "olmo_hybrid": _DELTA,
}
# Of these, no layer is a mixture of experts.
DENSE = [
    "qwen3_5_text",
    "lfm2",
    "falcon_h1",
    "granitemoehybrid_dense",
    "bamba",
    "olmo_hybrid",
    "nemotron_h_dense",
]
