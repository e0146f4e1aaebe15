"""The tokens of a long row whose noise is large, found without computing the noise of all.

The noise of a token grows with its random bits (`engine/sampling/noise.py`), so bits are compared
with a threshold as integers, and logarithms are taken of the few tokens that pass.
"""

import numpy as np
import torch
from torch import Tensor

from engine.sampling.noise import GAMMA, MIX_1, MIX_2, bits

DRAWN_AT_ONCE = 2**20  # numbers: bounds the memory of many streams
CACHED = 2**14  # numbers drawn at once on the host

_SIGN = -(2**63)


def find_rare(streams: Tensor, num_tokens: int, needed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the (stream, token) pairs, int64, whose noise may reach what their block needs.

    All pairs with as much noise are found, and a few that have a little less.

    Args:
        streams: R streams (`streams_of`), int64.
        num_tokens: tokens of each stream, in N equal blocks.
        needed: [R, N] float64, the noise that matters in each block; NaN stands for more than any.
    """
    # Slightly less, for the rounding of the logarithms; the largest number there is, at most.
    least = needed.neg().exp_().neg_().exp_().mul_(2.0**53 * (1 - 1e-12))
    least = least.nan_to_num_(nan=2.0**53).clamp_(max=2.0**53 - 1).to(torch.int64)
    least.bitwise_left_shift_(11)
    # numpy reads a CPU's memory only; it shifts and compares unsigned numbers in half the time.
    find = _find_on_host if streams.device.type == "cpu" else _find
    return find(streams, least, num_tokens // least.shape[-1])


def _find(streams: Tensor, least: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the pairs whose bits are at least `least` [R, N], as unsigned numbers.

    `size` is the number of tokens in a block.
    """
    blocks = least.shape[-1]
    tokens, floors = torch.arange(blocks * size, device=streams.device), least ^ _SIGN
    step = max(1, DRAWN_AT_ONCE // len(tokens))
    found = []
    for first in range(0, len(streams), step):
        drawn = bits(streams[first : first + step, None], tokens).bitwise_xor_(_SIGN)
        above = drawn.view(-1, blocks, size) >= floors[first : first + step, :, None]
        row, token = above.flatten(1).nonzero(as_tuple=True)
        found.append((row + first, token))
    return torch.cat([row for row, _ in found]), torch.cat([token for _, token in found])


def _find_on_host(streams: Tensor, least: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Do the same in numpy, which shifts and compares unsigned numbers in half the time.

    SplitMix64's last step leaves the upper 31 bits alone, so it is left out and only they are
    compared. Few tokens are drawn at a time, so that the numbers stay in the processor's cache.
    """
    floors = least.numpy().view(np.uint64)[..., None] >> 33 << 33
    starts = streams.numpy().view(np.uint64)[:, None]
    num_rows, num_blocks = least.shape
    found = np.empty((num_rows, num_blocks, size), dtype=np.bool_)
    width = min(num_blocks, max(1, CACHED // size))  # blocks at once, of `height` rows
    height = max(1, CACHED // (width * size))
    for first in range(0, num_blocks, width):
        last = min(first + width, num_blocks)
        steps = np.arange(first * size + 1, last * size + 1, dtype=np.uint64) * GAMMA
        for above in range(0, num_rows, height):
            state = starts[above : above + height] + steps
            shifted = state >> 30
            state ^= shifted
            state *= MIX_1
            np.right_shift(state, 27, out=shifted)
            state ^= shifted
            state *= MIX_2
            own = np.s_[above : above + height, first:last]
            np.greater_equal(state.reshape(-1, last - first, size), floors[own], out=found[own])
    row, token = np.divmod(np.flatnonzero(found), num_blocks * size)
    return torch.from_numpy(row), torch.from_numpy(token)
