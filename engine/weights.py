"""The units of a model, read from its checkpoint: one for each decoder layer, then the head."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine import nf4
from engine.checkpoint import Checkpoint
from engine.errors import ModelError
from engine.layout import LayerUnits, UnitLayout, lay_out
from engine.mapping import find_sources
from engine.sources import Direct, Quantized, Source, StoredNf4, excerpt

TensorSpec = tuple[torch.dtype, tuple[int, ...]]


@dataclass(frozen=True)
class _Filled:
    """A source and the fields of the unit that it fills."""

    source: Source
    fields: tuple[str, ...]


@dataclass(frozen=True)
class _Part:
    """A tensor of the model, or some experts of one, that a unit holds."""

    field: str  # its path inside the unit's module
    source: Source
    dtype: torch.dtype
    shape: tuple[int, ...]
    quantized: bool

    def experts(self, experts: range) -> "_Part":
        source = excerpt(self.source, experts, self.dtype, self.shape)
        return replace(self, source=source, shape=(len(experts), *self.shape[1:]))

    def placed(self, *, may_pack: bool) -> tuple[Source, dict[str, TensorSpec]]:
        """Source and fields; `may_pack`: what is stored in nf4 may stay packed."""
        if isinstance(self.source, StoredNf4) and self.source.stays_packed:
            if may_pack:
                return self.source, nf4.packed_tensors(self.field, self.shape, self.source.block)
        elif self.quantized and nf4.can_quantize(self.shape):
            packed = nf4.packed_tensors(self.field, self.shape)
            return Quantized(self.source, self.dtype, self.shape), packed
        return self.source, {self.field: (self.dtype, self.shape)}


class CheckpointUnits:
    """A `UnitReader` over a folder of safetensors files.

    `model` is the empty model on the `meta` device that the folder's config.json describes, its
    layers still the library's own;
    `dtype` is what weights become when read; `quantize` "nf4" packs the linear weights of layers
    to 4 bits while they are read (embedding, norms, routers and head stay dense). What the
    checkpoint already holds in nf4 is passed on packed in any case.

    A layer of more than `slice_bytes` that has fused experts becomes several units: the layer
    without them, then slices of whole experts, each of at most `slice_bytes` or one expert.

    Raises `ModelError` when the checkpoint does not hold exactly this model.
    """

    def __init__(
        self,
        folder: Path,
        model: PreTrainedModel,
        dtype: torch.dtype,
        quantize: Literal["nf4"] | None = None,
        *,
        slice_bytes: int | None = None,
    ) -> None:
        self._checkpoint = Checkpoint(folder)
        self._wanted = wanted_tensors(model, dtype)
        self._sources = find_sources(model, self._checkpoint, self._wanted)
        self._layouts: list[UnitLayout] = []
        self._layers: list[LayerUnits] = []
        self._filled: list[tuple[_Filled, ...]] = []
        self._streamed: set[str] = set()
        layers, (head, head_module) = unit_modules(model)
        for name, module in layers:
            packable = linear_weights(module) if quantize else frozenset()
            self._add_layer(name, module, self._parts(name, module, packable), slice_bytes)
        self._head_weight = f"{head}.weight"
        self._add_unit(head, self._parts(head, head_module), may_pack=False)

    @property
    def layouts(self) -> Sequence[UnitLayout]:
        return self._layouts

    @property
    def layers(self) -> Sequence[LayerUnits]:
        """Which units are each layer's; the head's is the one behind them."""
        return self._layers

    @property
    def head_is_tied(self) -> bool:
        """Whether the head's weight is the embedding's: one tensor, stored once."""
        head = self._sources[self._head_weight]
        return any(
            source is head for name, source in self._sources.items() if name not in self._streamed
        )

    def read(self, index: int, slab: Tensor) -> None:
        """Fill `slab` with unit `index`; reads go straight to their place where dtypes agree."""
        views = self._layouts[index].views(slab)
        for filled in self._filled[index]:
            filled.source.fill(*(views[field] for field in filled.fields))

    def other(self) -> dict[str, Tensor]:
        """The tensors of no unit (embedding, final norm) by their full names.

        Matrices whose stored dtype is the wanted one are mapped from the file: their pages come
        when touched and cost no memory of the process.
        """
        tensors: dict[str, Tensor] = {}
        for name, source in self._sources.items():
            if name not in self._streamed:
                tensors[name] = self._load(source, *self._wanted[name])
        return tensors

    def close(self) -> None:
        """Close the files; tensors given by `other` stay valid."""
        self._checkpoint.close()

    def _load(self, source: Source, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        stored = source.whole if isinstance(source, Direct) else None
        if stored is not None and stored.dtype == dtype and len(shape) > 1:
            return self._checkpoint.mapped(stored)
        out = torch.empty(shape, dtype=dtype)
        source.fill(out)
        return out

    def _parts(
        self, name: str, module: nn.Module, packable: frozenset[str] = frozenset()
    ) -> list[_Part]:
        """The tensors of a module; `packable` fields are quantized."""
        names = {field: f"{name}.{field}" for field in module.state_dict()}
        self._streamed.update(names.values())
        return [
            _Part(field, self._sources[full], *self._wanted[full], field in packable)
            for field, full in names.items()
        ]

    def _add_layer(
        self, name: str, layer: nn.Module, parts: Sequence[_Part], slice_bytes: int | None
    ) -> None:
        first = len(self._layouts)
        path = fused_experts(layer)
        size = _lay_out(name, parts).nbytes
        if slice_bytes is None or path is None or size <= slice_bytes:
            self._add_unit(name, parts)
            self._layers.append(LayerUnits(first))
            return
        experts = [part for part in parts if part.field.startswith(f"{path}.")]
        self._add_unit(name, [part for part in parts if part not in experts])
        slices = _slices(experts, slice_bytes)
        for own in slices:
            title = f"{name}.{path}[{own.start}:{own.stop}]"
            self._add_unit(title, [part.experts(own) for part in experts])
        self._layers.append(LayerUnits(first, path, slices))

    def _add_unit(self, name: str, parts: Sequence[_Part], *, may_pack: bool = True) -> None:
        placed = [part.placed(may_pack=may_pack) for part in parts]
        self._layouts.append(_lay_out(name, parts, may_pack=may_pack))
        self._filled.append(tuple(_Filled(source, tuple(fields)) for source, fields in placed))


def _lay_out(name: str, parts: Sequence[_Part], *, may_pack: bool = True) -> UnitLayout:
    tensors: dict[str, TensorSpec] = {}
    for part in parts:
        tensors |= part.placed(may_pack=may_pack)[1]
    return lay_out(name, tensors)


def _slices(parts: Sequence[_Part], slice_bytes: int) -> tuple[range, ...]:
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
