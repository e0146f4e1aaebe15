"""The property of CUDA's products on which strict numerics rest, at the shapes of a 7 B model.

If it does not hold, the message names the circumstances in which rows changed their bits.
`python -m benchmarks.row_bits` prints the same for all products.
"""

import pytest
import torch

from benchmarks.row_bits import DTYPES, SHAPES, linear, measure, products

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda", 0)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_of_a_tile_has_the_same_bits_in_all_circumstances(
    shape: str, dtype: torch.dtype
) -> None:
    found = [
        measure(linear, name, weight, bias)
        for name, weight, bias in products(CUDA, {shape: SHAPES[shape]}, (dtype,))
    ]
    assert all(own.holds for own in found), "\n".join(map(str, found))
