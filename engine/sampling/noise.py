"""Gumbel noise keyed by (seed, choice, position, token): random access, no generator state.

The token at a position is the argmax of log-probabilities plus this noise, which makes it a sample
of them (the Gumbel-max trick; Maddison et al., arXiv 1411.0030). Since the noise depends on
nothing but its key, draft and target meet the same noise at the same position, and an answer does
not depend on what else was drafted or batched.

The random bits are those of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014, "Fast splittable
pseudorandom number generators"): the stream of a position starts at a state mixed from seed,
choice and position; a token's bits are the token-th output of that stream. Integer operations
only, so bits and uniforms are the same on every device, and a golden vector holds them. The
float64 logarithms of two devices may differ in the last place; that could change a choice only
where two tokens differ by less than that, about once in 1e13.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Int64s = NDArray[np.int64]

GUMBEL_MAX = 36.75  # above -log(-log(1 - 2**-53)), the largest value there is

DRAWN_AT_ONCE = 2**20  # numbers: bounds the memory of many streams
CACHED = 2**14  # numbers drawn at once on the host

_MASK = 2**64 - 1
_LEAST = -(2**63)
_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def gumbel(seed: int, choice: int, position: int | Tensor, tokens: Tensor) -> Tensor:
    """Standard Gumbel noise, float64.

    `tokens` and `position` are int64 and broadcast: positions [R, 1] with tokens [V] give [R, V];
    positions [K] with tokens [K] give [K], one key each. Seed and choice are any integers.
    """
    positions = torch.as_tensor(position, dtype=torch.int64, device=tokens.device)
    return gumbel_of(uniform(stream(seed, choice, positions), tokens))


def gumbel_of(drawn: Tensor) -> Tensor:
    """The Gumbel noise of uniform numbers (float64). A larger number gives more noise."""
    return drawn.log().neg_().log_().neg_()


def uniform(streams: Tensor, tokens: Tensor) -> Tensor:
    """Uniform numbers strictly inside (0, 1), float64: multiples of 2**-53, with 2**-54 for 0.

    `streams` and `tokens` broadcast.
    """
    return _shift_right(bits(streams, tokens), 11).double().clamp_(min=0.5).mul_(2.0**-53)


def rare(streams: Tensor, num_tokens: int, needed: Tensor) -> tuple[Tensor, Tensor]:
    """The (stream, token) pairs, int64, whose noise may reach what their block of tokens needs.

    `needed` [R, N] is float64: for each of R streams and N equal blocks of its tokens, the noise
    that matters. All pairs with as much are found, with a few that have a little less; NaN asks
    for the impossible. What is found goes on to `uniform`: the few logarithms are all there are.
    """
    # Slightly less, for the rounding of the logarithms; the largest number there is, at most.
    least = needed.neg().exp_().neg_().exp_().mul_(2.0**53 * (1 - 1e-12))
    least = least.nan_to_num_(nan=2.0**53).clamp_(max=2.0**53 - 1).to(torch.int64)
    least.bitwise_left_shift_(11)
    find = _rare_on_host if streams.device.type == "cpu" else _rare
    return find(streams, least, num_tokens // least.shape[-1])


def _rare(streams: Tensor, least: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """`rare` for blocks of `size` tokens whose bits must be `least` [R, N] as unsigned numbers."""
    blocks = least.shape[-1]
    tokens, floors = torch.arange(blocks * size, device=streams.device), least ^ _LEAST
    step = max(1, DRAWN_AT_ONCE // len(tokens))
    found = []
    for first in range(0, len(streams), step):
        drawn = bits(streams[first : first + step, None], tokens).bitwise_xor_(_LEAST)
        above = drawn.view(-1, blocks, size) >= floors[first : first + step, :, None]
        row, token = above.flatten(1).nonzero(as_tuple=True)
        found.append((row + first, token))
    return torch.cat([row for row, _ in found]), torch.cat([token for _, token in found])


def _rare_on_host(streams: Tensor, least: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The same in numpy, which shifts and compares unsigned numbers: half the time.

    `_mix`'s last step leaves the upper 31 bits alone; only they are compared. A few tokens at a
    time, so that their numbers stay in the processor's cache.
    """
    floors = least.numpy().view(np.uint64)[..., None] >> 33 << 33
    starts = streams.numpy().view(np.uint64)[:, None]
    num_rows, num_blocks = least.shape
    found = np.empty((num_rows, num_blocks, size), dtype=np.bool_)
    width = min(num_blocks, max(1, CACHED // size))  # blocks at once, of so many rows:
    height = max(1, CACHED // (width * size))
    for first in range(0, num_blocks, width):
        last = min(first + width, num_blocks)
        steps = np.arange(first * size + 1, last * size + 1, dtype=np.uint64) * _GAMMA
        for above in range(0, num_rows, height):
            state = starts[above : above + height] + steps
            shifted = state >> 30
            state ^= shifted
            state *= _MIX_1
            np.right_shift(state, 27, out=shifted)
            state ^= shifted
            state *= _MIX_2
            own = np.s_[above : above + height, first:last]
            np.greater_equal(state.reshape(-1, last - first, size), floors[own], out=found[own])
    row, token = np.divmod(np.flatnonzero(found), num_blocks * size)
    return torch.from_numpy(row), torch.from_numpy(token)


def bits(streams: Tensor, tokens: Tensor) -> Tensor:
    """64 random bits, as int64: the token-th output of each stream; the two broadcast."""
    if streams.device.type == "cpu" and 0 < tokens.numel() <= CACHED and tokens.dim():
        return torch.from_numpy(_bits_on_host(streams.numpy(), tokens.numpy()))
    return _mix((tokens + 1).mul_(_signed(_GAMMA)) + streams)


def _bits_on_host(streams: Int64s, tokens: Int64s) -> Int64s:
    """`bits` in numpy: its operations on few numbers cost half of what a tensor's do."""
    state = tokens.view(np.uint64) + 1
    state *= _GAMMA
    state = state + streams.view(np.uint64)
    state ^= state >> 30
    state *= _MIX_1
    state ^= state >> 27
    state *= _MIX_2
    state ^= state >> 31
    return state.view(np.int64)


def streams_of(seed: int, choice: int, positions: Sequence[int], device: torch.device) -> Tensor:
    """`stream` for a list: a few Python integers cost less than a tensor's operations."""
    of_choice = _output(_output(seed, 0), choice)
    states = [_signed(_output(of_choice, position)) for position in positions]
    return torch.tensor(states, dtype=torch.int64, device=device)


def stream(seed: int, choice: int, positions: Tensor) -> Tensor:
    """The states at which the streams of positions (int64) start: int64, shaped alike."""
    of_choice = _signed(_output(_output(seed, 0), choice))
    return _mix((positions + 1).mul_(_signed(_GAMMA)).add_(of_choice))


def _output(state: int, index: int) -> int:
    """Output `index` of the SplitMix64 stream that starts at `state`, for Python integers."""
    state = (state + (index + 1) * _GAMMA) & _MASK
    state = ((state ^ (state >> 30)) * _MIX_1) & _MASK
    state = ((state ^ (state >> 27)) * _MIX_2) & _MASK
    return state ^ (state >> 31)


def _mix(state: Tensor) -> Tensor:
    """SplitMix64's finalizer (Stafford's variant 13); overwrites and returns `state`."""
    state.bitwise_xor_(_shift_right(state, 30)).mul_(_signed(_MIX_1))
    state.bitwise_xor_(_shift_right(state, 27)).mul_(_signed(_MIX_2))
    return state.bitwise_xor_(_shift_right(state, 31))


def _shift_right(value: Tensor, count: int) -> Tensor:
    """A logical shift: int64's own copies the sign bit into the gap."""
    return (value >> count).bitwise_and_((1 << (64 - count)) - 1)


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    value &= _MASK
    return value - 2**64 if value >= 2**63 else value
