"""Which model families can be served, and the shape of their KV cache.

Draft trees need attention in every layer: a layer with a recurrent state (linear attention,
convolution) has one state per sequence, not one per branch. Such families are refused by name.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from engine.errors import ModelError

# Each has an exactness test of its own (tests/engine/runtime/test_exactness.py).
TESTED = frozenset(
    {
        "gemma2",
        "gemma3_text",
        "gpt_oss",
        "granite",
        "llama",
        "mistral",
        "mixtral",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_moe",
    }
)
# In these families a layer adds the experts' output to the residual and does nothing after it: no
# norm of the output, no scale, no shared expert. So experts may be added when the rest is done.
EXPERTS_LAST = frozenset({"gpt_oss", "mixtral", "qwen3_moe"})
ATTENTION_LAYERS = frozenset({"full_attention", "sliding_attention"})


@dataclass(frozen=True)
class KVShape:
    """The keys and values of one token."""

    num_layers: int
    num_kv_heads: int
    head_dim: int

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Return the bytes of one token's keys and values in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * dtype.itemsize


def read_config(folder: Path) -> Any:
    """Return the model's configuration. Raises `ModelError` if its family cannot be served.

    Code of a model repository is never run. Where the library knows the family, its own code is
    used, also if the repository has code as well.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if (name := repository_code(folder / "config.json")) is not None:
            raise ModelError(
                f"{folder}/config.json: transformers does not know the model_type {name!r}, and "
                "code of a model repository (auto_map) is never run. Use a checkpoint of a family "
                "that transformers knows"
            ) from error
        raise ModelError(f"{folder}/config.json cannot be used: {error}") from error
    check_family(config)
    return config


def repository_code(path: Path) -> str | None:
    """Return what a file of a model repository says of itself if it names code of the repository.

    That is its model_type or tokenizer_class. None if it names no code or cannot be read.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not values.get("auto_map"):
        return None
    return str(values.get("model_type") or values.get("tokenizer_class"))


def check_family(config: Any) -> None:
    """Raise `ModelError` for a family that cannot be served exactly, with the reason."""
    name = config.model_type
    if config.get_text_config() is not config:
        raise ModelError(
            f"config.json: model_type {name!r} takes images or audio; only text models are served. "
            "Use a text-only checkpoint of the family."
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"config.json: model_type {name!r} is an encoder-decoder, not a decoder")
    other = sorted(set(getattr(config, "layer_types", None) or ()) - ATTENTION_LAYERS)
    if other or _has_state(config):
        kind = ", ".join(other) or "recurrent"
        raise ModelError(
            f"config.json: model_type {name!r} has {kind} layers: their state belongs to one "
            "sequence and cannot be branched into a draft tree. Use a model with attention only."
        )
    if getattr(config, "use_bidirectional_attention", None):
        raise ModelError(f"config.json: model_type {name!r} attends in both directions")
    if getattr(config, "kv_lora_rank", None):
        raise ModelError(
            f"config.json: model_type {name!r} uses multi-head latent attention, whose keys and "
            "values differ in shape: not supported"
        )


def _has_state(config: Any) -> bool:
    marks = (
        "conv_L_cache",
        "linear_conv_kernel_dim",
        "lru_width",
        "mamba_d_state",
        "ssm_state_size",
        "state_size",
    )
    return any(hasattr(config, mark) for mark in marks)


def is_mixture(config: Any) -> bool:
    """Return whether the layers are mixtures of experts."""
    return any(getattr(config, n, None) for n in ("num_local_experts", "num_experts"))


def kv_shape(config: Any) -> KVShape:
    """Return the shape of one token's keys and values."""
    heads = config.num_attention_heads
    return KVShape(
        num_layers=config.num_hidden_layers,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
    )
