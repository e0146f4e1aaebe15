"""Whether the bits of a matrix product's row depend on anything but the row and the weight.

Strict numerics rest on this: a row's bits must depend neither on its place, nor on the other rows,
nor on the memory where rows and weights lie, nor on other work, a stream or a graph. With the part
"columns": whether the bits survive when the outputs are split over several devices.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.first_gpu_run.lab import Lab, differing_rows
from benchmarks.first_gpu_run.record import Results
from benchmarks.first_gpu_run.stages import FULL_SUMS

TILES = (64, 256)
DTYPES = (torch.bfloat16, torch.float32)
SHIFTS = (256, 16)  # bytes by which memory begins later: libraries choose kernels by alignment
PARTS = (2, 3, 4)  # devices that share the outputs


def run(lab: Lab, out: Results) -> None:
    """Compare rows, or columns, of products of 7 B shapes."""
    if lab.part == "columns":
        _compare_columns(lab, out)
        return
    _compare_rows(lab, out, torch.bfloat16, biased=(False, True))
    if not lab.is_dry:
        matmul = torch.backends.cuda.matmul
        matmul.allow_bf16_reduced_precision_reduction = False
        _compare_rows(lab, out, torch.bfloat16, biased=(False,), note=FULL_SUMS)
        matmul.allow_bf16_reduced_precision_reduction = True
    _compare_rows(lab, out, torch.float32, biased=(False,))


def _compare_rows(
    lab: Lab, out: Results, dtype: torch.dtype, *, biased: tuple[bool, ...], note: str = ""
) -> None:
    for name, (outputs, inputs) in lab.products.items():
        weight = lab.random(outputs, inputs, dtype=dtype, scale=0.02)
        for has_bias in biased:
            bias = lab.random(outputs, dtype=dtype) if has_bias else None
            for count in TILES:
                lab.check()
                kind = f"{str(dtype)[6:]}, {name}{', bias' if has_bias else ''}{note}"
                out[f"{kind}, {count} rows"] = compare_tile(lab, weight, bias, count)


def compare_tile(lab: Lab, weight: Tensor, bias: Tensor | None, count: int) -> dict[str, Any]:
    """Return in which cases how many of `count` rows differ from their bits in one product."""
    inputs = lab.random(count, weight.shape[1], dtype=weight.dtype)
    base = F.linear(inputs, weight, bias)
    found = {"again": differing_rows(F.linear(inputs, weight, bias), base)}
    for number in range(3):
        order = torch.randperm(count, device=lab.device)
        moved = F.linear(inputs[order].contiguous(), weight, bias)
        found[f"permuted {number}"] = differing_rows(moved, base[order])
    chosen = sorted({0, 1, 15, 16, 31, count // 2, count - 1})
    kept = torch.tensor(chosen, device=lab.device)
    others = {
        "random": lab.random(*inputs.shape, dtype=weight.dtype),
        "zero": torch.zeros_like(inputs),
        "large": lab.random(*inputs.shape, dtype=weight.dtype, scale=1e3),
    }
    for name, rows in others.items():
        rows[kept] = inputs[kept]
        found[f"beside {name} rows"] = differing_rows(
            F.linear(rows, weight, bias)[kept], base[kept]
        )
    for shift in SHIFTS:
        elsewhere = F.linear(inputs, _shifted(weight, shift), bias)
        found[f"weight {shift} B later"] = differing_rows(elsewhere, base)
        elsewhere = F.linear(_shifted(inputs, shift), weight, bias)
        found[f"rows {shift} B later"] = differing_rows(elsewhere, base)
    if not lab.is_dry:
        found |= _beside_other_work(lab, weight, bias, inputs, base)
    numbers = torch.stack(list(found.values())).tolist()
    differ = {name: number for name, number in zip(found, numbers, strict=True) if number}
    return {"holds": not differ, "rows_that_differ": differ}


def _shifted(tensor: Tensor, nbytes: int) -> Tensor:
    """Return a copy that begins `nbytes` after the start of an allocation."""
    ahead = nbytes // tensor.element_size()
    room = torch.empty(tensor.numel() + ahead, dtype=tensor.dtype, device=tensor.device)
    return room[ahead:].view(tensor.shape).copy_(tensor)


def _beside_other_work(
    lab: Lab, weight: Tensor, bias: Tensor | None, inputs: Tensor, base: Tensor
) -> dict[str, Tensor]:
    """Return how many rows differ beside other kernels, on another stream, and in a graph."""
    other, mine = lab.stream(), lab.stream()
    square = lab.random(4096, 4096)
    lab.synchronize()
    with lab.on(other):
        for _ in range(6):
            square @ square
    with lab.on(mine):
        busy = F.linear(inputs, weight, bias)
    lab.synchronize()
    with lab.on(mine):
        idle = F.linear(inputs, weight, bias)
    lab.synchronize()
    captured: list[Tensor] = []
    replay = lab.capture([lambda: captured.append(F.linear(inputs, weight, bias))])
    replay()
    lab.synchronize()
    return {
        "busy device, other stream": differing_rows(busy, base),
        "idle device, other stream": differing_rows(idle, base),
        "in a graph": differing_rows(captured[-1], base),
    }


def _compare_columns(lab: Lab, out: Results) -> None:
    for dtype in DTYPES:
        for name, (outputs, inputs) in lab.products.items():
            weight = lab.random(outputs, inputs, dtype=dtype, scale=0.02)
            for count in TILES:
                lab.check()
                rows = lab.random(count, inputs, dtype=dtype)
                whole = F.linear(rows, weight)
                differ: dict[str, int] = {}
                for parts in PARTS:
                    pieces = [F.linear(rows, own.clone()) for own in weight.tensor_split(parts)]
                    columns = int(differing_rows(torch.cat(pieces, 1).T, whole.T))
                    differ |= {f"{parts} parts": columns} if columns else {}
                key = f"{str(dtype)[6:]}, {name}, {count} rows"
                out[key] = {"holds": not differ, "columns_that_differ": differ}
