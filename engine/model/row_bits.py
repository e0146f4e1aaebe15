"""How many threads compute products whose rows have the same bits at every place in a tile.

Strict numerics compute rows in tiles, and a row of a product may be at any place in its tile.
Libraries cut a product into parts for their threads. Where a part has an uneven number of rows,
some add up the last ones in another order: oneDNN does so for bfloat16 on a CPU with AVX-512 that
has no instructions for it, with 3, 6 and 12 threads, but not with powers of two.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.spec import TILE

# Inner and outer widths of the products that are tried: libraries cut them in different ways.
WIDTHS = (256, 2048)
OUTPUTS = (1, 8, 64, 512, 2048)


def threads_that_keep_bits(most: int, dtype: torch.dtype) -> int:
    """Return the largest number of threads, up to `most`, with which rows keep their bits.

    A model that computes in `dtype` also has products in float32. With one thread there are no
    parts, and nothing is tried.
    """
    before = torch.get_num_threads()
    try:
        for threads in range(most, 1, -1):
            torch.set_num_threads(threads)
            if all(_keeps_bits(kind) for kind in {dtype, torch.float32}):
                return threads
        return 1
    finally:
        torch.set_num_threads(before)


def _keeps_bits(dtype: torch.dtype) -> bool:
    """Return whether one row, at all places of a tile, has equal products."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    for width in WIDTHS:
        # The sum of these products is zero but for rounding, which another order would change.
        row, weights = random(width // 2), random(max(OUTPUTS), width // 2)
        tile = torch.cat([row, -row]).expand(TILE, -1).contiguous()
        weights = torch.cat([weights, weights], dim=1)
        for outputs in OUTPUTS:
            product = F.linear(tile, weights[:outputs])
            if not torch.equal(product, product[:1].expand_as(product)):
                return False
    return True
