"""What the files of engine/weights/formats/ state, and how they are found.

The docstring of that package shows a complete file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from transformers import PreTrainedModel

import engine.weights.formats
from engine.errors import ModelError
from engine.weights.layout import Fields
from engine.weights.safetensors import Checkpoint
from engine.weights.sources import Source

QuantizationConfig = Mapping[str, Any]  # config.json's quantization_config
Shape = tuple[int, ...]


@dataclass(frozen=True)
class StoredFormat:
    """A form in which checkpoints store weights, other than as plain tensors.

    Args:
        title: The format's name in messages.
        detect: Return whether a quantization_config describes this format. Raise `unsupported`
            for a variant of it that cannot be read.
        find: Return the source of every tensor that is stored in this format, by the name that a
            plain checkpoint would give it. Raise `ModelError` where parts are missing or wrong.
        plan: Return the packed fields of the model's tensors that stay packed, by their names in
            the model, without a checkpoint: plans are made from config.json alone.
        expanded: What is expanded when it is read, for the log; empty if nothing is.
    """

    title: str
    detect: Callable[[QuantizationConfig], bool]
    find: Callable[[Checkpoint, QuantizationConfig], dict[str, Source]]
    plan: Callable[[PreTrainedModel, QuantizationConfig], dict[str, Fields]] = lambda *_: {}
    expanded: str = ""


@dataclass(frozen=True)
class Packing:
    """A form in which tensors travel to the device, to be expanded there.

    Args:
        suffixes: What the names of the packed fields add to the dense tensor's. The first marks
            a packed tensor: no other format and no module of a model may use it.
        dense_shape: Return the shape of the dense tensor, given that of the first field.
        expand: Fill the dense tensor, the last argument, from the fields, which come before it in
            the order of `suffixes`; all are on one device.
    """

    suffixes: tuple[str, ...]
    dense_shape: Callable[[Shape], Shape]
    expand: Callable[..., None]


@dataclass(frozen=True)
class Quantization:
    """A quantization that is made while weights are read; what it makes has a `Packing`.

    Args:
        fields: Return the packed fields of a weight of this shape; none if it stays dense.
        quantize: Fill the fields, all arguments but the first, from the dense weight.
    """

    fields: Callable[[Shape], Fields]
    quantize: Callable[..., None]


def stored_format(config: Any) -> StoredFormat | None:
    """Return the format that a model's configuration names, None if its weights are plain.

    Raises `ModelError` for a format that is not supported.
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
    """Return the sources of the tensors that the checkpoint does not store as plain ones."""
    found = stored_format(config)
    return found.find(checkpoint, _quantization(config)) if found else {}


def plan_packed(model: PreTrainedModel) -> dict[str, Fields]:
    """Return the packed fields of the tensors that stay packed, as config.json alone tells."""
    found = stored_format(model.config)
    return found.plan(model, _quantization(model.config)) if found else {}


def unsupported(quantization: QuantizationConfig, kind: str | None) -> ModelError:
    """Return the error for a stored format, or a kind of one, that cannot be read."""
    method = quantization["quant_method"]
    return ModelError(
        f"config.json: quantization_config.quant_method {method!r} {kind or ''} is not supported; "
        f"{' and '.join(titles())} are. Use the unquantized checkpoint "
        "(with `quantize: nf4` for a small one)"
    )


def titles() -> list[str]:
    """Return the names of the formats that are read, for messages."""
    return [module.FORMAT.title for module in _modules() if hasattr(module, "FORMAT")]


def packings() -> tuple[Packing, ...]:
    """Return every form in which tensors may travel."""
    return tuple(module.PACKING for module in _modules() if hasattr(module, "PACKING"))


def quantization(name: str) -> Quantization:
    """Return the quantization that a model's YAML names (`target.quantize`)."""
    found: Quantization = import_module(f"{engine.weights.formats.__name__}.{name}").QUANTIZATION
    return found


@cache
def _modules() -> tuple[Any, ...]:
    package = engine.weights.formats
    names = [info.name for info in iter_modules(package.__path__)]
    return tuple(import_module(f"{package.__name__}.{name}") for name in names)


def _quantization(config: Any) -> QuantizationConfig:
    """Return the quantization_config, its method as text; empty where there is none."""
    stored: Any = getattr(config, "quantization_config", None) or {}
    values = dict(stored if isinstance(stored, dict) else stored.to_dict())
    method = values.get("quant_method")
    return {**values, "quant_method": str(getattr(method, "value", method))} if values else {}
