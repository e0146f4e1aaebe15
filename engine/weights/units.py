"""The units of a model, read from its checkpoint: one for each decoder layer, then the head."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from engine.weights.layout import LayerUnits, UnitLayout
from engine.weights.mapping import find_sources
from engine.weights.outline import Outline, Part, wanted_tensors
from engine.weights.safetensors import Checkpoint
from engine.weights.sources import Direct, Quantized, Source, StoredNf4, excerpt


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
        self._sources = find_sources(model, self._checkpoint, wanted_tensors(model, dtype))
        stored = {
            name: source.block
            for name, source in self._sources.items()
            if isinstance(source, StoredNf4) and source.stays_packed
        }
        self.outline = Outline(model, dtype, quantize, stored, slice_bytes)
        self._filled = [
            tuple(_Filled(self._source(part), tuple(part.tensors())) for part in parts)
            for parts in self.outline.parts
        ]

    @property
    def layouts(self) -> Sequence[UnitLayout]:
        return self.outline.layouts

    @property
    def layers(self) -> Sequence[LayerUnits]:
        """Which units are each layer's; the head's is the one behind them."""
        return self.outline.layers

    @property
    def head_is_tied(self) -> bool:
        """Whether the head's weight is the embedding's: one tensor, stored once."""
        head = self._sources[self.outline.head_weight]
        return any(self._sources[name] is head for name in self.outline.other_tensors)

    def read(self, index: int, slab: Tensor) -> None:
        """Fill `slab` with unit `index`; reads go straight to their place where dtypes agree."""
        views = self.layouts[index].views(slab)
        for filled in self._filled[index]:
            filled.source.fill(*(views[field] for field in filled.fields))

    def other(self) -> dict[str, Tensor]:
        """The tensors of no unit (embedding, final norm) by their full names.

        Matrices whose stored dtype is the wanted one are mapped from the file: their pages come
        when touched and cost no memory of the process.
        """
        other = self.outline.other_tensors
        return {name: self._load(self._sources[name], *spec) for name, spec in other.items()}

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

    def _source(self, part: Part) -> Source:
        """What fills the fields of a part."""
        source = self._sources[part.name]
        if part.held is not None:
            source = excerpt(source, part.held, *self.outline.wanted[part.name])
        return Quantized(source, part.dtype, part.shape) if part.is_quantized else source
