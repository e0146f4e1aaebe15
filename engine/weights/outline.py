"""The units of a model as its configuration alone tells them: no checkpoint is needed.

One unit for each decoder layer, or several for a large one with fused experts, then the head.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine.errors import ModelError
from engine.weights.formats import nf4
from engine.weights.layout import LayerUnits, UnitLayout, lay_out
from engine.weights.mapping import quantization_method

TensorSpec = tuple[torch.dtype, tuple[int, ...]]


@dataclass(frozen=True)
class Part:
    """A tensor of the model, or some experts of one, that a unit holds."""

    field: str  # its path inside the unit's module
    name: str  # its path in the model
    dtype: torch.dtype
    shape: tuple[int, ...]
    quantized: bool  # packed to 4 bits when it is read
    stored_block: int | None = None  # stored in nf4 blocks of so many weights that stay packed
    held: range | None = None  # the experts, where it is not all of them

    def experts(self, held: range) -> "Part":
        shape = (len(held), *self.shape[1:])
        return replace(self, shape=shape, held=held, stored_block=None)

    @property
    def is_quantized(self) -> bool:
        """Whether reading it quantizes it."""
        return self.quantized and self.stored_block is None and nf4.can_quantize(self.shape)

    def tensors(self) -> dict[str, TensorSpec]:
        """The fields of the unit that stand for it."""
        if self.stored_block is not None:
            return nf4.packed_tensors(self.field, self.shape, self.stored_block)
        if self.is_quantized:
            return nf4.packed_tensors(self.field, self.shape)
        return {self.field: (self.dtype, self.shape)}


class Outline:
    """What each unit of a model holds, and where in the unit it lies.

    `model` is the empty model on the `meta` device, its layers still the library's own; `dtype` is
    what weights become when read; `quantize` "nf4" packs the linear weights of layers to 4 bits.
    `stored` names the tensors that the checkpoint holds in nf4 and that stay packed, with the
    weights of their blocks. A layer of more than `slice_bytes` that has fused experts becomes
    several units: the layer without them, then slices of whole experts, each of at most
    `slice_bytes` or one expert.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        dtype: torch.dtype,
        quantize: Literal["nf4"] | None,
        stored: Mapping[str, int],
        slice_bytes: int | None,
    ) -> None:
        self.wanted = wanted_tensors(model, dtype)
        self.layouts: list[UnitLayout] = []
        self.layers: list[LayerUnits] = []
        self.parts: list[tuple[Part, ...]] = []  # of each unit
        self._stored = stored
        layers, (head, head_module) = unit_modules(model)
        for name, module in layers:
            packable = linear_weights(module) if quantize else frozenset()
            self._add_layer(name, module, self._parts(name, module, packable), slice_bytes)
        self.head_weight = f"{head}.weight"
        head_parts = self._parts(head, head_module)
        self._add_unit(head, [replace(part, stored_block=None) for part in head_parts])

    @property
    def other_tensors(self) -> dict[str, TensorSpec]:
        """The tensors of no unit (embedding, final norm) by their full names."""
        streamed = {part.name for parts in self.parts for part in parts}
        return {name: spec for name, spec in self.wanted.items() if name not in streamed}

    def _parts(
        self, name: str, module: nn.Module, packable: frozenset[str] = frozenset()
    ) -> list[Part]:
        """The tensors of a module; `packable` fields are quantized."""
        parts = []
        for field in module.state_dict():
            full = f"{name}.{field}"
            block = self._stored.get(full)
            parts.append(Part(field, full, *self.wanted[full], field in packable, block))
        return parts

    def _add_layer(
        self, name: str, layer: nn.Module, parts: Sequence[Part], slice_bytes: int | None
    ) -> None:
        first = len(self.layouts)
        path = fused_experts(layer)
        size = _lay_out(name, parts).nbytes
        if slice_bytes is None or path is None or size <= slice_bytes:
            self._add_unit(name, parts)
            self.layers.append(LayerUnits(first))
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


class UnreadUnits:
    """A `UnitReader` of a model that is planned and not loaded: sizes without bytes."""

    def __init__(self, outline: Outline) -> None:
        self.outline = outline

    @property
    def layouts(self) -> Sequence[UnitLayout]:
        return self.outline.layouts

    def read(self, index: int, slab: Tensor) -> None:
        """Raises `ModelError`: there is nothing to read."""
        raise ModelError(f"{self.layouts[index].name}: only the model's config.json is here")


def _lay_out(name: str, parts: Sequence[Part]) -> UnitLayout:
    tensors: dict[str, TensorSpec] = {}
    for part in parts:
        tensors |= part.tensors()
    return lay_out(name, tensors)


def _slices(parts: Sequence[Part], slice_bytes: int) -> tuple[range, ...]:
    """The fewest runs of experts, of nearly equal size, that fit; or one expert each."""
    total = parts[0].shape[0]
    for count in range(1, total):
        largest = range(-(-total // count))
        if _lay_out("", [part.experts(largest) for part in parts]).nbytes <= slice_bytes:
            break
    else:
        count = total
    borders = [i * total // count for i in range(count + 1)]
    return tuple(range(a, b) for a, b in pairwise(borders))


NamedModule = tuple[str, nn.Module]


def unit_modules(model: PreTrainedModel) -> tuple[list[NamedModule], NamedModule]:
    """The decoder layers in order and the head, each with its path in the model."""
    paths = {id(module): path for path, module in model.named_modules()}
    untyped: Any = model
    layers = getattr(untyped.get_decoder(), "layers", None)
    head = untyped.get_output_embeddings()
    if layers is None or head is None:
        raise ModelError(f"{type(model).__name__} has no decoder layers or no head: not supported")
    return [(paths[id(layer)], layer) for layer in layers], (paths[id(head)], head)


def linear_weights(module: nn.Module) -> frozenset[str]:
    """The parameters that 4-bit quantization is for: linear weights and fused experts [E, ., .]."""
    linear = {f"{path}.weight" for path, m in module.named_modules() if isinstance(m, nn.Linear)}
    experts = {name for name, parameter in module.named_parameters() if parameter.dim() == 3}
    return frozenset(linear | experts)


def fused_experts(layer: nn.Module) -> str | None:
    """Path of the layer's experts, where they are one module with tensors [experts, ...]."""
    paths = {
        n.rpartition(".")[0] for n, parameter in layer.named_parameters() if parameter.dim() == 3
    }
    if len(paths) != 1:
        return None
    (path,) = paths
    sizes = {parameter.shape[0] for parameter in layer.get_submodule(path).parameters()}
    return path if len(sizes) == 1 else None


def wanted_tensors(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, TensorSpec]:
    """Every tensor of the model's state dict -> (dtype, shape) when its weights are `dtype`.

    What the library keeps in float32 on purpose (routing corrections) stays float32.
    """
    kept = model._get_dtype_plan(dtype)
    wanted: dict[str, TensorSpec] = {}
    for name, tensor in model.state_dict().items():
        own = next((kept[key] for key in kept if re.search(key.replace("*", ".*"), name)), dtype)
        wanted[name] = (own if tensor.is_floating_point() else tensor.dtype, tuple(tensor.shape))
    return wanted


def stored_blocks(model: PreTrainedModel) -> dict[str, int]:
    """The linear weights that a checkpoint quantized by bitsandbytes holds in nf4 and that stay
    packed, with the weights of a block, as quantization_config tells.

    Raises `ModelError` for a quantization that is not supported.
    """
    if quantization_method(model) != "bitsandbytes":
        return {}
    config: Any = model.config.quantization_config
    values: dict[str, Any] = config if isinstance(config, dict) else config.to_dict()
    skipped = values.get("llm_int8_skip_modules") or ["lm_head"]
    return {
        f"{path}.weight": nf4.BLOCK
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and not any(path == skip or path.endswith(f".{skip}") for skip in skipped)
        and module.in_features % nf4.BLOCK == 0
    }
