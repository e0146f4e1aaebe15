"""Tests that the interpreter runs kernels, with a bound of a loop that is not constant."""

from typing import Any

import torch


def test_loops_with_bounds_of_the_data_and_products_run(dot_row_by_row: None) -> None:
    from tests.kernels import sum_kernel

    left, right = torch.randn(16, 16), torch.randn(16, 16)
    count = torch.tensor([3])
    out = torch.empty(16, 16)
    kernel: Any = sum_kernel.add_products
    kernel[(1,)](left, right, out, count, SIZE=16)
    wanted = torch.zeros(16, 16)
    for inner in range(16):
        wanted += left[:, inner, None] * right[inner]
    assert torch.equal(out, wanted + wanted + wanted)
