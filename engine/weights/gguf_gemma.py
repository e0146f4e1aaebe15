"""The configurations of the Gemma families for the metadata of a GGUF file.

Source: src/models/gemma3n.cpp and gemma4.cpp, and conversion/gemma.py of llama.cpp.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

from engine.weights.gguf_model import Model, Values, head_dim, window
from engine.weights.gguf_rope import proportional_rope, rope_parameters

# Parts of a layer that has an input of its own for each token.
INPUTS_OF_LAYERS: Mapping[str, str] = {
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
}
GEMMA3N_PARTS: Mapping[str, str] = {
    "altup_correct_coef": "altup.correction_coefs",
    "altup_correct_scale.weight": "altup.correct_output_scale",
    "altup_predict_coef": "altup.prediction_coefs",
    "altup_router": "altup.modality_router",
    "altup_router_norm": "altup.router_norm",
    "laurel_l": "laurel.linear_left",
    "laurel_r": "laurel.linear_right",
    "laurel_post_norm": "laurel.post_laurel_norm",
}
# Parts of a layer that has experts beside its MLP.
GEMMA4_EXPERTS: Mapping[str, str] = {
    "ffn_gate_inp": "router.proj",
    "ffn_gate_inp.scale": "router.scale",
    "ffn_down_exps.scale": "router.per_expert_scale",
    "post_ffw_norm_1": "post_feedforward_layernorm_1",
    "post_ffw_norm_2": "post_feedforward_layernorm_2",
    "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
}
_FULL, _SLIDING = "full_attention", "sliding_attention"
_MOST_LAYERS = 1024
_CACHED_LAYERS = 20  # of Gemma 3n: the others use the keys and values of these
_TOLERANCE = 1e-6  # of a quantile that was computed in float32
_MOST_DIGITS = 7  # of a share of activations


def gemma2_values(model: Model) -> Values:
    """Return the values of config.json of a Gemma 2."""
    return {
        "model_type": "gemma2",
        "query_pre_attn_scalar": _scalar(model, 46),
        "sliding_window": window(model, 4096),
        "attn_logit_softcapping": model.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": model.number("final_logit_softcapping", 30.0),
    }


def gemma3_values(model: Model) -> Values:
    """Return the values of config.json of a Gemma 3."""
    return {
        "model_type": "gemma3_text",
        "query_pre_attn_scalar": _scalar(model, 62),
        "sliding_window": window(model),
        "layer_types": _layer_types(model, period=6),
        "final_logit_softcapping": model.number("final_logit_softcapping", 0.0) or None,
        "rope_parameters": {_FULL: rope_parameters(model), _SLIDING: _local_rope(model)},
    }


def gemma3n_values(model: Model) -> Values:
    """Return the values of config.json of a Gemma 3n."""
    layers = model.integer("block_count")
    return {
        "model_type": "gemma3n_text",
        "intermediate_size": _by_layer(model, "feed_forward_length", layers),
        "sliding_window": window(model),
        "layer_types": _layer_types(model, period=5),
        "final_logit_softcapping": model.number("final_logit_softcapping", 30.0),
        "rope_parameters": {_FULL: rope_parameters(model), _SLIDING: _local_rope(model)},
        "num_kv_shared_layers": _shared_layers(model, max(layers - _CACHED_LAYERS, 0)),
        "altup_num_inputs": model.integer("altup.num_inputs"),
        "altup_active_idx": model.integer("altup.active_idx"),
        "laurel_rank": _rows(model, "blk.0.laurel_l.weight"),
        "activation_sparsity_pattern": _sparsity(model, layers),
        **_inputs_of_layers(model),
    }


def gemma4_values(model: Model) -> Values:
    """Return the values of config.json of a Gemma 4."""
    kinds, shared = _layer_types(model, period=6), _shared_layers(model, 0)
    layers, size = len(kinds), model.integer("attention.key_length_swa")
    for key in ("attention.value_length_swa", "rope.dimension_count_swa"):
        if model.integer(key, size) != size:
            raise model.wrong(key, f"the value of attention.key_length_swa ({size})")
    key_heads = _by_layer(model, "attention.head_count_kv", layers)
    widths = _by_layer(model, "feed_forward_length", layers)
    found: Values = {
        "model_type": "gemma4_text",
        "head_dim": size,
        "global_head_dim": head_dim(model),
        "num_key_value_heads": _common(model, "attention.head_count_kv", kinds, key_heads)[0],
        "intermediate_size": widths[0],
        "use_double_wide_mlp": layers > shared and widths[-1] == 2 * widths[0],
        "sliding_window": window(model),
        "layer_types": kinds,
        "final_logit_softcapping": model.number("final_logit_softcapping", 0.0) or None,
        "rope_parameters": {_FULL: proportional_rope(model), _SLIDING: _local_rope(model)},
        "num_kv_shared_layers": shared,
        "attention_k_eq_v": _lacks_values(model, kinds[: layers - shared]),
        **_inputs_of_layers(model),
    }
    last = widths[0] * (2 if found["use_double_wide_mlp"] else 1)
    if widths != [widths[0]] * (layers - shared) + [last] * shared:
        raise model.wrong("feed_forward_length", "one width, or twice as much in shared layers,")
    if found["attention_k_eq_v"]:
        heads = _common(model, "attention.head_count_kv", kinds, key_heads)[1]
        found["num_global_key_value_heads"] = heads
    elif len(set(key_heads)) > 1:
        raise model.wrong("attention.head_count_kv", "one number for all layers")
    if model.integer("expert_count", 0):
        found |= {
            "enable_moe_block": True,
            "num_experts": model.integer("expert_count"),
            "top_k_experts": model.integer("expert_used_count"),
            "moe_intermediate_size": model.integer("expert_feed_forward_length"),
        }
    return found


def _scalar(model: Model, layers_of_27b: int) -> int:
    """Return Gemma's query_pre_attn_scalar, which differs from the head's width in 27 B models."""
    if model.integer("block_count") == layers_of_27b:
        return model.integer("embedding_length") // model.integer("attention.head_count")
    return head_dim(model)


def _layer_types(model: Model, period: int) -> list[str]:
    """Return the kinds of attention of the layers: one of every `period` attends to all tokens."""
    key, layers = "attention.sliding_window_pattern", model.integer("block_count")
    slides = model.metadata.get(f"{model.architecture}.{key}")
    if not isinstance(slides, list):
        period = model.integer(key, period) or 1
        slides = [bool((layer + 1) % period) for layer in range(min(layers, _MOST_LAYERS))]
    elif len(slides) != layers or not all(isinstance(slide, bool) for slide in slides):
        raise model.wrong(key, f"a list of {layers} values, true or false,")
    return [_SLIDING if slide else _FULL for slide in slides]


def _local_rope(model: Model) -> Values:
    """Return the rope parameters of the layers with a window."""
    return {"rope_type": "default", "rope_theta": model.number("rope.freq_base_swa", 10000.0)}


def _by_layer(model: Model, key: str, layers: int) -> list[int]:
    """Return an integer above 0 for each layer, of a list or of one for all layers."""
    found = model.metadata.get(f"{model.architecture}.{key}")
    if not isinstance(found, list):
        return [model.integer(key)] * min(layers, _MOST_LAYERS)
    if len(found) != layers or not all(type(item) is int and item > 0 for item in found):
        raise model.wrong(key, f"a list of {layers} integers above 0")
    return found


def _common(model: Model, key: str, kinds: Sequence[str], values: Sequence[int]) -> list[int]:
    """Return the value of the layers with a window, and that of the others."""
    found: list[int] = []
    for kind in (_SLIDING, _FULL):
        own = {value for value, other in zip(values, kinds, strict=True) if other == kind}
        if len(own) > 1:
            raise model.wrong(key, "one number for the layers with a window, and one for others,")
        found += own or set(values)
    return found


def _shared_layers(model: Model, default: int) -> int:
    """Return the number of layers, the last ones, that use the keys and values of others."""
    key, layers = "attention.shared_kv_layers", model.integer("block_count")
    found = model.integer(key, default)
    if found and found >= layers:
        raise model.wrong(key, f"less than the {layers} layers")
    return found


def _inputs_of_layers(model: Model) -> Values:
    """Return the sizes of the inputs that each layer has of its own; 0: it has none."""
    size = model.integer("embedding_length_per_layer_input", 0)
    found: Values = {"hidden_size_per_layer_input": size}
    if size:
        found["vocab_size_per_layer_input"] = _rows(model, "per_layer_token_embd.weight")
    return found


def _rows(model: Model, name: str) -> int:
    """Return the number of rows of a tensor, 0 if there is none: its absence is found later."""
    return model.tensors[name].shape[0] if name in model.tensors else 0


def _lacks_values(model: Model, kinds: Sequence[str]) -> bool:
    """Return whether the layers without a window use their keys as values."""
    full = (layer for layer, kind in enumerate(kinds) if kind == _FULL)
    return any(f"blk.{layer}.attn_v.weight" not in model.tensors for layer in full)


def _sparsity(model: Model, layers: int) -> list[float]:
    """Return the share of activations that each layer drops.

    The file has the number of standard deviations above which an activation is kept: the quantile
    of this share in float32, minus infinity for 0.
    """
    key = "activation_sparsity_scale"
    scales = model.metadata.get(f"{model.architecture}.{key}")
    if not isinstance(scales, list) or not all(isinstance(scale, float) for scale in scales):
        raise model.wrong(key, f"a list of {layers} numbers")
    if len(scales) != layers or any(math.isnan(scale) or scale == math.inf for scale in scales):
        raise model.wrong(key, f"a list of {layers} numbers below infinity")
    shares = {scale: _share(scale) for scale in set(scales)}
    return [shares[scale] for scale in scales]


def _share(scale: float) -> float:
    """Return the decimal with the fewest digits whose quantile is `scale`."""
    normal = NormalDist()
    share = normal.cdf(scale)
    for digits in range(1, _MOST_DIGITS):
        decimal = round(share, digits)
        if 0 < decimal < 1 and math.isclose(normal.inv_cdf(decimal), scale, abs_tol=_TOLERANCE):
            return decimal
    return share
