"""Configurations of tiny models with latent attention, one for each tested family."""

from typing import Any

_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "tie_word_embeddings": False,
}
_EXPERTS: dict[str, Any] = {
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.5,
    "norm_topk_prob": True,
}
# Positions beyond the original ones, which scale rotations and scores.
_YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 0.7,
}
# What the configuration has beside the sizes that all families share.
LATENTS: dict[str, dict[str, Any]] = {
    "deepseek_v2": {
        **_LATENT,
        **_EXPERTS,
        "q_lora_rank": None,
        "topk_method": "group_limited_greedy",
        "norm_topk_prob": False,
        "rope_parameters": _YARN,
    },
    "deepseek_v3": {**_LATENT, **_EXPERTS, "rope_parameters": _YARN},
    "glm4_moe_lite": {
        **_LATENT,
        **_EXPERTS,
        "n_group": 1,
        "topk_group": 1,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
    },
    "minicpm3": _LATENT,
    "youtu": _LATENT,
}
MIXTURES = frozenset({"deepseek_v2", "deepseek_v3", "glm4_moe_lite"})
