"""The units of a model, as its configuration alone determines them, without a checkpoint.

Each decoder layer is one unit, or several if it is large: groups of its tensors, or slices of its
fused experts. The head is the last unit.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine.errors import ModelError
from engine.weights.config_place import ConfigError
from engine.weights.family import text_config
from engine.weights.layout import Fields, LayerUnits, TensorSpec, UnitLayout, UnitReader, lay_out
from engine.weights.stored_format import Quantization, quantization


@dataclass(frozen=True)
class Part:
    """A tensor of a unit: a tensor of the model, or some experts of one."""

    field: str  # its path inside the unit's module
    name: str  # its path in the model
    dtype: torch.dtype
    shape: tuple[int, ...]
    stored: Fields  # its packed fields in the checkpoint; empty if it is read dense
    quantization: Quantization | None = None  # applied when it is read
    held: range | None = None  # the experts that it has; None: all of them

    def experts(self, held: range) -> "Part":
        """Return a copy of this part that holds only the experts `held`."""
        count = len(held)
        stored = {suffix: (d, (count, *shape[1:])) for suffix, (d, shape) in self.stored.items()}
        return replace(self, shape=(count, *self.shape[1:]), held=held, stored=stored)

    def dense(self) -> "Part":
        """Return a copy of this part as it is after its packed fields are expanded."""
        return replace(self, stored={}, quantization=None)

    @property
    def quantized(self) -> Fields:
        """The fields of the tensor if it is quantized when it is read; else empty."""
        if self.quantization is None or self.stored:
            return {}
        return self.quantization.fields(self.shape)

    def tensors(self) -> dict[str, TensorSpec]:
        """Return the dtype and shape of the unit's fields for this tensor, by name."""
        fields = self.stored or self.quantized or {"": (self.dtype, self.shape)}
        return {self.field + suffix: spec for suffix, spec in fields.items()}


class Outline:
    """The tensors and the layout of each unit of a model.

    A layer of more than `slice_bytes` that has fused experts becomes several units: the layer
    without them, then slices of whole experts, each of at most `slice_bytes` or one expert. Another
    layer of more than `part_bytes` becomes several parts: groups of its tensors, each of at most
    `part_bytes` or little more than the largest tensor. These are sizes of dense weights, so that a
    model has the same units whether they are packed or not.

    Args:
        model: the empty model on the `meta` device, with the layers of transformers.
        dtype: the dtype that weights have after they are read.
        quantize: the name of the quantization of the linear weights of layers, which is a file in
            engine/weights/formats/.
        stored: the fields of the tensors that the checkpoint stores packed and that stay packed, by
            their names in the model. `quantize` has precedence over other packings.
        slice_bytes: the largest layer that is not sliced; None: no layer is sliced.
        part_bytes: the largest layer that is not divided into parts; None: no layer is.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        dtype: torch.dtype,
        quantize: str | None,
        stored: Mapping[str, Fields],
        slice_bytes: int | None = None,
        part_bytes: int | None = None,
    ) -> None:
        self.wanted = wanted_tensors(model, dtype)
        self.layouts: list[UnitLayout] = []
        self.layers: list[LayerUnits] = []
        self.parts: list[tuple[Part, ...]] = []  # one tuple for each unit
        self._dtype = dtype
        self._stored = stored
        self._quantization = quantization(quantize) if quantize else None
        layers, (head, head_module) = unit_modules(model)
        for name, module in layers:
            parts = self._parts(name, module, linear_weights(module))
            self._add_layer(name, module, parts, slice_bytes, part_bytes)
        self._add_unit(head, self._parts(head, head_module, frozenset()))

    @property
    def other_tensors(self) -> dict[str, TensorSpec]:
        """The tensors outside of all units (embedding, final norm), by their full names."""
        streamed = {part.name for parts in self.parts for part in parts}
        return {name: spec for name, spec in self.wanted.items() if name not in streamed}

    def _parts(self, name: str, module: nn.Module, quantized: frozenset[str]) -> list[Part]:
        """Return the tensors of a module. If weights are quantized, those in `quantized` are."""
        parts = []
        for field in module.state_dict():
            full = f"{name}.{field}"
            made = self._quantization if field in quantized else None
            dtype, shape = self.wanted[full]
            stored = self._stored.get(full, {})
            own = made.fields(shape) if made is not None else {}
            # Packed tensors are expanded to the model's dtype, which a few tensors do not have.
            if dtype != self._dtype or (own and own.keys() != stored.keys()):
                stored = {}
            parts.append(Part(field, full, dtype, shape, stored, made))
        return parts

    def _add_layer(
        self,
        name: str,
        layer: nn.Module,
        parts: list[Part],
        slice_bytes: int | None,
        part_bytes: int | None,
    ) -> None:
        """Add the units of a layer: one, or several if it is divided or its experts are sliced."""
        first = len(self.layouts)
        path = fused_experts(layer)
        size = _dense_bytes(parts)
        if slice_bytes is None or path is None or size <= slice_bytes:
            groups = [parts]
            if part_bytes is not None and size > part_bytes:
                groups = _groups(layer, parts, part_bytes)
            for group in groups:
                self._add_unit(name, group)
            self.layers.append(LayerUnits(first, num_parts=len(groups)))
            return
        experts = [part for part in parts if part.field.startswith(f"{path}.")]
        self._add_unit(name, [part for part in parts if part not in experts])
        slices = _slices(experts, slice_bytes)
        for held in slices:
            title = f"{name}.{path}[{held.start}:{held.stop}]"
            self._add_unit(title, [part.experts(held) for part in experts])
        self.layers.append(LayerUnits(first, path, slices))

    def _add_unit(self, name: str, parts: Sequence[Part]) -> None:
        self.layouts.append(_lay_out(name, parts))
        self.parts.append(tuple(parts))


class UnreadUnits(UnitReader):
    """A reader with the layouts of a model that is only planned; it cannot read."""

    def __init__(self, outline: Outline) -> None:
        self.layouts = outline.layouts

    def read(self, index: int, buffer: Tensor) -> None:
        """Raise `ModelError`, since there is no checkpoint."""
        raise ModelError(f"{self.layouts[index].name}: only the model's config.json is there")


def _lay_out(name: str, parts: Sequence[Part]) -> UnitLayout:
    tensors = {field: spec for part in parts for field, spec in part.tensors().items()}
    return lay_out(name, tensors)


def _dense_bytes(parts: Sequence[Part]) -> int:
    return _lay_out("", [part.dense() for part in parts]).nbytes


def _groups(layer: nn.Module, parts: Sequence[Part], part_bytes: int) -> list[list[Part]]:
    """Return the tensors of a layer in groups of at most `part_bytes`, in their order.

    A group may have little more than the layer's largest tensor. All buffers and vectors are in the
    first group, because norms and biases are needed early and are small.
    """
    matrices = {name for name, parameter in layer.named_parameters() if parameter.dim() > 1}
    large = [part for part in parts if part.field in matrices]
    first = [part for part in parts if part.field not in matrices]
    if not large:
        return [first]
    most = max(part_bytes, max(_dense_bytes([*first, part]) for part in large))
    groups = [first]
    for part in large:
        if _dense_bytes([*groups[-1], part]) > most:
            groups.append([])
        groups[-1].append(part)
    return groups


def _slices(parts: Sequence[Part], slice_bytes: int) -> tuple[range, ...]:
    """Return the fewest runs of experts that fit, of nearly equal size, or one run per expert."""
    total = parts[0].shape[0]
    for count in range(1, total):
        largest = range(-(-total // count))
        if _dense_bytes([part.experts(largest) for part in parts]) <= slice_bytes:
            break
    else:
        count = total
    starts = [i * total // count for i in range(count + 1)]
    return tuple(range(a, b) for a, b in pairwise(starts))


NamedModule = tuple[str, nn.Module]


def unit_modules(model: PreTrainedModel) -> tuple[list[NamedModule], NamedModule]:
    """Return the decoder layers in order and the head, each with its path in the model."""
    paths = {id(module): path for path, module in model.named_modules()}
    untyped: Any = model
    layers, head = decoder_layers(model), untyped.get_output_embeddings()
    if head is None:
        raise ConfigError("model_type", f": {type(model).__name__} has no head: not supported")
    return [(paths[id(layer)], layer) for layer in layers], (paths[id(head)], head)


def text_decoder(model: PreTrainedModel) -> Any:
    """Return the module that runs the layers of a model, or of its language part."""
    untyped: Any = model
    decoder = untyped.get_decoder()
    # Where the language part is a model with a head (Llama 4), the library stops at that.
    return decoder.model if hasattr(decoder, "lm_head") else decoder


def decoder_prefix(model: PreTrainedModel) -> str:
    """Return the beginning of the names of the decoder's tensors; "" if the model is all text."""
    if text_config(model.config) is model.config:
        return ""
    decoder = text_decoder(model)
    return next(f"{path}." for path, module in model.named_modules() if module is decoder)


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the list of the decoder's layers, which families store under different names.

    Raises `ConfigError` if the decoder has no list of that length, or several.
    """
    count = text_config(model.config).num_hidden_layers
    lists = [m for m in text_decoder(model).children() if isinstance(m, nn.ModuleList)]
    # Lists of rotary embeddings have no weights.
    found = [m for m in lists if len(m) == count and any(True for _ in m.parameters())]
    if len(found) != 1:
        raise ConfigError(
            "model_type",
            f": {type(model).__name__} has no single list of {count} decoder layers: not supported",
        )
    return found[0]


def linear_weights(module: nn.Module) -> frozenset[str]:
    """Return the names of parameters to quantize: linear weights and fused experts [E, ., .]."""
    linear = {f"{path}.weight" for path, m in module.named_modules() if isinstance(m, nn.Linear)}
    return frozenset(linear | stacked_weights(module))


def fused_experts(layer: nn.Module) -> str | None:
    """Return the path of the one module with fused experts [E, ...]; None if there is none."""
    paths = {name.rpartition(".")[0] for name in stacked_weights(layer)}
    if len(paths) != 1:
        return None
    (path,) = paths
    sizes = {parameter.shape[0] for parameter in layer.get_submodule(path).parameters()}
    return path if len(sizes) == 1 else None


def stacked_weights(module: nn.Module) -> set[str]:
    """Return the names of parameters [E, ., .], but not those of convolutions [C, 1, taps]."""
    filters = {f"{path}.weight" for path, m in module.named_modules() if isinstance(m, nn.Conv1d)}
    stacked = {name for name, parameter in module.named_parameters() if parameter.dim() == 3}
    return stacked - filters


def wanted_tensors(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, TensorSpec]:
    """Return the dtype and shape of every tensor of the model if its weights are of `dtype`.

    Tensors that transformers always keeps in float32 (routing corrections) stay float32.
    """
    kept = model._get_dtype_plan(dtype)
    wanted: dict[str, TensorSpec] = {}
    for name, tensor in model.state_dict().items():
        own = next((kept[key] for key in kept if re.search(key.replace("*", ".*"), name)), dtype)
        wanted[name] = (own if tensor.is_floating_point() else tensor.dtype, tuple(tensor.shape))
    return wanted
