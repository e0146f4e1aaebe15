"""What the metadata and the tensors of a GGUF model say, checked value by value."""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import ModelError, shown
from engine.weights.gguf_file import Metadata, TensorInfo

Values = dict[str, Any]  # of config.json


def shortest(value: float) -> float:
    """Return the decimal with the fewest digits that has the same float32, if `value` is one.

    The metadata have 0.000009999999747378752 for the 1e-05 of the original model.
    """
    for digits in range(1, 10):
        decimal = float(f"{value:.{digits}g}")
        if abs(value) < _LARGEST and _float32(decimal) == value:
            return decimal
    return value


_LARGEST = 3e38  # of float32


def _float32(value: float) -> float:
    (rounded,) = struct.unpack("<f", struct.pack("<f", value))
    return float(rounded)


@dataclass(frozen=True)
class Model:
    """What the files of a model say about it."""

    path: Path  # of the first file
    metadata: Metadata
    tensors: Mapping[str, TensorInfo]
    tables: Mapping[str, Sequence[float]] = field(default_factory=dict)  # those of ROPE_TABLES

    @property
    def architecture(self) -> str:
        """The value of `general.architecture`, with which the other keys begin."""
        return str(self.metadata.get("general.architecture", ""))

    def value(self, name: str) -> Any:
        """Return the value of a key of this architecture; None if there is none.

        Of a list with one value for each layer, the value is returned if all are equal.
        """
        value = self.metadata.get(f"{self.architecture}.{name}")
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            return value[0]
        return value

    def integer(self, name: str, default: int | None = None) -> int:
        """Return an integer. Raises `ModelError` if it is missing and has no default."""
        value = self.value(name)
        value = default if value is None else value
        if type(value) is not int or value < 0:
            raise self.wrong(name, "an integer")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Return a number, as the shortest decimal that has its float32."""
        value = self.value(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, "a number")
        if not math.isfinite(value):
            raise self.wrong(name, "a finite number")
        return shortest(float(value))

    def wrong(self, name: str, expected: str) -> ModelError:
        """Return the error for a key whose value cannot be used."""
        key = f"{self.architecture}.{name}"
        found = self.metadata.get(key)
        what = "it is missing" if found is None else f"found {shown(found)}"
        return ModelError(f"{self.path}: {key}: {expected} is expected, {what}")


def head_dim(model: Model) -> int:
    """Return the width of a head."""
    heads = model.integer("attention.head_count")
    if model.value("attention.key_length") is not None:
        size = model.integer("attention.key_length")
        if model.integer("attention.value_length", size) != size:
            raise model.wrong("attention.value_length", "the value of attention.key_length")
        return size
    if heads < 1:
        raise model.wrong("attention.head_count", "at least 1")
    return model.integer("embedding_length") // heads


def expert_values(model: Model, key: str) -> Values:
    """Return the values of config.json for the number of experts, which is named `key` there."""
    return {
        key: model.integer("expert_count"),
        "num_experts_per_tok": model.integer("expert_used_count"),
    }


def window(model: Model, default: int | None = None) -> int:
    """Return the number of tokens that some layers attend to."""
    if not (found := model.integer("attention.sliding_window", default)):
        raise model.wrong("attention.sliding_window", "at least 1")
    return found
