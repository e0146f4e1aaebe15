"""The definitions that a file of engine/weights/formats/ may have, and functions that find them.

The docstring of that package contains a complete example of such a file.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from transformers import PreTrainedModel

import engine.weights.formats
from engine.errors import shown
from engine.weights.config_file import whole
from engine.weights.config_place import ConfigError
from engine.weights.layout import Fields
from engine.weights.safetensors import Checkpoint
from engine.weights.sources import Source

# The keys of config.json that describe stored weights: the present one, an old one of
# compressed-tensors, and that of MLX.
_KEYS = ("quantization_config", "compression_config", "quantization")
_MLX, _UNNAMED = "mlx", ""  # what stands for a method that config.json does not name
_ACTIVATION_SCALE = re.compile(
    r"[._](input|output|activation|prob|query|q|k|v|kv)_(global_)?(scale|scale_ub|zero_point)$"
)

# Keys whose values some tools write as text.
_NUMBERS = frozenset({"bits", "block_structure", "group_size", "num_bits", "weight_block_size"})
_FLAGS = frozenset(
    {"_load_in_4bit", "desc_act", "is_marlin_format", "lm_head", "load_in_4bit", "symmetric"}
)
_TRUTH: Mapping[str, bool] = {"true": True, "1": True, "false": False, "0": False}
_INTEGER = re.compile(r"[+-]?[0-9]{1,9}")

QuantizationConfig = Mapping[str, Any]  # quantization_config of config.json
Shape = tuple[int, ...]


@dataclass(frozen=True)
class StoredFormat:
    """A format in which checkpoints store weights that are not plain tensors.

    Args:
        title: the format's name in messages.
        detect: returns whether a quantization_config describes this format. Raises `unsupported`
            for a variant of it that cannot be read.
        find: returns the source of every tensor that is stored in this format, by the name that it
            would have in a plain checkpoint. Raises `ModelError` if parts are missing or wrong.
        plan: returns the packed fields of the tensors that stay packed, by their names in the
            model. It has no checkpoint, because plans are made from config.json alone.
    """

    title: str
    detect: Callable[[QuantizationConfig], bool]
    find: Callable[[Checkpoint, QuantizationConfig], dict[str, Source]]
    plan: Callable[[PreTrainedModel, QuantizationConfig], dict[str, Fields]] = lambda *_: {}


@dataclass(frozen=True)
class Packing:
    """A packed form in which tensors are copied to the device, where they are expanded.

    The first dimension of every field of fused experts [experts, ., .] must be the experts, because
    slices of experts are made of slices of the fields.

    Args:
        title: the name of the packed form in messages, such as "Q4_K".
        suffixes: the suffixes that the names of the packed fields add to that of the dense tensor,
            each a dot and a name without dots. The first one identifies the packing: no other
            packing and no module may use it.
        dense_shape: returns the shape of the dense tensor, given that of the first field.
        expand: fills the dense tensor, its last argument, from the fields, its other arguments in
            the order of `suffixes`. All are on one device.
        count_damaged: returns how many scales of the fields, in the order of `suffixes`, are NaN or
            infinite. Fields of floats are checked without it.
    """

    title: str
    suffixes: tuple[str, ...]
    dense_shape: Callable[[Shape], Shape]
    expand: Callable[..., None]
    count_damaged: Callable[..., int] = lambda *_: 0


@dataclass(frozen=True)
class Quantization:
    """A quantization of weights while they are read, to fields that have a `Packing`.

    Args:
        fields: returns the packed fields of a weight of this shape; none if it stays dense.
        quantize: fills the fields, all its arguments but the first, from the dense weight.
    """

    fields: Callable[[Shape], Fields]
    quantize: Callable[..., None]


def stored_format(config: Any) -> StoredFormat | None:
    """Return the format that a model's configuration names, or None if its weights are plain.

    Raises `ConfigError` if the format is not supported.
    """
    quantization = _quantization(config)
    if not quantization:
        return None
    for module in _modules():
        found: StoredFormat | None = getattr(module, "FORMAT", None)
        if found is not None and found.detect(quantization):
            return found
    raise unsupported(quantization, quantization.get("fmt"))


def find_stored(config: Any, checkpoint: Checkpoint) -> dict[str, Source]:
    """Return the sources of the tensors that the checkpoint does not store as plain tensors."""
    found = stored_format(config)
    return found.find(checkpoint, _quantization(config)) if found else {}


def plan_packed(model: PreTrainedModel) -> dict[str, Fields]:
    """Return the packed fields of the tensors that stay packed, from config.json alone."""
    found = stored_format(model.config)
    return found.plan(model, _quantization(model.config)) if found else {}


def unsupported(quantization: QuantizationConfig, kind: str | None) -> ConfigError:
    """Return the error for a stored format, or a variant of one, that cannot be read."""
    method = quantization["quant_method"]
    key, what = "quantization_config.quant_method", f" {shown(method)}{f' {kind}' if kind else ''}"
    if method == _MLX:
        key, what = "quantization", ": the format of MLX"
    elif method == _UNNAMED:
        key, what = "quantization_config", " without quant_method"
    return ConfigError(
        key,
        f"{what} is not supported; {', '.join(titles())} are. Use the unquantized checkpoint "
        "(with `quantize: nf4` for a small one)",
    )


def is_activation_scale(name: str) -> bool:
    """Return whether a stored tensor is a scale of activations or of a KV cache.

    They are not used, since only weights are quantized here.
    """
    return _ACTIVATION_SCALE.search(name) is not None


def titles() -> list[str]:
    """Return the titles of the supported formats, for messages."""
    return [module.FORMAT.title for module in _modules() if hasattr(module, "FORMAT")]


def packings() -> dict[str, Packing]:
    """Return the packings of all formats, by their first suffix."""
    found = [one for module in _modules() for one in getattr(module, "PACKINGS", ())]
    return {packing.suffixes[0]: packing for packing in found}


def quantization(name: str) -> Quantization:
    """Return the quantization of this name, which a model's YAML sets (`target.quantize`)."""
    found: Quantization = import_module(f"{engine.weights.formats.__name__}.{name}").QUANTIZATION
    return found


@cache
def _modules() -> tuple[Any, ...]:
    package = engine.weights.formats
    names = [info.name for info in iter_modules(package.__path__)]
    return tuple(import_module(f"{package.__name__}.{name}") for name in names)


def _quantization(config: Any) -> QuantizationConfig:
    """Return the quantization_config, with its method as text; empty if there is none.

    The entry of MLX names no method.
    """
    found = {key: getattr(config, key, None) for key in _KEYS}
    stored: Any = next((value for value in found.values() if value), {})
    values = _typed(dict(stored if isinstance(stored, dict) else stored.to_dict()))
    method = values.get("quant_method")
    if values and method is None:
        if found["quantization"]:
            method = _MLX
        elif found["compression_config"]:
            method = "compressed-tensors"  # it had this key before it had a method
        else:
            method = _UNNAMED
    return {**values, "quant_method": str(getattr(method, "value", method))} if values else {}


def _typed(values: dict[str, Any], path: str = "quantization_config") -> dict[str, Any]:
    """Return values whose numbers and flags have these types, also where they are written as text.

    Some tools write {"bits": "4", "desc_act": "False"}. Raises `ConfigError` for a flag that is
    neither true nor false; the format itself checks its numbers.
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        own = value
        if isinstance(value, dict):
            own = _typed(value, f"{path}.{key}")
        elif key in _NUMBERS:
            own = [_number(v) for v in value] if isinstance(value, list) else _number(value)
        elif key in _FLAGS and value is not None:
            own = _TRUTH.get(str(value).strip().lower())
            if own is None:
                raise ConfigError(
                    f"{path}.{key}", f": true or false is expected, found {shown(value)}"
                )
        found[key] = own
    return found


def _number(value: Any) -> Any:
    """Return text that is an integer, or a float without a fraction, as an integer."""
    is_text = isinstance(value, str) and _INTEGER.fullmatch(value.strip())
    return int(value) if is_text else whole(value)
