"""Units that stay on the device, as a draft's do, and dense views of packed units."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from engine.messages import ReportProgress
from engine.model.decoder import Weights
from engine.model.library import bind
from engine.streaming.ring import Idle
from engine.weights.layout import UnitReader
from engine.weights.packing import dense_layout, expand


def bind_resident(
    model: Any,
    reader: UnitReader,
    device: torch.device,
    dtype: torch.dtype,
    progress: ReportProgress,
) -> None:
    """Load all units of a model onto the device and bind them to its modules."""
    modules = [*model.get_decoder().layers, model.get_output_embeddings()]
    total = sum(layout.nbytes for layout in reader.layouts)
    done = 0
    for index, (module, layout) in enumerate(zip(modules, reader.layouts, strict=True)):
        bind(module, _dense(reader, index, device, dtype))
        done += layout.nbytes
        progress("loading the draft", done, total)


def _dense(
    reader: UnitReader, index: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return one unit's dense tensors on the device, in memory of their own."""
    layout = reader.layouts[index]
    slab = torch.empty(layout.nbytes, dtype=torch.uint8)
    reader.read(index, slab)
    views = layout.views(slab.to(device))
    dense = dense_layout(layout, dtype)
    return expand(views, dense.views(torch.empty(dense.nbytes, dtype=torch.uint8, device=device)))


class Expanded:
    """Weights whose packed tensors are expanded into one scratch slab while a unit is borrowed.

    The layer sees dense weights only, so it stays the library's own.
    """

    def __init__(
        self, packed: Weights, reader: UnitReader, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._packed = packed
        self._dense = [dense_layout(layout, dtype) for layout in reader.layouts]
        nbytes = max(layout.nbytes for layout in self._dense)
        self._scratch = torch.empty(nbytes, dtype=torch.uint8, device=device)

    @contextmanager
    def unit(self, index: int, idle: Idle | None = None) -> Iterator[Mapping[str, Tensor]]:
        with self._packed.unit(index, idle) as views:
            yield expand(views, self._dense[index].views(self._scratch))


def expanded_bytes(reader: UnitReader, dtype: torch.dtype) -> int:
    """Return the bytes of the scratch slab of `Expanded`, 0 where nothing is packed."""
    return max(dense_layout(layout, dtype).nbytes for layout in reader.layouts)
