"""The units of a model, read from its checkpoint: one for each decoder layer, then the head."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine import nf4
from engine.checkpoint import Checkpoint
from engine.errors import ModelError
from engine.layout import UnitLayout, lay_out
from engine.mapping import find_sources
from engine.sources import Direct, Quantized, Source, StoredNf4

TensorSpec = tuple[torch.dtype, tuple[int, ...]]


@dataclass(frozen=True)
class _Filled:
    """A source and the fields of the unit that it fills."""

    source: Source
    fields: tuple[str, ...]


class CheckpointUnits:
    """A `UnitReader` over a folder of safetensors files.

    `model` is the empty model on the `meta` device that the folder's config.json describes, its
    layers still the library's own;
    `dtype` is what weights become when read; `quantize` "nf4" packs the linear weights of layers
    to 4 bits while they are read (embedding, norms, routers and head stay dense). What the
    checkpoint already holds in nf4 is passed on packed in any case.

    Raises `ModelError` when the checkpoint does not hold exactly this model.
    """

    def __init__(
        self,
        folder: Path,
        model: PreTrainedModel,
        dtype: torch.dtype,
        quantize: Literal["nf4"] | None = None,
    ) -> None:
        self._checkpoint = Checkpoint(folder)
        self._wanted = wanted_tensors(model, dtype)
        self._sources = find_sources(model, self._checkpoint, self._wanted)
        self._layouts: list[UnitLayout] = []
        self._filled: list[tuple[_Filled, ...]] = []
        self._streamed: set[str] = set()
        layers, (head, head_module) = unit_modules(model)
        for name, module in layers:
            packable = linear_weights(module) if quantize else frozenset()
            self._add_unit(name, module, packable, may_pack=True)
        self._head_weight = f"{head}.weight"
        self._add_unit(head, head_module, frozenset(), may_pack=False)

    @property
    def layouts(self) -> Sequence[UnitLayout]:
        return self._layouts

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

    def _add_unit(
        self, name: str, module: nn.Module, packable: frozenset[str], *, may_pack: bool
    ) -> None:
        """`packable` fields are quantized; `may_pack`: what is stored in nf4 may stay packed."""
        tensors: dict[str, TensorSpec] = {}
        filled: list[_Filled] = []
        for field in module.state_dict():
            dtype, shape = self._wanted[f"{name}.{field}"]
            source = self._sources[f"{name}.{field}"]
            placed: dict[str, TensorSpec] = {field: (dtype, shape)}
            if isinstance(source, StoredNf4) and source.stays_packed:
                if may_pack:
                    placed = nf4.packed_tensors(field, shape, source.block)
            elif field in packable and nf4.can_quantize(shape):
                placed = nf4.packed_tensors(field, shape)
                source = Quantized(source, dtype, shape)
            tensors |= placed
            filled.append(_Filled(source, tuple(placed)))
            self._streamed.add(f"{name}.{field}")
        self._layouts.append(lay_out(name, tensors))
        self._filled.append(tuple(filled))


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
