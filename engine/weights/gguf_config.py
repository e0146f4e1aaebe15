"""The configuration of transformers for the metadata of a GGUF file.

GGUF has no config.json. What a family's configuration has beside the metadata (the scale of
Gemma's queries, the truncation of gpt-oss's rope) is what llama.cpp and transformers compute with.

Source: src/llama-model.cpp (load_hparams) and convert_hf_to_gguf.py of llama.cpp.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from engine.errors import ModelError, shown
from engine.weights.gguf_gemma import (
    GEMMA3N_PARTS,
    GEMMA4_EXPERTS,
    INPUTS_OF_LAYERS,
    gemma2_values,
    gemma3_values,
    gemma3n_values,
    gemma4_values,
)
from engine.weights.gguf_keys import EMBEDDING, EPSILONS, FAMILY
from engine.weights.gguf_model import Model, Values, expert_values, head_dim, window
from engine.weights.gguf_rope import rope_parameters

METHOD = "gguf"  # the quant_method of the config.json that is made here
# Key of its quantization_config, beside `FAMILY`: the types of the matrices in blocks.
TYPED = "tensors"
_PLACED = re.compile(r"(?:blk\.(\d{1,4})\.)?\w{1,64}\.weight")
_ATTENTION: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_MLP: Mapping[str, str] = {
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# The parts of a layer with one MLP, and of one with experts.
DENSE_MLP = frozenset({"ffn_gate", "ffn_up", "ffn_down"})
EXPERTS = frozenset({"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"})
# Tensors outside of layers.
OUTSIDE: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
    "altup_proj": "model.altup_projections.*",
    "altup_unembd_proj": "model.altup_unembed_projections.*",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
# StableLM has a norm for each head, which are the rows of one matrix in the file.
_NORMS_OF_HEADS = {
    "attn_q_norm": "self_attn.q_layernorm.norms.*",
    "attn_k_norm": "self_attn.k_layernorm.norms.*",
}
_ROUTED = {**_ATTENTION, "ffn_norm": "post_attention_layernorm", "ffn_gate_inp": "mlp.gate"}
_FOUR_NORMS = {
    **_ATTENTION,
    **_MLP,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
# Parts of keys and values. A layer that uses the keys and values of another layer lacks them.
_SHARED = frozenset({"attn_k", "attn_v", "attn_k_norm"})


@dataclass(frozen=True)
class Architecture:
    """How a family of llama.cpp is read.

    Args:
        names: the paths of the parts of a layer in transformers, by their names in the file. A
            name with its suffix stands for a tensor whose path in transformers has none. A path
            that ends with `*` stands for the parts of a list, which the file has in one tensor.
        configure: returns the family's own values of config.json.
        permutes: whether the rows of q and k are permuted.
        adds_one: whether the norms hold one more than in transformers.
        experts: the path of the experts of a layer in transformers.
        has_turned_experts: whether transformers keeps experts transposed, with the columns of
            their gate and up parts in turn.
        epsilon: the key of config.json for the epsilon of the norms.
        optional: parts that the layers of some models lack, all of them or none.
        irregular: parts that only some layers of a model have.
    """

    names: Mapping[str, str]
    configure: Callable[[Model], Values]
    permutes: bool = False
    adds_one: bool = False
    experts: str = "mlp.experts"
    has_turned_experts: bool = False
    epsilon: str = "rms_norm_eps"
    optional: frozenset[str] = frozenset()
    irregular: frozenset[str] = frozenset()


def make_config(model: Model) -> Values:
    """Return the values of config.json. Raises `ModelError` that names the file and the key."""
    family = _architecture(model)
    if (embedding := model.tensors.get(EMBEDDING)) is None or len(embedding.shape) != 2:
        raise ModelError(
            f"{model.path}: has no matrix token_embd.weight: it is not a whole language model. "
            "Give the file of the model itself"
        )
    own = family.configure(model)
    values: Values = {key: make(model) for key, make in _COMMON.items() if key not in own}
    values |= {
        "vocab_size": embedding.shape[0],
        family.epsilon: model.number(EPSILONS[family.epsilon]),
        "tie_word_embeddings": "output.weight" not in model.tensors,
        "quantization_config": {
            "quant_method": METHOD,
            FAMILY: model.architecture,
            TYPED: _block_types(model),
        },
    }
    for name, key in _TOKENS.items():
        id_ = model.metadata.get(f"tokenizer.ggml.{key}")
        values[name] = id_ if type(id_) is int and id_ < embedding.shape[0] else None
    if "intermediate_size" not in own and model.value("feed_forward_length") is not None:
        values["intermediate_size"] = model.integer("feed_forward_length")
    return values | own


def _key_heads(model: Model) -> int:
    return model.integer("attention.head_count_kv", model.integer("attention.head_count"))


# Values that most families have from the same metadata.
_COMMON: Mapping[str, Callable[[Model], object]] = {
    "hidden_size": lambda model: model.integer("embedding_length"),
    "num_hidden_layers": lambda model: model.integer("block_count"),
    "num_attention_heads": lambda model: model.integer("attention.head_count"),
    "num_key_value_heads": _key_heads,
    "head_dim": head_dim,
    "max_position_embeddings": lambda model: model.integer("context_length"),
    "rope_parameters": rope_parameters,
}


def _block_types(model: Model) -> dict[str, str]:
    """Return the types of the matrices in blocks, by name. Names that no model has are left out."""
    return {
        name: info.type.name
        for name, info in model.tensors.items()
        if not info.type.is_plain and len(info.shape) > 1 and _PLACED.fullmatch(name)
    }


_TOKENS = {
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "padding_token_id",
}


def _architecture(model: Model) -> Architecture:
    """Return how the file's family is read. Raises `ModelError` if it is not a model of one."""
    name, kind = model.architecture, model.metadata.get("general.type", "model")
    if name == "clip" or kind == "mmproj":
        raise ModelError(
            f"{model.path}: a projector (mmproj) for images or audio, not a language model. Give "
            "the file of the model itself"
        )
    if kind != "model":
        title = "a LoRA adapter" if kind == "adapter" else f"of general.type {shown(kind)}"
        raise ModelError(
            f"{model.path}: {title}, not a whole model. Merge it into its base model "
            "(llama-export-lora) and give that file"
        )
    if name not in ARCHITECTURES:
        raise ModelError(
            f"{model.path}: general.architecture {shown(name)} is not supported as GGUF; "
            f"{', '.join(sorted(ARCHITECTURES))} are. Use the safetensors checkpoint that the file "
            "was made of"
        )
    return ARCHITECTURES[name]


def _has(model: Model, part: str) -> bool:
    return f"blk.0.{part}" in model.tensors


def _biases(model: Model) -> Values:
    return {
        "attention_bias": _has(model, "attn_q.bias"),
        "mlp_bias": _has(model, "ffn_down.bias"),
    }


def _llama(model: Model) -> Values:
    """Return the values of llama, or of mixtral or mistral, which have the same architecture."""
    slides = model.integer("attention.sliding_window", 0) or None
    if model.integer("expert_count", 0):
        own = expert_values(model, "num_local_experts")
        return {"model_type": "mixtral", "sliding_window": slides, **own}
    if slides is not None:
        return {"model_type": "mistral", "sliding_window": slides}
    return {"model_type": "llama", **_biases(model)}


def _qwen3(model: Model) -> Values:
    return {"model_type": "qwen3", "attention_bias": _has(model, "attn_q.bias")}


def _qwen3_moe(model: Model) -> Values:
    return {
        "model_type": "qwen3_moe",
        "moe_intermediate_size": model.integer("expert_feed_forward_length"),
        "norm_topk_prob": True,  # in all files: llama.cpp computes it so
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        **expert_values(model, "num_experts"),
    }


def _phi3(model: Model) -> Values:
    original = model.integer("rope.scaling.original_context_length", 0)
    return {
        "model_type": "phi3",
        "sliding_window": model.integer("attention.sliding_window", 0) or None,
        "original_max_position_embeddings": original or model.integer("context_length"),
        **_turned_part(model),
    }


def _turned_part(model: Model) -> Values:
    """Return the part of a head that is rotated, where the family's default is another than 1."""
    return {"partial_rotary_factor": rope_parameters(model).get("partial_rotary_factor", 1.0)}


def _stablelm(model: Model) -> Values:
    return {
        "model_type": "stablelm",
        "use_qkv_bias": _has(model, "attn_q.bias"),
        "qk_layernorm": _has(model, "attn_q_norm.weight"),
        # As llama.cpp decides it: the MLP of such a layer has no norm of its own.
        "use_parallel_residual": not _has(model, "ffn_norm.weight"),
        **_turned_part(model),
    }


def _nemotron(model: Model) -> Values:
    return {"model_type": "nemotron", **_biases(model), **_turned_part(model)}


def _granite(model: Model) -> Values:
    return {
        "model_type": "granite",
        "embedding_multiplier": model.number("embedding_scale", 1.0),
        "residual_multiplier": model.number("residual_scale", 1.0),
        "logits_scaling": model.number("logit_scale", 1.0),
        "attention_multiplier": model.number("attention.scale", head_dim(model) ** -0.5),
        **_biases(model),
    }


def _gpt_oss(model: Model) -> Values:
    size = model.integer("expert_feed_forward_length", model.integer("feed_forward_length", 0))
    rope = rope_parameters(model)
    return {
        "model_type": "gpt_oss",
        "intermediate_size": size,
        "sliding_window": window(model),
        "rope_parameters": rope | ({"truncate": False} if rope["rope_type"] == "yarn" else {}),
        **expert_values(model, "num_local_experts"),
    }


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture({**_ROUTED, **_ATTENTION, **_MLP}, _llama, permutes=True),
    "qwen2": Architecture({**_ATTENTION, **_MLP}, lambda _: {"model_type": "qwen2"}),
    "qwen3": Architecture({**_ATTENTION, **_HEAD_NORMS, **_MLP}, _qwen3),
    "qwen3moe": Architecture({**_ROUTED, **_HEAD_NORMS}, _qwen3_moe),
    "gemma": Architecture({**_ATTENTION, **_MLP}, lambda _: {"model_type": "gemma"}, adds_one=True),
    "gemma2": Architecture(_FOUR_NORMS, gemma2_values, adds_one=True),
    "gemma3": Architecture({**_FOUR_NORMS, **_HEAD_NORMS}, gemma3_values, adds_one=True),
    "gemma3n": Architecture(
        {**_FOUR_NORMS, **_HEAD_NORMS, **INPUTS_OF_LAYERS, **GEMMA3N_PARTS},
        gemma3n_values,
        irregular=_SHARED,
    ),
    "gemma4": Architecture(
        {
            **_FOUR_NORMS,
            **_HEAD_NORMS,
            **INPUTS_OF_LAYERS,
            **GEMMA4_EXPERTS,
            "layer_output_scale.weight": "layer_scalar",
        },
        gemma4_values,
        experts="experts",
        optional=frozenset({*INPUTS_OF_LAYERS, *GEMMA4_EXPERTS}),
        irregular=_SHARED,
    ),
    "phi3": Architecture(
        {
            "attn_norm": "input_layernorm",
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        },
        _phi3,
    ),
    "stablelm": Architecture(
        {**_ATTENTION, **_NORMS_OF_HEADS, **_MLP},
        _stablelm,
        epsilon="layer_norm_eps",
        optional=frozenset({"ffn_norm", *_NORMS_OF_HEADS}),
    ),
    "nemotron": Architecture(
        {part: path for part, path in {**_ATTENTION, **_MLP}.items() if part != "ffn_gate"},
        _nemotron,
        adds_one=True,
        epsilon="norm_eps",
    ),
    "granite": Architecture({**_ATTENTION, **_MLP}, _granite, permutes=True),
    "gpt-oss": Architecture(
        {
            **_ATTENTION,
            "attn_sinks.weight": "self_attn.sinks",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_gate_inp": "mlp.router",
        },
        _gpt_oss,
        has_turned_experts=True,
    ),
}
