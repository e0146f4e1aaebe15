"""Products with the weights of a 7 B model, each against the time of reading the weight's bytes.

Dense bfloat16 products serve the target; the 4-bit layers that the engine has serve the draft.
Every kernel of `available_kernels` is measured as the engine calls it, so that a new one needs no
change here, and the library's own int4 product beside it.
"""

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.first_gpu_run.lab import Lab, differing_rows, gbps, relative_error, us
from benchmarks.first_gpu_run.record import Results
from engine.weights.formats import int4
from engine.weights.formats.linear import available_kernels, substitute, supports

DENSE_ROWS = (1, 6, 64, 256)
DRAFT_ROWS = (1, 2, 6, 16, 32, 48, 64)
GROUPS = (32, 64)
INNER_TILES = 8  # of 16 inputs that one load of the library's CUDA kernel takes


def run(lab: Lab, out: Results) -> None:
    """Measure every kernel with every shape, the layers' shapes first."""
    bandwidth = lab.memory_bandwidth()
    out["memory_gbps"] = gbps(bandwidth, 1.0)
    for name, (outputs, inputs) in lab.products.items():
        weight = lab.random(outputs, inputs, scale=0.02)
        dense = nn.Linear(inputs, outputs, bias=False, device="meta", dtype=weight.dtype)
        dense.load_state_dict({"weight": weight}, assign=True)
        many = lab.random(max(DENSE_ROWS), inputs)
        out[f"bfloat16, {name}"] = _measure(lab, dense, many, bandwidth, DENSE_ROWS, dense)
        for label, layer in _draft_layers(lab, weight):
            out[f"{label}, {name}"] = _measure(lab, layer, many, bandwidth, DRAFT_ROWS, dense)


def _draft_layers(lab: Lab, weight: Tensor) -> Iterator[tuple[str, nn.Module]]:
    """Yield the name and the layer of each 4-bit form of a weight that the device supports."""
    outputs, inputs = weight.shape
    for group in GROUPS:
        for kernel in available_kernels():
            if supports(inputs, outputs, group, lab.device, kernel):
                layer = substitute(weight, None, group, lab.device, kernel)
                yield f"{kernel} in groups of {group}", layer
        if supports(inputs, outputs, group, lab.device, "int4"):
            yield f"library's int4 in groups of {group}", _LibraryInt4(weight, group)


class _LibraryInt4(nn.Module):
    """A layer that calls torch's int4 product, whichever one the engine takes."""

    codes: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor, group: int) -> None:
        super().__init__()
        self._group = group
        shapes = int4.packed_tensors("", tuple(weight.shape), group)
        fields = [torch.empty(s, dtype=d, device=weight.device) for d, s in shapes.values()]
        pairs, scales = fields
        int4.quantize(weight, pairs, scales)
        if weight.is_cuda:
            codes = torch._convert_weight_to_int4pack(pairs, INNER_TILES)
        else:  # the CPU's function takes single codes
            single = torch.stack([pairs >> 4, pairs & 15], dim=-1).flatten(1).int()
            codes = torch._convert_weight_to_int4pack_for_cpu(single, 1)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the product of rows [R, in], [R, out]."""
        kernel = torch._weight_int4pack_mm
        if not rows.is_cuda:
            kernel = torch._weight_int4pack_mm_for_cpu
        found: Tensor = kernel(rows, self.codes, self._group, self.scales)
        return found


def _measure(
    lab: Lab,
    layer: nn.Module,
    many: Tensor,
    bandwidth: float,
    counts: tuple[int, ...],
    dense: nn.Module,
) -> dict[str, Any]:
    """Return times by rows, and whether rows keep their bits beside others."""
    nbytes = sum(own.nbytes for own in layer.state_dict().values())
    layers = [layer, *(copy.deepcopy(layer) for _ in range(lab.copies(nbytes) - 1))]
    cells: dict[str, Any] = {"mb": round(nbytes / 1e6, 2)}
    alone = layer(many[:1].contiguous())
    for count in counts:
        lab.check()
        rows = many[:count].contiguous()
        seconds = lab.device_seconds([partial(own, rows) for own in layers])
        found = layer(rows)
        order = torch.randperm(count, device=lab.device)
        moved = layer(rows[order].contiguous())
        cells[f"{count} rows"] = {
            "us": us(seconds),
            "gbps": gbps(nbytes, seconds),
            "of_reading": round(seconds * bandwidth / nbytes, 3),
            "error": round(relative_error(found, dense(rows)), 5),
            "moved_rows_that_differ": int(differing_rows(moved, found[order])),
            "first_row_as_alone": not int(differing_rows(found[:1], alone)),
        }
    return cells
