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

import torch
from torch import Tensor

GUMBEL_MAX = 36.75  # above -log(-log(1 - 2**-53)), the largest value there is

_MASK = 2**64 - 1
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


def bits(streams: Tensor, tokens: Tensor) -> Tensor:
    """64 random bits, as int64: the token-th output of each stream; the two broadcast."""
    return _mix((tokens + 1).mul_(_signed(_GAMMA)) + streams)


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
