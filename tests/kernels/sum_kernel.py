"""A kernel for the tests of how kernels are compiled. Test functions import it."""

import triton.language as tl

from engine.triton_kernels.compiler import kernel


@kernel(aligned=("left", "right", "out"))
def add_products(
    left: tl.tensor, right: tl.tensor, out: tl.tensor, count: tl.tensor, SIZE: tl.constexpr
) -> None:
    """Write the sum of as many products of two matrices as `count` points to."""
    row, column = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    place = row * SIZE + column
    found = tl.zeros((SIZE, SIZE), tl.float32)
    for _ in range(tl.load(count)):
        found += tl.dot(tl.load(left + place), tl.load(right + place), input_precision="ieee")
    tl.store(out + place, found)
