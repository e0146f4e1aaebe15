"""A reader of a model's units from its checkpoint."""

import logging
from collections import Counter
from collections.abc import Mapping
from copy import copy
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from engine.weights.checkpoints import open_checkpoint
from engine.weights.config_place import config_place
from engine.weights.layout import Fields, UnitReader
from engine.weights.mapping import find_sources
from engine.weights.outline import Outline, Part, wanted_tensors
from engine.weights.packing import damaged_scales
from engine.weights.safetensors import OtherTensor, StoredRows
from engine.weights.sources import Source, quantize_source, select_experts

log = logging.getLogger(__name__)

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Of floats in a byte: the bits that tell the number, and the least of those that are not finite.
_SMALL = {
    torch.float8_e4m3fn: (127, 127),
    torch.float8_e5m2: (127, 124),
    torch.float8_e8m0fnu: (255, 255),
}
_CHECKED_BYTES = 1 << 20  # at a time
_DAMAGED = "%s: %d weights are NaN or infinite: the file is damaged"


def warn_unless_finite(values: Tensor, name: str) -> None:
    """Log how many values of a tensor are NaN or infinite, if there are any.

    The model is served nevertheless, because such values may belong to tokens that never occur. The
    first test (10 GB/s on one core) takes little time compared with reading the values.
    """
    if values.dtype in _FLOATS and values.numel():
        low, high = torch.aminmax(values)
        if not (-torch.inf < low.item() and high.item() < torch.inf):
            count = int((~torch.isfinite(values)).sum())
            log.warning(_DAMAGED, name, count)
    elif values.dtype in _SMALL and values.numel():
        bits, least = _SMALL[values.dtype]
        count = 0
        for piece in torch.split(values.view(-1).view(torch.uint8), _CHECKED_BYTES):
            numbers = piece & bits
            if int(numbers.max()) >= least:  # 14 GB/s; counting all takes 15 times as long
                count += int((numbers >= least).sum())
        if count:
            log.warning(_DAMAGED, name, count)


class CheckpointUnits(UnitReader):
    """A reader of the units of the checkpoint of a folder.

    `model` is the empty model that the folder's config.json describes. The units and the other
    arguments are as in `Outline`. Embedding, norms, routers and head are never quantized. Tensors
    that the checkpoint stores packed stay packed, except in the reader that `expanded` returns.

    The constructor raises `ModelError` if the checkpoint is not exactly of this model.
    """

    def __init__(
        self,
        folder: Path,
        model: PreTrainedModel,
        dtype: torch.dtype,
        quantize: str | None = None,
        *,
        slice_bytes: int | None = None,
        part_bytes: int | None = None,
    ) -> None:
        self._checkpoint = open_checkpoint(folder)
        with config_place(folder).naming():
            self._sources = find_sources(model, self._checkpoint, wanted_tensors(model, dtype))
        self._make_outline = partial(
            Outline, model, dtype, quantize, slice_bytes=slice_bytes, part_bytes=part_bytes
        )
        self._use({name: source.packed for name, source in self._sources.items()})

    def expanded(self) -> "CheckpointUnits":
        """Return a reader of the same open files that expands all packed tensors when it reads."""
        twin = copy(self)
        twin._use({})
        return twin

    def _use(self, stored: Mapping[str, Fields]) -> None:
        """Lay out the units, with these packed fields of tensors by their names in the model."""
        self.outline = self._make_outline(stored=stored)
        self.layouts = self.outline.layouts
        self.layers = self.outline.layers  # the unit of the head follows those of all layers
        self._checked: set[int] = set()  # the units whose values were checked
        self._filled = [  # for each unit: its sources, each with the fields that it fills
            [(self._source(part), tuple(part.tensors())) for part in parts]
            for parts in self.outline.parts
        ]

    def read(self, index: int, buffer: Tensor) -> None:
        """Fill `buffer` with unit `index`, without a copy if dtypes need no conversion."""
        views = self.layouts[index].views(buffer)
        for source, fields in self._filled[index]:
            source.fill(*(views[field] for field in fields))
        if index not in self._checked:
            self._checked.add(index)
            where = f"{self._checkpoint.folder}: {self.layouts[index].name}"
            for field, values in views.items():
                warn_unless_finite(values, f"{where}.{field}")
            for tensor, count in damaged_scales(views).items():
                if count:
                    text = "%s.%s: %d scales are NaN or infinite: the file is damaged"
                    log.warning(text, where, tensor, count)

    def other_tensors(self) -> dict[str, OtherTensor]:
        """Return the tensors outside of all units (embedding, final norm), by their full names.

        Matrices of the wanted dtype, or in blocks, stay in their file: their rows are read when
        they are needed, so they take no memory.
        """
        other = self.outline.other_tensors
        return {name: self._load(name, self._sources[name], *spec) for name, spec in other.items()}

    @property
    def expanded_when_read(self) -> str:
        """A text that says which weights of a packed format have no packed form; "" if none."""
        parts = {part.name: part for parts in self.outline.parts for part in parts}
        dense = [name for name, part in parts.items() if not (part.stored or part.quantized)]
        reasons = Counter(self._sources[name].why_expanded for name in dense)
        found = [f"{count} because {why}" for why, count in reasons.items() if why]
        return f"weights are expanded when read: {', '.join(found)}" if found else ""

    def close(self) -> None:
        """Close the files. Matrices that stay in their file cannot be read afterwards."""
        self._checkpoint.close()

    def _load(
        self, name: str, source: Source, dtype: torch.dtype, shape: tuple[int, ...]
    ) -> OtherTensor:
        """Return a tensor outside of all units, in memory or in its file."""
        if source.is_plain and source.parts[0].dtype == dtype and len(shape) == 2:
            return StoredRows(self._checkpoint, source.parts[0])
        if source.rows is not None and len(shape) == 2:
            return source.rows(dtype)
        out = torch.empty(shape, dtype=dtype)
        source.fill(out)
        warn_unless_finite(out, f"{self._checkpoint.folder}: {name}")
        return out

    def _source(self, part: Part) -> Source:
        """Return the source that fills the fields of a part."""
        source = self._sources[part.name]
        if part.held is not None:
            source = select_experts(source, part.held)
        if part.quantization is not None and part.quantized:
            source = quantize_source(source, part.dtype, part.quantization.quantize)
        return source
