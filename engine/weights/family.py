"""The model families that can be served, and the shape of their KV cache.

Of a model that takes images or audio, the language part is served: its configuration is
`text_config(config)`, while `config` is that of the whole model.

Layers with a recurrent state (linear attention, convolution) have no keys and values, or have them
beside their state (`engine.recurrent`). Layers that no draft tree can use are refused by name.
"""

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
import transformers
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from engine.errors import ModelError, shown
from engine.files import temporary_folder
from engine.library_call import find_key, library_call
from engine.printable_logs import make_printable
from engine.spec import RopeSpec
from engine.weights.config_file import check_modelopt, read_config_values, whole
from engine.weights.config_place import CONFIG_NAME, ConfigError, ConfigPlace, config_place
from engine.weights.experts import chosen_experts

# Warnings of transformers quote values of config.json.
make_printable(logging.getLogger("transformers").handlers, "[transformers] %(message)s")

# Each has an exactness test of its own (tests/engine/runtime/test_exactness.py, test_structures.py,
# test_hybrids.py and test_latent.py).
TESTED = frozenset(
    {
        "bamba",
        "deepseek_v2",
        "deepseek_v3",
        "falcon_h1",
        "gemma2",
        "gemma3_text",
        "gemma3n_text",
        "gemma4_text",
        "glm4_moe_lite",
        "gpt_oss",
        "granite",
        "granitemoehybrid",
        "kimi_linear",
        "lfm2",
        "llama",
        "llama4_text",
        "mimo_v2_flash",
        "minicpm3",
        "mistral",
        "mixtral",
        "nemotron_h",
        "olmo_hybrid",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_5_moe_text",
        "qwen3_5_text",
        "qwen3_moe",
        "qwen3_next",
        "youtu",
    }
)
# The library lists these among models that write text.
_CLASSIFIERS = frozenset({"shieldgemma2"})
AS_WRITTEN = RopeSpec()  # positions as config.json has them
# Kinds of layers in `layer_types`. Layers without attention have no keys and values; hybrid ones
# have both attention and a recurrent state.
ATTENTION_LAYERS = frozenset(
    {
        "attention",  # as transformers 5.17 writes it
        "full_attention",
        "sliding_attention",
        "chunked_attention",
        "hybrid",
        "hybrid_sliding",
    }
)
_WITHOUT_ATTENTION = frozenset({"linear_attention", "conv", "mamba", "mlp", "moe"})
_STATE = "this server does not know where they keep their state"
_COMPRESSED = "they keep several tokens as one in their cache, which draft trees cannot use"
_REFUSED_LAYERS = {
    "recurrent": _STATE,
    "indexed_attention": (
        "each row selects the tokens that it attends to by an index, which the KV cache does not "
        "have"
    ),
    "compressed_sparse_attention": _COMPRESSED,
    "heavily_compressed_attention": _COMPRESSED,
}
# In these families, layers with a sliding window have that many times the KV heads that config.json
# names, without a key for it.
_WINDOW_KV_HEADS = {"mimo_v2_flash": 2}


@dataclass(frozen=True)
class KVShape:
    """The shape of one token's keys and values.

    Args:
        num_layers: the layers with keys and values of their own.
        num_kv_heads: the heads of each layer; the fewest, if layers differ.
        head_dim: the width of a head; the largest, if keys, values or layers differ.
        width: the values of all heads of one layer, the most of any, if they differ; else None.
        is_latent: whether a layer has one latent vector for all heads, which is the beginning of
            its key and all of its value (latent attention).
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    width: int | None = None
    is_latent: bool = False

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Return the bytes of one token's keys and values in all layers."""
        width = self.width or self.num_kv_heads * self.head_dim
        parts = 1 if self.is_latent else 2
        return parts * self.num_layers * width * dtype.itemsize


def read_config(folder: Path, rope: RopeSpec = AS_WRITTEN) -> Any:
    """Return the configuration of the whole model, also of parts that are not served.

    Raises `ModelError` if its family cannot be served.

    Code of a model repository is never run. If transformers knows the family, its own code is used,
    even if the repository has code too.

    Args:
        rope: how far the positions are scaled.
    """
    where = config_place(folder)
    values = read_config_values(folder)
    check_modelopt(folder, values)
    name = values["model_type"]
    if name not in CONFIG_MAPPING:
        reason = (
            f"transformers {transformers.__version__} does not know the model_type {shown(name)}"
        )
        if values.get("auto_map"):
            raise ModelError(
                f"{where}: {reason}, and code of a model repository (auto_map) is never run. Use a "
                "checkpoint of a family that transformers knows"
            )
        raise ModelError(f"{where}: {reason}")
    with where.naming(), library_call(where, partial(find_key, values, make_config, where.name)):
        config = make_config(values)
        check_family(config)
        is_text = name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or is_multimodal(config)
        if not is_text or name in _CLASSIFIERS:
            raise ModelError(f"{where}: model_type {shown(name)} is not a text model")
        _check_numbers(text_config(config), where)
    if rope.factor > 1:
        scaled = _scaled_positions(text_config(config), rope, where)
        if (key := text_key(config)) is not None:
            scaled = {key: values[key] | scaled}
        with library_call(f"target.rope: {where}"):  # phi3 has no such positions in transformers
            return make_config(values | scaled)
    return config


def text_config(config: Any) -> Any:
    """Return the configuration of the language part; `config` itself if there is no other part."""
    return config.get_text_config()


def text_key(config: Any) -> str | None:
    """Return the key of config.json with the language part; None if there is no other part."""
    text = text_config(config)
    return next((key for key, value in vars(config).items() if value is text), None)


def is_multimodal(config: Any) -> bool:
    """Return whether the library builds this model with parts for images or audio."""
    is_whole = text_config(config) is not config
    return is_whole and config.model_type in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES


def _scaled_positions(config: Any, rope: RopeSpec, where: ConfigPlace) -> dict[str, Any]:
    """Return the values of config.json that scale its positions by YaRN (arXiv 2309.00071).

    Raises `ModelError` if the model has no rotary positions or scales them already.
    """
    own, longest = getattr(config, "rope_parameters", None) or {}, config.max_position_embeddings
    if own.get("rope_type") != "default":
        raise ModelError(
            "target.rope: only positions that are not scaled yet can be scaled, those of the "
            f"rope_type 'default'. In {where} {where.name('rope_parameters')} is {shown(own)}. "
            "Remove the key"
        )
    original = rope.original or longest
    if original > longest:
        raise ModelError(
            f"target.rope.original: {original} is more than the model's own {longest} "
            f"({where.name('max_position_embeddings')} in {where})"
        )
    new = {"rope_type": "yarn", "factor": rope.factor, "original_max_position_embeddings": original}
    return {
        "rope_scaling": None,  # the older name of rope_parameters
        "rope_parameters": own | new,
        "max_position_embeddings": int(rope.factor * original),
    }


def make_config(values: Mapping[str, Any]) -> Any:
    """Return the configuration of transformers for the values of a config.json."""
    with temporary_folder("config") as own:
        # transformers reads this file, which has only values that were checked.
        write_config(values, own)
        return AutoConfig.from_pretrained(own, trust_remote_code=False)


def write_config(values: Mapping[str, Any], folder: Path) -> None:
    """Write the values of a config.json in a form that transformers accepts, without code to run.

    They are converted to the types that the class of transformers declares, which accepts neither
    1.0 as an integer nor 0 as a float.
    """
    found = _converted({key: value for key, value in values.items() if key != "auto_map"})
    (folder / CONFIG_NAME).write_text(json.dumps(found), encoding="utf-8")


def _converted(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values in the types that the class of `model_type` declares, also nested ones."""
    fields = {}
    name = values["model_type"]
    if name in CONFIG_MAPPING:  # its `get` does not work
        kind = CONFIG_MAPPING[name]
        fields = {field.name: _atoms(field.type) for field in dataclasses.fields(kind)}
    found = dict(values)
    for key, value in values.items():
        atoms = fields.get(key, frozenset())
        if isinstance(value, dict) and isinstance(value.get("model_type"), str):
            found[key] = _converted(value)
        elif float in atoms and int not in atoms and isinstance(value, int):
            found[key] = value if isinstance(value, bool) else float(value)
        elif int in atoms and float not in atoms:
            found[key] = whole(value)
    return found


def _atoms(kind: Any) -> frozenset[Any]:
    """Return the types that a union consists of."""
    parts = get_args(kind)
    return frozenset(a for part in parts for a in _atoms(part)) if parts else frozenset([kind])


def _check_numbers(config: Any, where: ConfigPlace) -> None:
    """Raise `ModelError` if attention layers cannot be built with these numbers."""
    keys = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
    for key in (*keys, "max_position_embeddings"):
        value = getattr(config, key, None)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise where.error(key, f": at least 1 is needed, found {shown(value)}")
    shape, heads = kv_shape(config), config.num_attention_heads
    if heads % shape.num_kv_heads:
        raise where.error(
            "num_key_value_heads",
            f": {shape.num_kv_heads} does not divide the {heads} attention heads "
            f"({where.name('num_attention_heads')})",
        )
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    key, chosen = chosen_experts(config)
    if experts and not 1 <= (chosen or 0) <= experts:
        raise where.error(key, f": {shown(chosen)} of {experts} experts cannot be chosen")


def check_family(config: Any) -> None:
    """Raise `ConfigError` for a family that cannot be served exactly, with the reason."""
    name = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError("model_type", f" {name!r} is an encoder-decoder, not a decoder")
    config = text_config(config)
    named = set(getattr(config, "layer_types", None) or ())
    kinds = named - ATTENTION_LAYERS - _WITHOUT_ATTENTION
    if not named and _has_state(config):
        kinds = {"recurrent"}
    for kind in sorted(kinds):
        reason = _REFUSED_LAYERS.get(kind, "this server does not know them")
        raise ConfigError(
            "model_type",
            f" {name!r} has {shown(kind)} layers: {reason}. Use a model with attention over all "
            "tokens, a window or chunks",
        )
    if not attention_layers(config):
        raise ConfigError(
            "model_type",
            f" {name!r} has no layer with attention: not supported. Use a model with some",
        )
    if getattr(config, "cross_attention_layers", None):
        raise ConfigError(
            "model_type",
            f" {name!r} has layers that attend to an image only (cross_attention_layers): not "
            "supported. Use a model without them",
        )
    # "vision": only the tokens of an image see those after them.
    if getattr(config, "use_bidirectional_attention", None) not in (None, False, "vision"):
        raise ConfigError("model_type", f" {name!r} attends in both directions")


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


def attention_layers(config: Any) -> list[int]:
    """Return the numbers of the layers with attention, in order."""
    config = text_config(config)
    count = getattr(config, "num_hidden_layers", 0)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return list(range(count))
    return [index for index in range(count) if kinds[index] in ATTENTION_LAYERS]


def kv_shape(config: Any) -> KVShape:
    """Return the shape of one token's keys and values."""
    config = text_config(config)
    attending = attention_layers(config)
    count = config.num_hidden_layers
    layers = [config] * count
    if getattr(config, "is_heterogeneous", False):
        layers = [config.per_layer_config[index] for index in range(count)]
    kinds = getattr(config, "layer_types", None) or [""] * count
    in_window = _WINDOW_KV_HEADS.get(config.model_type, 1)
    shapes = {
        (heads * in_window if kind == "sliding_attention" else heads, width)
        for kind, layer in ((kinds[index], layers[index]) for index in attending or [0])
        for heads, width in _layer_shapes(layer)
    }
    return KVShape(
        # The last layers use the keys and values of an earlier layer of their kind.
        num_layers=len(attending) - (getattr(config, "num_kv_shared_layers", None) or 0),
        num_kv_heads=min(heads for heads, _ in shapes),
        head_dim=max(width for _, width in shapes),
        width=max(heads * width for heads, width in shapes) if len(shapes) > 1 else None,
        is_latent=bool(getattr(config, "kv_lora_rank", None)),
    )


def _layer_shapes(config: Any) -> Iterator[tuple[int, int]]:
    """Yield heads and width of a head, of a layer's keys and of its values."""
    if rank := getattr(config, "kv_lora_rank", None):  # one vector for all heads
        yield 1, rank + config.qk_rope_head_dim
        return
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    heads = getattr(config, "num_key_value_heads", None) or heads
    yield heads, width
    yield heads, getattr(config, "v_head_dim", None) or width
