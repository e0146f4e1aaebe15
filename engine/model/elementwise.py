"""Elementwise functions whose result for a row does not depend on the row's place in the tile.

On the CPU, PyTorch splits an elementwise operation into equal pieces, one for each thread. The last
elements of a piece, which do not fill a vector block, are computed by a scalar function. For silu,
sigmoid, softplus and the tanh form of gelu, that function rounds differently from the vector
function: for 2 to 22 % of float32 values, and for 4 of the 65,280 finite bfloat16 values (gelu).
Here every piece consists of whole blocks, so the scalar function is never used.
"""

from collections.abc import Callable
from math import ceil, lcm

import torch
from torch import Tensor
from torch.nn import functional as F

# PyTorch makes min(threads, ceil(elements / PIECE)) pieces (its GRAIN_SIZE). For gelu with more
# than 16,384 elements, it makes one piece per thread.
PIECE = 32768
# A multiple of the elements that one step of PyTorch's vector loop takes: 64 bfloat16 values with
# AVX-512.
BLOCK = 64


def apply_in_blocks(function: Callable[[Tensor], Tensor], x: Tensor, *, inputs: int = 1) -> Tensor:
    """Return `function(x)` [..., W], computed in pieces of whole blocks if `x` is on the CPU.

    Args:
        function: computes each element of its result from `inputs` neighbouring elements of the
            last dimension of its argument.
        x: [..., W * inputs].
        inputs: the number of input elements for each output element.
    """
    if x.device.type != "cpu":
        return function(x)
    size = x.numel() // inputs
    padding = _size_in_blocks(size, torch.get_num_threads()) - size
    # Rows that are not contiguous in memory are computed one by one: each must have whole blocks.
    rows_have_blocks = x.stride(-1) == 1 and x.shape[-1] % (BLOCK * inputs) == 0
    if not padding and (rows_have_blocks or x.is_contiguous()):
        return function(x)
    flat = F.pad(x.reshape(-1), (0, padding * inputs))
    return function(flat)[:size].view(*x.shape[:-1], x.shape[-1] // inputs)


def _size_in_blocks(size: int, threads: int) -> int:
    """Return the smallest number from `size` on for which all pieces consist of whole blocks."""
    while True:
        pieces = min(threads, ceil(size / PIECE))
        missing = -size % (BLOCK * lcm(pieces, threads))
        if not missing:
            return size
        size += missing
