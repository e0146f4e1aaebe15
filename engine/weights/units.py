"""The units of a model, read from its checkpoint."""

import logging
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from engine.weights.layout import UnitReader
from engine.weights.mapping import find_sources
from engine.weights.outline import Outline, Part, wanted_tensors
from engine.weights.safetensors import Checkpoint, OtherTensor, StoredRows
from engine.weights.sources import Source, excerpt, quantized

log = logging.getLogger(__name__)

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def warn_unless_finite(values: Tensor, name: str) -> None:
    """Log how many values of a tensor are NaN or infinite.

    The model is served all the same: such values may lie in rows of tokens that do not occur. The
    first look (10 GB/s on one core) is cheap beside reading the values.
    """
    if values.dtype in _FLOATS and values.numel():
        low, high = torch.aminmax(values)
        if not (-torch.inf < low.item() and high.item() < torch.inf):
            count = int((~torch.isfinite(values)).sum())
            log.warning("%s: %d weights are NaN or infinite: the file is damaged", name, count)


class CheckpointUnits(UnitReader):
    """Reads the units of a folder of safetensors files.

    `model` is the empty model that the folder's config.json describes. Its units and the other
    arguments are those of `Outline`; embedding, norms, routers and head are never quantized, and
    what the checkpoint holds packed stays as it is.

    Raises `ModelError` when the checkpoint does not hold exactly this model.
    """

    def __init__(
        self,
        folder: Path,
        model: PreTrainedModel,
        dtype: torch.dtype,
        quantize: str | None = None,
        *,
        slice_bytes: int | None = None,
    ) -> None:
        self._checkpoint = Checkpoint(folder)
        self._sources = find_sources(model, self._checkpoint, wanted_tensors(model, dtype))
        stored = {name: source.packed for name, source in self._sources.items()}
        self._checked: set[int] = set()  # the units that were read once
        self.outline = Outline(model, dtype, quantize, stored, slice_bytes)
        self.layouts = self.outline.layouts
        self.layers = self.outline.layers  # the head's unit comes after those of all layers
        self._filled = [  # by each unit: its sources, and the fields that each of them fills
            [(self._source(part), tuple(part.tensors())) for part in parts]
            for parts in self.outline.parts
        ]

    def read(self, index: int, slab: Tensor) -> None:
        """Fill `slab` with unit `index`, straight from the file where dtypes agree."""
        views = self.layouts[index].views(slab)
        for source, fields in self._filled[index]:
            source.fill(*(views[field] for field in fields))
        if index not in self._checked:
            self._checked.add(index)
            for field, values in views.items():
                warn_unless_finite(
                    values, f"{self._checkpoint.folder}: {self.layouts[index].name}.{field}"
                )

    def other(self) -> dict[str, OtherTensor]:
        """Return the tensors of no unit (embedding, final norm) by their full names.

        Matrices whose stored dtype is the wanted one stay in their file: their rows are read when
        they are needed, and cost no memory of the process.
        """
        other = self.outline.other_tensors
        return {name: self._load(name, self._sources[name], *spec) for name, spec in other.items()}

    def close(self) -> None:
        """Close the files. Rows of a matrix that `other` left in its file cannot be read then."""
        self._checkpoint.close()

    def _load(
        self, name: str, source: Source, dtype: torch.dtype, shape: tuple[int, ...]
    ) -> OtherTensor:
        if source.is_plain and source.parts[0].dtype == dtype and len(shape) == 2:
            return StoredRows(self._checkpoint, source.parts[0])
        out = torch.empty(shape, dtype=dtype)
        source.fill(out)
        warn_unless_finite(out, f"{self._checkpoint.folder}: {name}")
        return out

    def _source(self, part: Part) -> Source:
        """Return the source that fills the fields of a part."""
        source = self._sources[part.name]
        if part.held is not None:
            source = excerpt(source, part.held)
        if part.quantization is not None and part.quantized:
            source = quantized(source, part.dtype, part.quantization.quantize)
        return source
