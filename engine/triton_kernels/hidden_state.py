"""Sums and norms of the rows of a hidden state, each by one kernel."""

from typing import Any

import torch
from torch import Tensor

WIDEST = 1 << 13  # a program has a whole row in its registers


def normalize(rows: Tensor, weight: Tensor, epsilon: float, offset: float) -> Tensor:
    """Return rows [R, D] divided by their root mean square, times `weight` [D] + `offset`."""
    out = torch.empty_like(rows)
    _launch(rows, None, weight, out, epsilon, offset)
    return out


def add_and_normalize(
    rows: Tensor, update: Tensor, weight: Tensor, epsilon: float, offset: float
) -> Tensor:
    """Add the sum of parts [P, R, D] to `rows`, in place; return the sums as `normalize` does."""
    out = torch.empty_like(rows)
    _launch(rows, update, weight, out, epsilon, offset)
    return out


def add(rows: Tensor, update: Tensor) -> None:
    """Add the sum of parts [P, R, D] to `rows` [R, D], in place."""
    _launch(rows, update, None, rows, 0.0, 0.0)


def options(width: int) -> dict[str, int]:
    """Return how the kernel is compiled for rows of this width."""
    padded = 1 << (width - 1).bit_length()
    return {"WIDTH": padded, "num_warps": min(max(padded // 256, 1), 16), "num_stages": 1}


def _launch(
    rows: Tensor,
    update: Tensor | None,
    weight: Tensor | None,
    out: Tensor,
    epsilon: float,
    offset: float,
) -> None:
    from engine.triton_kernels import hidden_state_kernel

    num_rows, width = rows.shape
    assert rows.is_contiguous() and (update is None or update.is_contiguous())
    kernel: Any = hidden_state_kernel.update_rows
    kernel[(num_rows,)](
        rows,
        rows if update is None else update,
        rows if weight is None else weight,
        out,
        num_rows,
        width,
        0 if update is None else len(update),
        epsilon,
        offset,
        HAS_UPDATE=update is not None,
        HAS_NORM=weight is not None,
        **options(width),
    )
