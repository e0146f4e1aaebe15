"""Weights that stay on the device, such as a draft model's, and expansion of packed weights."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from engine.messages import LoadProgress, ReportProgress
from engine.model.binder import bind
from engine.model.borrowed import Weights
from engine.streaming.ring import OnWait
from engine.weights.layout import LayerUnits, UnitLayout, UnitReader
from engine.weights.outline import decoder_layers
from engine.weights.packing import dense_layout, expand


def bind_resident(
    model: Any,
    reader: UnitReader,
    device: torch.device,
    progress: ReportProgress,
) -> None:
    """Load all layers and the head of a model onto the device, and bind them to its modules.

    The units must have no packed tensors.

    `progress` is called after each unit with the bytes loaded so far and the bytes of all units.
    """
    modules = [*decoder_layers(model), model.get_output_embeddings()]
    total = sum(layout.nbytes for layout in reader.layouts)
    done = 0
    for index, (module, layout) in enumerate(zip(modules, reader.layouts, strict=True)):
        bind(module, _load(reader, index, device))
        done += layout.nbytes
        progress(LoadProgress("loading the draft", done, total))


def _load(reader: UnitReader, index: int, device: torch.device) -> dict[str, Tensor]:
    """Return the tensors of one unit, by name, in newly allocated device memory."""
    layout = reader.layouts[index]
    buffer = torch.empty(layout.nbytes, dtype=torch.uint8)
    reader.read(index, buffer)
    return layout.views(buffer.to(device))


class ExpandedWeights:
    """Weights that are stored packed and expanded into a scratch buffer while they are borrowed.

    One buffer serves all units, since only the parts of one layer are borrowed at a time. Layers
    get dense tensors, so they need no code for packed formats.
    """

    def __init__(
        self,
        packed: Weights,
        reader: UnitReader,
        layers: Sequence[LayerUnits],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._packed = packed
        self._dense = [dense_layout(layout, dtype) for layout in reader.layouts]
        self._offsets = _scratch_offsets(self._dense, layers)
        nbytes = expanded_bytes(reader, layers, dtype)
        self._scratch = torch.empty(nbytes, dtype=torch.uint8, device=device)

    @contextmanager
    def unit(self, index: int, on_wait: OnWait | None = None) -> Iterator[Mapping[str, Tensor]]:
        with self._packed.unit(index, on_wait) as views:
            scratch = self._scratch[self._offsets[index] :]
            yield expand(views, self._dense[index].views(scratch))


def expanded_bytes(reader: UnitReader, layers: Sequence[LayerUnits], dtype: torch.dtype) -> int:
    """Return the bytes of the scratch buffer of `ExpandedWeights`; 0 if no tensor is packed."""
    dense = [dense_layout(layout, dtype) for layout in reader.layouts]
    offsets = _scratch_offsets(dense, layers)
    return max(offset + own.nbytes for offset, own in zip(offsets, dense, strict=True))


def _scratch_offsets(dense: Sequence[UnitLayout], layers: Sequence[LayerUnits]) -> list[int]:
    """Return where each unit is expanded: the parts of a layer after each other."""
    offsets = [0] * len(dense)
    for layer in layers:
        for before, unit in pairwise(layer.parts):
            offsets[unit] = offsets[before] + dense[before].nbytes
    return offsets
