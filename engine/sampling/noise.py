"""Gumbel noise that is a function of (seed, choice, position, token), without generator state.

The token at a position is the argmax of log-probabilities plus this noise, which is a sample of
their distribution (the Gumbel-max trick; Maddison et al., arXiv 1411.0030). Since the noise depends
only on its key, draft and target add the same noise at the same position, and an answer does not
depend on what was drafted or batched with it.

The random bits are outputs of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014, "Fast splittable
pseudorandom number generators"). The stream of a position starts at a state that is mixed from
seed, choice and position, and the bits of token t are output t of that stream. Bits and uniform
numbers use only operations that are exact on every device; tests compare them with fixed values.
The float64 logarithms of two devices may differ in the last bit. This could change a chosen token
only if the values of two tokens differ by less than that, about once in 1e13 choices.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.transfer import upload

Int64s = NDArray[np.int64]

GUMBEL_MAX = 36.75  # just above -log(-log(1 - 2**-53)), the largest possible value

MAX_HOST_NUMBERS = 2**14  # up to this many numbers are computed with numpy on the host
MAX_NUMBERS = 2**20  # drawn at a time: limits the memory for many streams

GAMMA = 0x9E3779B97F4A7C15  # SplitMix64's constants
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB
_MASK = 2**64 - 1


def gumbel(seed: int, choice: int, position: int | Tensor, tokens: Tensor) -> Tensor:
    """Return standard Gumbel noise, float64.

    `position` and `tokens` are int64 and broadcast: positions [R, 1] with tokens [V] give noise
    [R, V], and positions [K] with tokens [K] give noise [K]. Seed and choice are any integers.
    """
    positions = torch.as_tensor(position, dtype=torch.int64, device=tokens.device)
    return gumbel_from_uniform(uniform(stream(seed, choice, positions), tokens))


def gumbel_from_uniform(drawn: Tensor) -> Tensor:
    """Return the Gumbel noise of uniform numbers, float64; it increases with the number."""
    return drawn.log().neg_().log_().neg_()


def rounded_gumbel(streams: Tensor, num_tokens: int) -> Tensor:
    """Return the Gumbel noise of all tokens in float32, [R, num_tokens].

    It differs from that of `gumbel_from_uniform` by a few units in the last place of float32.
    """
    tokens = torch.arange(num_tokens, device=streams.device)
    noise = torch.empty(len(streams), num_tokens, device=streams.device)
    step = max(1, MAX_NUMBERS // num_tokens)
    for first in range(0, len(streams), step):
        drawn = _shift_right(bits(streams[first : first + step, None], tokens), 11).clamp_(min=1)
        number = drawn.to(torch.float32).mul_(2.0**-53)
        # A number near 1 is rounded to 1, but not its distance from 1.
        rest = drawn.neg_().add_(2**53).to(torch.float32).mul_(2.0**-53)
        logarithm = torch.where(number < 0.5, number.log(), rest.neg_().log1p_())
        noise[first : first + step] = logarithm.neg_().log_().neg_()
    return noise


def uniform(streams: Tensor, tokens: Tensor) -> Tensor:
    """Return uniform numbers strictly inside (0, 1), float64.

    They are multiples of 2**-53, with 2**-54 in place of 0. `streams` and `tokens` broadcast.
    """
    return _shift_right(bits(streams, tokens), 11).double().clamp_(min=0.5).mul_(2.0**-53)


def bits(streams: Tensor, tokens: Tensor) -> Tensor:
    """Return 64 random bits as int64: output `token` of each stream. The arguments broadcast."""
    # numpy can only read CPU memory. Its operations on few numbers take half the time of torch's.
    if streams.device.type == "cpu" and 0 < tokens.numel() <= MAX_HOST_NUMBERS and tokens.dim():
        return torch.from_numpy(_bits_on_host(streams.numpy(), tokens.numpy()))
    return _mix((tokens + 1).mul_(_signed(GAMMA)) + streams)


def _bits_on_host(streams: Int64s, tokens: Int64s) -> Int64s:
    """Compute `bits` with numpy, which takes half of torch's time for few numbers."""
    state = tokens.view(np.uint64) + 1
    state *= GAMMA
    state = state + streams.view(np.uint64)
    state ^= state >> 30
    state *= MIX_1
    state ^= state >> 27
    state *= MIX_2
    state ^= state >> 31
    return state.view(np.int64)


def make_streams(seed: int, choice: int, positions: Sequence[int], device: torch.device) -> Tensor:
    """Return the states at which the streams of these positions start, int64 [R].

    The result equals that of `stream`, but for a few positions Python integers are faster.
    """
    of_choice = _output(_output(seed, 0), choice)
    states = [_signed(_output(of_choice, position)) for position in positions]
    return upload(torch.tensor(states, dtype=torch.int64), device)


def stream(seed: int, choice: int, positions: Tensor) -> Tensor:
    """Return the states at which the streams of positions start, int64 like `positions`."""
    of_choice = _signed(_output(_output(seed, 0), choice))
    return _mix((positions + 1).mul_(_signed(GAMMA)).add_(of_choice))


def _output(state: int, index: int) -> int:
    """Return output `index` of the SplitMix64 stream that starts at `state`."""
    state = (state + (index + 1) * GAMMA) & _MASK
    state = ((state ^ (state >> 30)) * MIX_1) & _MASK
    state = ((state ^ (state >> 27)) * MIX_2) & _MASK
    return state ^ (state >> 31)


def _mix(state: Tensor) -> Tensor:
    """Apply SplitMix64's finalizer (Stafford's variant 13) to `state` in place, and return it."""
    state.bitwise_xor_(_shift_right(state, 30)).mul_(_signed(MIX_1))
    state.bitwise_xor_(_shift_right(state, 27)).mul_(_signed(MIX_2))
    return state.bitwise_xor_(_shift_right(state, 31))


def _shift_right(value: Tensor, count: int) -> Tensor:
    """Shift right and fill with zeros. The `>>` of int64 would fill with the sign bit."""
    return (value >> count).bitwise_and_((1 << (64 - count)) - 1)


def _signed(value: int) -> int:
    """Return the signed 64-bit integer with the same low 64 bits."""
    value &= _MASK
    return value - 2**64 if value >= 2**63 else value
