"""Whether the bits of a matrix product's row depend on anything but the row and the weight.

Strict numerics rest on this; `benchmarks.row_bits` says in which circumstances products are
compared. With the part "columns": whether the bits survive when the outputs are split over several
devices.
"""

import torch
from torch.nn import functional as F

from benchmarks.first_gpu_run.lab import Lab, differing_rows
from benchmarks.first_gpu_run.record import Results
from benchmarks.first_gpu_run.stages import FULL_SUMS
from benchmarks.row_bits import linear, measure, products

TILES = (64, 256)
PARTS = (2, 3, 4)  # devices that share the outputs


def run(lab: Lab, out: Results) -> None:
    """Compare rows, or columns, of products of 7 B shapes."""
    if lab.part == "columns":
        _compare_columns(lab, out)
        return
    _compare_rows(lab, out, torch.bfloat16)
    if not lab.is_dry:
        matmul = torch.backends.cuda.matmul
        matmul.allow_bf16_reduced_precision_reduction = False
        _compare_rows(lab, out, torch.bfloat16, FULL_SUMS)
        matmul.allow_bf16_reduced_precision_reduction = True
    _compare_rows(lab, out, torch.float32)
    _compare_rows(lab, out, torch.float16)


def _compare_rows(lab: Lab, out: Results, dtype: torch.dtype, note: str = "") -> None:
    for name, weight, bias in products(lab.device, lab.products, (dtype,)):
        for count in TILES:
            lab.check()
            found = measure(linear, name, weight, bias, count)
            out[f"{name}{note}, {count} rows"] = {
                "holds": found.holds,
                "rows_that_differ": {case: n for case, n in found.changed.items() if n},
            }


def _compare_columns(lab: Lab, out: Results) -> None:
    for name, weight, _ in products(lab.device, lab.products, (torch.bfloat16, torch.float32)):
        for count in TILES:
            lab.check()
            rows = lab.random(count, weight.shape[1], dtype=weight.dtype)
            whole = F.linear(rows, weight)
            differ: dict[str, int] = {}
            for parts in PARTS:
                pieces = [F.linear(rows, own.clone()) for own in weight.tensor_split(parts)]
                columns = int(differing_rows(torch.cat(pieces, 1).T, whole.T))
                differ |= {f"{parts} parts": columns} if columns else {}
            out[f"{name}, {count} rows"] = {"holds": not differ, "columns_that_differ": differ}
