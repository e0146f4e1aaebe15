"""The names in a GGUF file of the values of config.json that are made of its metadata.

Messages about such a value name the metadata, since the user has no config.json.
"""

from collections.abc import Mapping

EMBEDDING = "token_embd.weight"
FAMILY = "architecture"  # key of the quantization_config: general.architecture
# The metadata of the epsilon of the norms, by its key of config.json: of RMS norms or of others.
EPSILONS: Mapping[str, str] = {
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "layer_norm_eps": "attention.layer_norm_epsilon",
    "norm_eps": "attention.layer_norm_epsilon",
}
# By the key of config.json: the metadata without `general.architecture`, which they begin with.
_OWN: Mapping[str, str] = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "intermediate_size": "feed_forward_length",
    "moe_intermediate_size": "expert_feed_forward_length",
    "num_experts": "expert_count",
    "num_local_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "max_position_embeddings": "context_length",
    **EPSILONS,
    "sliding_window": "attention.sliding_window",
    "num_kv_shared_layers": "attention.shared_kv_layers",
    "hidden_size_per_layer_input": "embedding_length_per_layer_input",
    "layer_types": "attention.sliding_window_pattern",
    "query_pre_attn_scalar": "attention.key_length",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
    "attention_multiplier": "attention.scale",
    "original_max_position_embeddings": "rope.scaling.original_context_length",
    "partial_rotary_factor": "rope.dimension_count",
    "rope_theta": "rope.freq_base",
    "rope_parameters.sliding_attention.rope_theta": "rope.freq_base_swa",
    "rope_type": "rope.scaling.type",
    "rope_parameters": "rope.scaling.type",
    "factor": "rope.scaling.factor",
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
    "attention_factor": "rope.scaling.attn_factor",
}
# Of families that have other metadata for the same keys, or more.
_BY_FAMILY: Mapping[str, Mapping[str, str]] = {
    "gemma3n": {
        "activation_sparsity_pattern": "activation_sparsity_scale",
        "altup_num_inputs": "altup.num_inputs",
        "altup_active_idx": "altup.active_idx",
    },
    "gemma4": {
        "head_dim": "attention.key_length_swa",
        "global_head_dim": "attention.key_length",
        "num_global_key_value_heads": "attention.head_count_kv",
        "use_double_wide_mlp": "feed_forward_length",
        "enable_moe_block": "expert_count",
        "top_k_experts": "expert_used_count",
        "rope_parameters.full_attention.rope_theta": "rope.freq_base",
    },
}
# The names of other keys and of tensors, which are the same in all families.
_WHOLE: Mapping[str, str] = {
    "model_type": "general.architecture",
    "vocab_size": EMBEDDING,
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
    "tie_word_embeddings": "output.weight",
    "attention_bias": "blk.0.attn_q.bias",
    "mlp_bias": "blk.0.ffn_down.bias",
    "use_qkv_bias": "blk.0.attn_q.bias",
    "qk_layernorm": "blk.0.attn_q_norm.weight",
    "use_parallel_residual": "blk.0.ffn_norm.weight",
    "vocab_size_per_layer_input": "per_layer_token_embd.weight",
    "laurel_rank": "blk.0.laurel_l.weight",
    "attention_k_eq_v": "attn_v.weight of the layers without a window",
    "short_factor": "rope_factors_short.weight",
    "long_factor": "rope_factors_long.weight",
}


def metadata_names(architecture: str) -> dict[str, str]:
    """Return the names in the file by the key of config.json, for this `general.architecture`."""
    own = {**_OWN, **_BY_FAMILY.get(architecture, {})}
    return {key: f"{architecture}.{name}" for key, name in own.items()} | dict(_WHOLE)
