"""Elementwise functions whose result for a row does not depend on the row's place in the tile.

On the CPU torch cuts an elementwise operation into equal pieces, one for each thread. The elements
that a piece has beyond whole vector blocks run through a scalar function. For silu, sigmoid,
softplus and the tanh form of gelu that function rounds otherwise than the vector one: for 2 to 22 %
of float32 values, and of the 65,280 finite bfloat16 values for 4 (gelu). Here every piece has whole
blocks, so no element meets the scalar function.
"""

from collections.abc import Callable
from math import ceil, lcm

import torch
from torch import Tensor
from torch.nn import functional as F

# torch makes min(threads, ceil(elements / PIECE)) pieces (its GRAIN_SIZE); of gelu, where there are
# more than 16,384 elements, as many as there are threads.
PIECE = 32768
# A multiple of what one step of torch's vector loop takes: 64 bfloat16 values with AVX-512.
BLOCK = 64


def apply_in_blocks(function: Callable[[Tensor], Tensor], x: Tensor, *, inputs: int = 1) -> Tensor:
    """Return `function(x)`, computed in pieces of whole blocks where the CPU computes it.

    Args:
        x: [..., W * inputs].
        function: makes each element of [..., W] from `inputs` neighbours of the last dimension.
    """
    if x.device.type != "cpu":
        return function(x)
    size = x.numel() // inputs
    padding = _size_in_blocks(size, torch.get_num_threads()) - size
    # Rows that do not adjoin in memory are computed one by one: each must have whole blocks.
    rows_have_blocks = x.stride(-1) == 1 and x.shape[-1] % (BLOCK * inputs) == 0
    if not padding and (rows_have_blocks or x.is_contiguous()):
        return function(x)
    flat = F.pad(x.reshape(-1), (0, padding * inputs))
    return function(flat)[:size].view(*x.shape[:-1], x.shape[-1] // inputs)


def _size_in_blocks(size: int, threads: int) -> int:
    """Return the number of elements, `size` or more, all of whose pieces have whole blocks."""
    while True:
        pieces = min(threads, ceil(size / PIECE))
        missing = -size % (BLOCK * lcm(pieces, threads))
        if not missing:
            return size
        size += missing
