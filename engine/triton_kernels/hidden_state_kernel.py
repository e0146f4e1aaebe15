"""Kernels over the rows of a hidden state. `hidden_state` launches them."""

import triton.language as tl

from engine.triton_kernels.compiler import kernel


@kernel(aligned=("rows", "update", "out"))
def update_rows(
    rows: tl.tensor,
    update: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    num_rows: tl.tensor,
    width: tl.tensor,
    num_parts: tl.tensor,
    epsilon: tl.tensor,
    offset: tl.tensor,
    HAS_UPDATE: tl.constexpr,
    HAS_NORM: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """Add the sum of parts to a row, and write the row divided by its root mean square.

    Args:
        rows: [num_rows, width]; sums are written to them.
        update: [num_parts, num_rows, width].
        weight: [width]; the quotient is multiplied with it, after `offset` was added.
        out: [num_rows, width].
    """
    start = tl.program_id(0).to(tl.int64) * width
    column = tl.arange(0, WIDTH)
    is_there = column < width
    values = tl.load(rows + start + column, mask=is_there, other=0.0)
    if HAS_UPDATE:
        added = tl.zeros((WIDTH,), tl.float32)
        for part in range(num_parts):
            own = update + part * num_rows.to(tl.int64) * width + start
            added += tl.load(own + column, mask=is_there, other=0.0).to(tl.float32)
        # Both are rounded to the type of the rows, as torch rounds results.
        added = added.to(rows.dtype.element_ty).to(tl.float32)
        values = (values.to(tl.float32) + added).to(rows.dtype.element_ty)
        tl.store(rows + start + column, values, mask=is_there)
    if HAS_NORM:
        exact = values.to(tl.float32)
        mean = tl.sum(exact * exact, 0) / width
        factor = tl.load(weight + column, mask=is_there, other=0.0).to(tl.float32) + offset
        normal = exact * tl.rsqrt(mean + epsilon) * factor
        tl.store(out + start + column, normal.to(out.dtype.element_ty), mask=is_there)
