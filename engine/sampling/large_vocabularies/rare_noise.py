"""The tokens of a long row whose noise is large, found without computing the noise of all tokens.

The noise of a token increases with its random bits (`engine/sampling/noise.py`). So bits are
compared with a threshold as integers, and logarithms are computed only for the few tokens above it.
"""

import numpy as np
import torch
from torch import Tensor

from engine.sampling.noise import GAMMA, MAX_NUMBERS, MIX_1, MIX_2, bits

MAX_HOST_NUMBERS = 2**14  # drawn at a time on the host: they fit into the processor's cache

_SIGN = -(2**63)


def find_rare(streams: Tensor, num_tokens: int, needed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the (row, token) pairs, int64, whose noise may be at least that needed in their block.

    All such pairs are returned, and a few with slightly less noise.

    Args:
        streams: the streams of R rows (`make_streams`), int64.
        num_tokens: the tokens of each row, in N equal blocks.
        needed: the needed noise of each block, [R, N] float64; NaN means more than is possible.
    """
    # The threshold is slightly lower than needed, because logarithms are rounded, and at most the
    # largest number that can be drawn.
    least = needed.neg().exp_().neg_().exp_().mul_(2.0**53 * (1 - 1e-12))
    least = least.nan_to_num_(nan=2.0**53).clamp_(max=2.0**53 - 1).to(torch.int64)
    least.bitwise_left_shift_(11)
    # numpy can only read CPU memory. It takes half of torch's time for unsigned numbers.
    find = _find_on_host if streams.device.type == "cpu" else _find
    return find(streams, least, num_tokens // least.shape[-1])


def _find(streams: Tensor, least: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the pairs whose bits, as unsigned numbers, are at least `least` [R, N].

    `size` is the number of tokens per block.
    """
    blocks = least.shape[-1]
    tokens, floors = torch.arange(blocks * size, device=streams.device), least ^ _SIGN
    step = max(1, MAX_NUMBERS // len(tokens))
    found = []
    for first in range(0, len(streams), step):
        drawn = bits(streams[first : first + step, None], tokens).bitwise_xor_(_SIGN)
        above = drawn.view(-1, blocks, size) >= floors[first : first + step, :, None]
        row, token = above.flatten(1).nonzero(as_tuple=True)
        found.append((row + first, token))
    return torch.cat([row for row, _ in found]), torch.cat([token for _, token in found])


def _find_on_host(streams: Tensor, least: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Do the same as `_find` with numpy, which takes half the time for unsigned numbers.

    The last step of SplitMix64 does not change the upper 31 bits, so it is left out and only these
    bits are compared. Few tokens are drawn at a time, so that the numbers stay in the processor's
    cache.
    """
    floors = least.numpy().view(np.uint64)[..., None] >> 33 << 33
    starts = streams.numpy().view(np.uint64)[:, None]
    num_rows, num_blocks = least.shape
    found = np.empty((num_rows, num_blocks, size), dtype=np.bool_)
    width = min(num_blocks, max(1, MAX_HOST_NUMBERS // size))  # blocks at a time, of `height` rows
    height = max(1, MAX_HOST_NUMBERS // (width * size))
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
