"""Tiny models whose layers differ from each other, share keys and values, or see chunks only."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.model.reference import Reference
from tests.engine.models import VOCAB, add_tokenizer

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_GEMMA: dict[str, Any] = {
    "num_hidden_layers": 5,
    "layer_types": ["sliding_attention", "full_attention"] * 2 + ["full_attention"],
    "sliding_window": 8,
    "num_kv_shared_layers": 3,  # of both kinds
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCAB,
}
_CHANGES: dict[str, dict[str, Any]] = {
    "gemma3n_text": {
        **_GEMMA,
        "intermediate_size": [96] * 5,
        "activation_sparsity_pattern": [0.9, 0.0, 0.0, 0.9, 0.0],
        "laurel_rank": 8,
        "vocab_size_per_layer_input": VOCAB - 8,  # the last tokens have no row of their own
    },
    "gemma4_text": {**_GEMMA, "global_head_dim": 32, "use_double_wide_mlp": True},
    "llama4_text": {
        "num_hidden_layers": 4,
        "intermediate_size_mlp": 96,
        "num_local_experts": 4,
        "interleave_moe_layer_step": 2,
        "no_rope_layers": [1, 1, 1, 0],
        "attention_chunk_size": 24,
        "floor_scale": 16,
    },
    "mimo_v2_flash": {
        "num_hidden_layers": 3,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "sliding_window": 8,
        "num_key_value_heads": 1,
        "v_head_dim": 12,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
    },
}
STRUCTURES = tuple(_CHANGES)


def structure_config(kind: str) -> Any:
    """Return the configuration of a tiny model of one of `STRUCTURES`."""
    return AutoConfig.for_model(kind, **{**_COMMON, **_CHANGES[kind]})


def save_structure(kind: str, folder: Path) -> Path:
    """Write a tiny checkpoint of one of `STRUCTURES`, with random weights, and a tokenizer."""
    Reference(structure_config(kind), seed=3).model.save_pretrained(folder)
    add_tokenizer(folder)
    return folder


def generated(folder: Path, prompt: list[int], count: int) -> list[int]:
    """Return the tokens that the library's own model generates at temperature 0."""
    auto: Any = AutoModelForCausalLM
    model = auto.from_pretrained(folder, attn_implementation="eager")
    inputs = torch.tensor([prompt])
    new = {"max_new_tokens": count, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    tokens = model.generate(inputs, attention_mask=torch.ones_like(inputs), **new)
    found: list[int] = tokens[0, len(prompt) :].tolist()
    return found


def forwarded(folder: Path, prompt: list[int], count: int) -> list[int]:
    """Return the greedy tokens of the library's forward over the whole text, without its cache."""
    auto: Any = AutoModelForCausalLM
    model = auto.from_pretrained(folder, attn_implementation="eager")
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits
            tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(prompt) :]
