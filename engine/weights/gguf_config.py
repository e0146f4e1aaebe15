"""The configuration of transformers for the metadata of a GGUF file.

GGUF has no config.json. What a family's configuration has beside the metadata (the scale of
Gemma's queries, the truncation of gpt-oss's rope) is what llama.cpp and transformers compute with.

Source: src/llama-model.cpp (load_hparams) and convert_hf_to_gguf.py of llama.cpp.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from engine.errors import ModelError, shown
from engine.weights.gguf_keys import EMBEDDING, EPSILONS, FAMILY
from engine.weights.gguf_model import Model, Values, head_dim
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
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
# StableLM has a norm for each head, which are the rows of one matrix in the file.
_NORMS_OF_HEADS = {
    "attn_q_norm": "self_attn.q_layernorm.norms",
    "attn_k_norm": "self_attn.k_layernorm.norms",
}
_ROUTED = {**_ATTENTION, "ffn_norm": "post_attention_layernorm", "ffn_gate_inp": "mlp.gate"}
_FOUR_NORMS = {
    **_ATTENTION,
    **_MLP,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


@dataclass(frozen=True)
class Architecture:
    """How a family of llama.cpp is read.

    Args:
        names: the paths of the parts of a layer in transformers, by their names in the file.
        configure: returns the family's own values of config.json.
        permutes: whether the rows of q and k are permuted.
        adds_one: whether the norms hold one more than in transformers.
        has_turned_experts: whether transformers keeps experts transposed, with the columns of
            their gate and up parts in turn.
        bare: a path that has no suffix `.weight` in transformers.
    epsilon: the key of config.json for the epsilon of the norms.
    optional: parts that the layers of some models lack.
    """

    names: Mapping[str, str]
    configure: Callable[[Model], Values]
    permutes: bool = False
    adds_one: bool = False
    has_turned_experts: bool = False
    bare: str = "-"
    epsilon: str = "rms_norm_eps"
    optional: frozenset[str] = frozenset()


def make_config(model: Model) -> Values:
    """Return the values of config.json. Raises `ModelError` that names the file and the key."""
    family = _architecture(model)
    if (embedding := model.tensors.get(EMBEDDING)) is None or len(embedding.shape) != 2:
        raise ModelError(
            f"{model.path}: has no matrix token_embd.weight: it is not a whole language model. "
            "Give the file of the model itself"
        )
    heads = model.integer("attention.head_count")
    values = {
        "vocab_size": embedding.shape[0],
        "hidden_size": model.integer("embedding_length"),
        "num_hidden_layers": model.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": model.integer("attention.head_count_kv", heads),
        "head_dim": head_dim(model),
        "max_position_embeddings": model.integer("context_length"),
        family.epsilon: model.number(EPSILONS[family.epsilon]),
        "rope_parameters": rope_parameters(model),
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
    if model.value("feed_forward_length") is not None:
        values["intermediate_size"] = model.integer("feed_forward_length")
    return values | family.configure(model)


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


def _experts(model: Model, key: str) -> Values:
    return {
        key: model.integer("expert_count"),
        "num_experts_per_tok": model.integer("expert_used_count"),
    }


def _llama(model: Model) -> Values:
    """Return the values of llama, or of mixtral or mistral, which have the same architecture."""
    window = model.integer("attention.sliding_window", 0) or None
    if model.integer("expert_count", 0):
        own = _experts(model, "num_local_experts")
        return {"model_type": "mixtral", "sliding_window": window, **own}
    if window is not None:
        return {"model_type": "mistral", "sliding_window": window}
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
        **_experts(model, "num_experts"),
    }


def _scalar(model: Model, layers_of_27b: int) -> int:
    """Return Gemma's query_pre_attn_scalar, which differs from the head's width in 27 B models."""
    if model.integer("block_count") == layers_of_27b:
        return model.integer("embedding_length") // model.integer("attention.head_count")
    return head_dim(model)


def _window(model: Model, default: int | None = None) -> int:
    """Return the tokens that some layers attend to."""
    if not (window := model.integer("attention.sliding_window", default)):
        raise model.wrong("attention.sliding_window", "at least 1")
    return window


def _layer_types(model: Model, period: int) -> list[str]:
    """Return the kinds of attention of the layers: one of every `period` attends to all tokens."""
    key, layers = "attention.sliding_window_pattern", model.integer("block_count")
    slides = model.metadata.get(f"{model.architecture}.{key}")
    if not isinstance(slides, list):
        period = model.integer(key, period) or 1
        slides = [bool((layer + 1) % period) for layer in range(min(layers, 1024))]
    elif len(slides) != layers or not all(isinstance(slide, bool) for slide in slides):
        raise model.wrong(key, f"a list of {layers} values, true or false,")
    return ["sliding_attention" if slide else "full_attention" for slide in slides]


def _gemma2(model: Model) -> Values:
    return {
        "model_type": "gemma2",
        "query_pre_attn_scalar": _scalar(model, 46),
        "sliding_window": _window(model, 4096),
        "attn_logit_softcapping": model.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": model.number("final_logit_softcapping", 30.0),
    }


def _gemma3(model: Model) -> Values:
    local = {"rope_type": "default", "rope_theta": model.number("rope.freq_base_swa", 10000.0)}
    return {
        "model_type": "gemma3_text",
        "query_pre_attn_scalar": _scalar(model, 62),
        "sliding_window": _window(model),
        "layer_types": _layer_types(model, period=6),
        "final_logit_softcapping": model.number("final_logit_softcapping", 0.0) or None,
        "rope_parameters": {"full_attention": rope_parameters(model), "sliding_attention": local},
    }


def _phi3(model: Model) -> Values:
    window = model.integer("attention.sliding_window", 0) or None
    original = model.integer("rope.scaling.original_context_length", 0)
    return {
        "model_type": "phi3",
        "sliding_window": window,
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
        "sliding_window": _window(model),
        "rope_parameters": rope | ({"truncate": False} if rope["rope_type"] == "yarn" else {}),
        **_experts(model, "num_local_experts"),
    }


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture({**_ROUTED, **_ATTENTION, **_MLP}, _llama, permutes=True),
    "qwen2": Architecture({**_ATTENTION, **_MLP}, lambda _: {"model_type": "qwen2"}),
    "qwen3": Architecture({**_ATTENTION, **_HEAD_NORMS, **_MLP}, _qwen3),
    "qwen3moe": Architecture({**_ROUTED, **_HEAD_NORMS}, _qwen3_moe),
    "gemma": Architecture({**_ATTENTION, **_MLP}, lambda _: {"model_type": "gemma"}, adds_one=True),
    "gemma2": Architecture(_FOUR_NORMS, _gemma2, adds_one=True),
    "gemma3": Architecture({**_FOUR_NORMS, **_HEAD_NORMS}, _gemma3, adds_one=True),
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
            "attn_sinks": "self_attn.sinks",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_gate_inp": "mlp.router",
        },
        _gpt_oss,
        has_turned_experts=True,
        bare="self_attn.sinks",
    ),
}
