"""Tiny random checkpoints of every supported family, sharded like those of the hub."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GemmaConfig,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    NemotronConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    StableLmConfig,
)

from tests.engine.hybrids import HYBRIDS
from tests.engine.latents import LATENTS

HEADS = 4
KV_HEADS = 2
HEAD_DIM = 16
HIDDEN = HEADS * HEAD_DIM
INTERMEDIATE = 96
EOS = 1


def _shared(vocab_size: int, layers: int, width: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": width * HIDDEN,
        "intermediate_size": INTERMEDIATE if width == 1 else 2 * width * HIDDEN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": EOS,
        "pad_token_id": 2,
    }


def _llama(common: dict[str, Any]) -> PreTrainedConfig:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    return LlamaConfig(**common, rope_parameters=rope)


def _qwen3(common: dict[str, Any]) -> PreTrainedConfig:
    return Qwen3Config(**common, head_dim=HEAD_DIM)


def _mistral(window: int | None) -> Callable[[dict[str, Any]], PreTrainedConfig]:
    return lambda common: MistralConfig(**common, head_dim=HEAD_DIM, sliding_window=window)


def _phi3_longrope(common: dict[str, Any]) -> PreTrainedConfig:
    half = HEAD_DIM // 2
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0 + 0.05 * i for i in range(half)],
        "long_factor": [2.0 + 0.5 * i for i in range(half)],
        "factor": 16.0,
        "original_max_position_embeddings": 32,
    }
    return Phi3Config(**common, rope_parameters=rope, original_max_position_embeddings=32)


def _gemma2(common: dict[str, Any]) -> PreTrainedConfig:
    return Gemma2Config(**common, head_dim=HEAD_DIM, query_pre_attn_scalar=16, sliding_window=8)


def _gemma3(common: dict[str, Any]) -> PreTrainedConfig:
    kinds = ["sliding_attention", "full_attention"]
    layer_types = [kinds[i % 2] for i in range(common["num_hidden_layers"])]
    return Gemma3TextConfig(
        **common,
        head_dim=HEAD_DIM,
        query_pre_attn_scalar=16,
        sliding_window=8,
        layer_types=layer_types,
    )


def _gemma_layers(layers: int) -> dict[str, Any]:
    """Return the kinds of the layers of Gemma 3n and 4; the first two are not shared."""
    kinds = [f"{'full' if i % 2 else 'sliding'}_attention" for i in range(layers - 1)]
    return {
        "layer_types": [*kinds, "full_attention"],
        "sliding_window": 8,
        "num_kv_shared_layers": max(layers - 2, 0),
        "head_dim": HEAD_DIM,
    }


def _gemma3n(common: dict[str, Any]) -> PreTrainedConfig:
    layers = common["num_hidden_layers"]
    return Gemma3nTextConfig(
        **common,
        **_gemma_layers(layers),
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=common["vocab_size"] - 8,
        activation_sparsity_pattern=([0.95, 0.0] * layers)[:layers],
        laurel_rank=8,
    )


def _gemma4(common: dict[str, Any]) -> PreTrainedConfig:
    own: dict[str, Any] = {"global_head_dim": 2 * HEAD_DIM}
    return Gemma4TextConfig(
        **common,
        **_gemma_layers(common["num_hidden_layers"]),
        **own,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=common["vocab_size"],
        use_double_wide_mlp=True,
        final_logit_softcapping=30.0,
    )


def _gemma4_experts(common: dict[str, Any]) -> PreTrainedConfig:
    own = _gemma_layers(common["num_hidden_layers"]) | {
        "num_kv_shared_layers": 0,
        "global_head_dim": 2 * HEAD_DIM,
        "num_global_key_value_heads": 1,
    }
    return Gemma4TextConfig(
        **common,
        **own,
        hidden_size_per_layer_input=0,
        attention_k_eq_v=True,
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=64,
    )


def _granite(common: dict[str, Any]) -> PreTrainedConfig:
    return GraniteConfig(
        **common,
        embedding_multiplier=6.0,
        logits_scaling=2.0,
        residual_multiplier=0.5,
        attention_multiplier=0.2,
    )


def _mixtral(common: dict[str, Any]) -> PreTrainedConfig:
    return MixtralConfig(**common, head_dim=HEAD_DIM, num_local_experts=4, num_experts_per_tok=2)


def _qwen3_moe(common: dict[str, Any]) -> PreTrainedConfig:
    experts = {"moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2}
    own: dict[str, Any] = {"head_dim": HEAD_DIM, "norm_topk_prob": True, **experts}
    return Qwen3MoeConfig(**common, **own)


def _stablelm(**own: Any) -> Callable[[dict[str, Any]], PreTrainedConfig]:
    return lambda common: StableLmConfig(**common, layer_norm_eps=1e-4, **own)


def _nemotron(**own: Any) -> Callable[[dict[str, Any]], PreTrainedConfig]:
    return lambda common: NemotronConfig(**common, head_dim=HEAD_DIM, **own)


def _gpt_oss(common: dict[str, Any]) -> PreTrainedConfig:
    rope = {
        "rope_type": "yarn",
        "rope_theta": 150000.0,
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 16,
    }
    return GptOssConfig(
        **common,
        rope_parameters=rope,
        head_dim=HEAD_DIM,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=8,
    )


_CONFIGS: dict[str, Callable[[dict[str, Any]], PreTrainedConfig]] = {
    "llama": _llama,  # with llama3 rope
    "qwen2": lambda common: Qwen2Config(**common),
    "qwen3": _qwen3,
    "mistral": _mistral(None),
    "mistral_window": _mistral(8),
    "phi3": lambda common: Phi3Config(**common),
    "phi3_longrope": _phi3_longrope,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "granite": _granite,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "gpt_oss": _gpt_oss,
}

FAMILIES = tuple(_CONFIGS)  # those that engines are tested with
_CONFIGS |= {  # those that only files are tested with
    "gemma": lambda common: GemmaConfig(**common, head_dim=HEAD_DIM),
    "gemma3n": _gemma3n,
    "gemma4": _gemma4,
    "gemma4_experts": _gemma4_experts,
    "stablelm": _stablelm(),
    "stablelm_parallel": _stablelm(
        use_parallel_residual=True, qk_layernorm=True, use_qkv_bias=True
    ),
    "nemotron": _nemotron(),
    "nemotron_biases": _nemotron(attention_bias=True, mlp_bias=True, partial_rotary_factor=1.0),
}
STORED_FAMILIES = tuple(_CONFIGS)
_CHANGES = HYBRIDS | LATENTS


def tiny_config(
    family: str,
    *,
    vocab_size: int = 128,
    layers: int = 3,
    tied: bool | None = None,
    width: int = 1,
) -> PreTrainedConfig:
    """Return the configuration that `save_tiny` writes. With `tied` None the family's own holds.

    `family` is one of `FAMILIES`, of `HYBRIDS` or of `LATENTS`.

    Args:
        width: multiplies the sizes of the hidden state; 4: rows are whole blocks of 256 values.
    """
    shared = _shared(vocab_size, layers, width)
    if family in _CHANGES:
        config = AutoConfig.for_model(**{"model_type": family, **shared, **_CHANGES[family]})
    else:
        config = _CONFIGS[family](shared)
    if tied is not None:
        config.tie_word_embeddings = tied
    return config


def tiny_model(config: PreTrainedConfig, dtype: torch.dtype, seed: int = 0) -> PreTrainedModel:
    """Return a model with random weights, which the seed determines.

    The weights are large enough that the next token depends on the context. Norms, biases, router
    and its corrections, and sinks are random too, so that tests notice a tensor in the wrong place.
    """
    model: Any = AutoModelForCausalLM
    model = model.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1 and name.endswith("norm.weight"):
                parameter.add_(noise, alpha=0.1)
            elif parameter.dim() == 1:
                parameter.copy_(0.1 * noise)
            elif name == "model.embed_tokens.weight" and config.tie_word_embeddings:
                # a wide tied embedding would make every token predict itself
                parameter.copy_(noise * (0.5 * HIDDEN**-0.5))
            else:
                parameter.copy_(noise * (1.5 * HIDDEN**-0.5))
        stored = model.state_dict().keys()
        for name, buffer in sorted(model.named_buffers()):
            if name in stored:
                buffer.add_(torch.randn(buffer.shape, generator=generator), alpha=0.1)
        if config.tie_word_embeddings:
            model.get_decoder().norm.weight.add_(2.0)
    ready: PreTrainedModel = model.to(dtype).eval()
    return ready


def save_tiny(
    family: str,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    tied: bool | None = None,
    seed: int = 0,
    vocab_size: int = 128,
    layers: int = 3,
    width: int = 1,
    max_shard_size: str = "50KB",
) -> Path:
    """Write a tiny checkpoint of one of `STORED_FAMILIES` into `folder` and return it."""
    config = tiny_config(family, vocab_size=vocab_size, layers=layers, tied=tied, width=width)
    model = tiny_model(config, dtype, seed)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder
