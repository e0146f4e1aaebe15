"""Reading config.json, and checking its values before they are passed to transformers.

transformers builds lists, tables and modules of the sizes in this file. A wrong number would take
unbounded time or memory there, or raise an error that does not name the key.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import ModelError, shown
from engine.files import read_object
from engine.weights.config_place import CONFIG_NAME, ConfigPlace, config_place

MODELOPT_NAME = "hf_quant_config.json"

# (least, most) of the sizes that every family has; null means the family's default. The largest
# models published so far have 128 layers, a hidden size of 25,000 and 262,400 tokens.
_BOUNDS: Mapping[str, tuple[int, int]] = {
    "num_hidden_layers": (1, 1024),
    "hidden_size": (1, 1 << 18),
    "intermediate_size": (1, 1 << 22),
    "moe_intermediate_size": (1, 1 << 22),
    "shared_expert_intermediate_size": (0, 1 << 22),
    "num_attention_heads": (1, 1 << 12),
    "num_key_value_heads": (1, 1 << 12),
    "head_dim": (0, 1 << 14),
    "kv_lora_rank": (0, 1 << 14),
    "vocab_size": (1, 1 << 24),
    "max_position_embeddings": (1, 1 << 40),
    "original_max_position_embeddings": (1, 1 << 40),
    "num_experts": (0, 1 << 14),
    "num_local_experts": (0, 1 << 14),
    "n_routed_experts": (0, 1 << 14),
    "num_experts_per_tok": (0, 1 << 14),
    "top_k_experts": (0, 1 << 14),
    "num_labels": (0, 1 << 16),
    "sliding_window": (0, 1 << 40),
    **dict.fromkeys(  # the rows that a convolution of a recurrent layer sees
        ("conv_L_cache", "conv_kernel", "linear_conv_kernel_dim", "mamba_d_conv"), (1, 1 << 10)
    ),
}
_LAYERS = re.compile(r"(layers?|depths?|stages|blocks)$")
_MOST_LAYERS = 1024
# Positions, frequencies and ids: nothing of the size of these numbers is built.
_LONG = re.compile(r"position|length|window|theta|base|token|seed|index|ctx|context|pixels")
_MOST_LONG = 1 << 53
_MOST = 1 << 24
_DTYPES = frozenset(
    {"float32", "float16", "bfloat16", "float64", "float", "half", "auto"}
    | {"float8_e4m3fn", "float8_e5m2", "int8", "uint8"}
)
_TEXTS = ("model_type", "hidden_act", "hidden_activation")
_OBJECTS = (
    "quantization_config",
    "compression_config",
    "quantization",
    "rope_scaling",
    "rope_parameters",
    "text_config",
)
_LISTS = ("layer_types",)
_MODULES = ("llm_int8_skip_modules", "modules_to_not_convert")  # of a quantization_config


def read_config_values(folder: Path) -> dict[str, Any]:
    """Return the values of a folder's config.json. Raises `ModelError` as `checked_values` does."""
    return checked_values(read_object(folder / CONFIG_NAME), config_place(folder))


def checked_values(values: dict[str, Any], where: ConfigPlace) -> dict[str, Any]:
    """Return the values of a config.json after checking them.

    Counts that are written with a decimal point (131072.0) become integers. Raises `ModelError`,
    which names the file, `where`, and the key.
    """
    kind = values.get("model_type")
    if kind is None:
        raise ModelError(f"{where}: model_type is missing: this file does not describe a model")
    for key in _TEXTS:
        _expect(values, key, str, "text", where)
    for key in _OBJECTS:
        _expect(values, key, dict, "an object", where)
    for key in _LISTS:
        _expect(values, key, list, "a list", where)
    for key in _MODULES:
        names = (values.get("quantization_config") or {}).get(key)
        if names is not None and not _are_texts(names):
            raise ModelError(
                f"{where}: quantization_config.{key}: names are expected, found {shown(names)}"
            )
    for key in ("dtype", "torch_dtype"):
        _expect(values, key, str, "text", where)
        name = values.get(key)
        if name is not None and name.removeprefix("torch.") not in _DTYPES:
            raise ModelError(f"{where}: {key}: {shown(name)} is not a type of weights")
        if name is not None:
            # "auto" names no type, as if the key were missing.
            values[key] = None if name == "auto" else name.removeprefix("torch.")
    return _checked(values, where, "")


def check_modelopt(folder: Path, values: Mapping[str, Any]) -> None:
    """Raise `ModelError` for weights that ModelOpt quantized.

    Its checkpoints say so in a file of their own. A newer config.json, whose `values` these are,
    says it too, and is then judged as that of any other format.
    """
    path = folder / MODELOPT_NAME
    if values.get("quantization_config") or not path.is_file():
        return
    quantization = read_object(path).get("quantization")
    kind = quantization.get("quant_algo") if isinstance(quantization, dict) else None
    if kind is not None:  # null: only the KV cache was meant to be quantized
        raise ModelError(
            f"{path}: quantization.quant_algo: {shown(kind)}: weights quantized by ModelOpt are "
            "not supported. Use the unquantized checkpoint (with `quantize: nf4` for a small one)"
        )


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def whole(value: Any) -> Any:
    """Return a float without a fraction as an integer, and other values unchanged."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _expect(
    values: Mapping[str, Any], key: str, kind: type, title: str, where: ConfigPlace
) -> None:
    """Raise `ModelError` if the value of a key is neither null nor of this type."""
    value = values.get(key)
    if value is not None and not isinstance(value, kind):
        raise where.error(key, f": {title} is expected, found {shown(value)}")


def _checked(values: dict[str, Any], where: ConfigPlace, prefix: str) -> dict[str, Any]:
    """Return the values of an object after checking its numbers, also in nested objects."""
    return {key: _value(key, value, where, f"{prefix}{key}") for key, value in values.items()}


def _value(key: str, value: Any, where: ConfigPlace, path: str) -> Any:
    """Return a value after checking its numbers. `path` is the path of its key in the file."""
    if isinstance(value, dict):
        return _checked(value, where, f"{path}.")
    if isinstance(value, list):
        return [_value(key, item, where, path) if item is not None else None for item in value]
    if key in _BOUNDS and value is not None:
        return _count(value, _BOUNDS[key], where, path)
    if isinstance(value, float) and not math.isfinite(value) and not key.endswith("_limit"):
        raise where.error(path, f": {value} is not a finite number")
    if key.endswith("_eps") and isinstance(value, int | float) and value < 0:
        raise where.error(path, f": at least 0 is expected, found {shown(value)}")
    if isinstance(value, int) and not isinstance(value, bool):
        most = _MOST_LAYERS if _LAYERS.search(key) else _MOST_LONG if _LONG.search(key) else _MOST
        if abs(value) > most:
            raise where.error(path, f": {shown(value)} is out of range (at most {most})")
    return value


def _count(value: object, bounds: tuple[int, int], where: ConfigPlace, path: str) -> int:
    """Return a value as an integer. Raises `ModelError` if it is not one in its bounds."""
    least, most = bounds
    value = whole(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise where.error(path, f": an integer is expected, found {shown(value)}")
    if not least <= value <= most:
        raise where.error(path, f": {shown(value)} is out of range (from {least} to {most})")
    return value
