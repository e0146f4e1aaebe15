"""A Triton kernel that decodes weights which are stored as places in the cells of their int4 codes.

It is a probe: the engine stores no weights like this. Only its stage imports it.
"""

import triton.language as tl
from torch import Tensor

from engine.triton_kernels.compiler import helper, kernel


@helper
def _order(value: tl.tensor) -> tl.tensor:
    """Return the upper 16 bits of a float32 as an integer that is ordered as the values are."""
    bits = value.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, ~bits, bits ^ (-2147483648))
    return (ordered >> 16) & 0xFFFF


@kernel()
def _decode(
    pairs: tl.tensor,
    scales: tl.tensor,
    zeros: tl.tensor,
    words: tl.tensor,
    starts: tl.tensor,
    out: tl.tensor,
    GROUPS: tl.constexpr,
) -> None:
    """Write the bits of bfloat16 weights [groups, 64] of GROUPS groups; see `CodedWeights`."""
    block = tl.program_id(0)
    group = block * GROUPS + tl.arange(0, GROUPS)
    column = tl.arange(0, 64)
    at = group[:, None] * 64 + column[None, :]
    pair = tl.load(pairs + at // 2).to(tl.int32)
    code = tl.where((column[None, :] & 1) == 0, pair >> 4, pair & 15)
    scale = tl.load(scales + group).to(tl.float32)[:, None]
    zero = tl.load(zeros + group).to(tl.float32)[:, None]
    centre = code.to(tl.float32) - 8.0
    low = centre - tl.where(code == 0, 1.0, 0.53125)
    high = centre + tl.where(code == 15, 1.0, 0.53125)
    first = _order(low * scale + zero)
    span = _order(high * scale + zero) - first
    width = tl.maximum((span.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 126, 0)
    inner = tl.cumsum(width, 1)
    totals = tl.sum(width, 1)
    outer = tl.cumsum(totals, 0) - totals
    offset = tl.load(starts + block) + outer[:, None] + inner - width
    word = words + (offset >> 5)
    near = tl.load(word).to(tl.uint32, bitcast=True).to(tl.uint64)
    far = tl.load(word + 1).to(tl.uint32, bitcast=True).to(tl.uint64)
    joined = (near | (far << 32)) >> (offset & 31).to(tl.uint64)
    key = first + (joined.to(tl.int32) & ((1 << width) - 1))
    bits = tl.where(key >= 0x8000, key ^ 0x8000, 0xFFFF - key)
    tl.store(out + at, bits.to(tl.int16))


def decode(fields: tuple[Tensor, ...], out: Tensor, groups: int, warps: int) -> None:
    """Fill `out` [weights] int16 with the bits of the weights that `fields` store.

    Args:
        fields: those of `CodedWeights`.
        groups: the groups that share a start, which one program decodes.
        warps: those of a program.
    """
    programs = len(fields[-1])
    _decode[(programs,)](*fields, out, GROUPS=groups, num_warps=warps)
