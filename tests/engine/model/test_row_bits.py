"""Tests that rows of products keep their bits, and that it is seen where they do not."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.model import row_bits
from engine.model.row_bits import threads_that_keep_bits
from engine.spec import TILE

linear = F.linear  # which tests replace

# Rows of 30 and 513 elements, and one output, were once rounded by their place.
SIZES = [(30, 8), (513, 1), (512, 1), (513, 64), (1024, 37), (1024, 1000)]
EXACT_ON_EVERY_PROCESSOR = """
import torch
from engine.model.row_bits import threads_that_keep_bits
for dtype in (torch.float32, torch.bfloat16):
    before = torch.get_num_threads()
    print(threads_that_keep_bits(12, dtype), torch.get_num_threads() == before)
"""


@pytest.mark.parametrize("threads", [1, 2, 3, 7, 12, 16])
def test_a_row_of_float32_has_the_same_bits_at_every_place(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for width, outputs in SIZES:
            row, weights = torch.randn(1, width), torch.randn(outputs, width)
            product = linear(row.expand(TILE, -1).contiguous(), weights)
            assert torch.equal(product, product[:1].expand_as(product)), (width, outputs)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("outputs", row_bits.OUTPUTS)
@pytest.mark.parametrize("width", row_bits.WIDTHS)
def test_one_row_of_one_product_that_is_rounded_otherwise_is_seen(
    width: int, outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 3 threads or more, sums of the last row go backwards in one of the products."""

    def spoiled(tile: Tensor, weights: Tensor) -> Tensor:
        product = linear(tile, weights)
        if torch.get_num_threads() > 2 and (outputs, width) == tuple(weights.shape):
            half = width // 2  # the other half cancels this one
            product[-1] = linear(tile[-1:, :half], weights[:, :half])[0]
            product[-1] += linear(tile[-1:, half:], weights[:, half:])[0]
        return product

    monkeypatch.setattr(F, "linear", spoiled)
    assert threads_that_keep_bits(4, torch.float32) == 2


@pytest.mark.slow
@pytest.mark.parametrize("processor", ["AVX2", "AVX512_CORE", "AVX512_CORE_BF16"])
def test_a_number_of_threads_is_found_for_older_processors(processor: str) -> None:
    """Those with AVX-512 but without bfloat16 need a power of two."""
    done = subprocess.run(
        [sys.executable, "-c", EXACT_ON_EVERY_PROCESSOR],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": processor},
        capture_output=True,
        text=True,
        check=True,
    )
    exact, halves = done.stdout.split("\n")[:2]
    assert exact == "12 True"
    assert halves in ("8 True", "12 True")
