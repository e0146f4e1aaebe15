"""MXFP4 weights (gpt-oss): 4-bit values in blocks of 32 that share a power of two.

Source: OCP Microscaling Formats specification v1.0, section 5.3 (E2M1 elements, E8M0 scales).
"""

import torch
from torch import Tensor

_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_EXPONENT_BIAS = 127


def expanded_shape(blocks: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the dense experts for stored blocks [E, out, G, bytes]: [E, G * 2 * bytes, out]."""
    experts, rows, groups, count = blocks
    return experts, groups * count * 2, rows


def expand(blocks: Tensor, scales: Tensor, out: Tensor) -> None:
    """Dense experts from stored ones, bit for bit what transformers makes of them.

    `blocks` [E, out, G, bytes] uint8, the first value of a byte in its low half; `scales`
    [E, out, G] uint8; `out` [E, in, out] of the wanted dtype (transposed, as the library's gpt-oss
    experts hold it).
    """
    low_high = torch.tensor(
        [(_VALUES[byte & 15], _VALUES[byte >> 4]) for byte in range(256)], dtype=out.dtype
    )
    for expert in range(blocks.shape[0]):  # one at a time: the index tensor is eight times as large
        pairs = low_high[blocks[expert].long()]  # [out, G, bytes, 2]
        values = pairs.flatten(-2)  # [out, G, 2 * bytes]
        exponents = scales[expert].to(torch.int32).sub_(_EXPONENT_BIAS).unsqueeze(-1)
        torch.ldexp(values, exponents, out=values)
        out[expert].copy_(values.flatten(-2).T)
