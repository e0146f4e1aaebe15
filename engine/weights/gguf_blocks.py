"""The dense values of GGUF's block types, in float32, bit by bit as llama.cpp computes them.

A block holds 32 or 256 neighbouring values of a row. `expand_into` is the one place where blocks
become weights, on every device; on a CPU it uses `engine.compiled.gguf_blocks`, which has the same
bits. The functions for the types take blocks [n, bytes] uint8 and return their values [n, size]
float32, on the device of the blocks.

Source: ggml/src/ggml-quants.c (dequantize_row_*) and ggml-common.h (the blocks) of llama.cpp.
"""

from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor

import engine.compiled.gguf_blocks as compiled
from engine.compiled.filling import can_fill
from engine.weights.gguf_file import TYPES, BlockType
from engine.weights.packing import values_at_once

_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_MXFP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # twice the values of E2M1
_BY_NAME: Mapping[str, BlockType] = {type_.name: type_ for type_ in TYPES.values()}


def expand_into(kind: str, blocks: Tensor, out: Tensor) -> None:
    """Expand rows of blocks in float32, and round the values once to the dtype of `out`.

    Args:
        kind: the name of a type of blocks in `gguf_file.TYPES`.
        blocks: [..., rows, bytes of a row] uint8.
        out: [..., rows, columns] on the device of `blocks`. It may have any strides.
    """
    if can_fill(out):
        compiled.expand(kind, blocks, out)
        return
    type_ = _BY_NAME[kind]
    if blocks.dim() > 2:
        for one, own in zip(blocks, out, strict=True):
            expand_into(kind, one, own)
        return
    step = max(1, values_at_once(blocks.device) // out.shape[-1])
    for packed, rows in zip(torch.split(blocks, step), torch.split(out, step), strict=True):
        rows.copy_(expand_blocks(kind, packed.reshape(-1, type_.nbytes)).view(rows.shape))


def expand_blocks(kind: str, blocks: Tensor) -> Tensor:
    """Return the values of blocks of a type of `gguf_file.TYPES`, [n, size] float32."""
    return _EXPAND[kind](blocks)


def count_damaged(kind: str, blocks: Tensor) -> int:
    """Return how many scales of blocks [..., bytes of a row] are NaN or infinite."""
    blocks = blocks.view(-1, _BY_NAME[kind].nbytes)
    scales = [_half(blocks, at) for at in _SCALES_AT[kind]]
    return sum(int((~torch.isfinite(scale)).sum()) for scale in scales)


def _half(blocks: Tensor, at: int) -> Tensor:
    """Return the float16 at byte `at` of each block as float32, [n, 1]."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(codes: Tensor, run: int) -> Tensor:
    """Return the low halves of `run` bytes, then their high halves, for all runs, [n, values]."""
    runs = codes.reshape(len(codes), -1, 1, run)
    return torch.cat((runs & 15, runs >> 4), dim=2).flatten(1)


def _fields(codes: Tensor, run: int, bits: int) -> Tensor:
    """Return the fields of `bits` bits of the bytes: of `run` bytes the lowest ones come first."""
    mask, runs = (1 << bits) - 1, codes.reshape(len(codes), -1, 1, run)
    return torch.cat([(runs >> at) & mask for at in range(0, 8, bits)], dim=2).flatten(1)


def _high_bits(blocks: Tensor, at: int) -> Tensor:
    """Return the 32 bits from byte `at` on, lowest first, as 0 or 16, [n, 32]."""
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device)
    return ((blocks[:, at : at + 4, None] >> shifts) & 1).flatten(1) << 4


def _scaled(scales: Tensor, codes: Tensor) -> Tensor:
    """Return each run of codes times its scale, [n, runs, values]; `scales` is [n, runs]."""
    return codes.view(*scales.shape, -1).float().mul_(scales.unsqueeze(-1))


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].view(torch.int8).float().mul_(_half(blocks, 0))


def _q4_0(blocks: Tensor) -> Tensor:
    return _nibbles(blocks[:, 2:], 16).float().sub_(8).mul_(_half(blocks, 0))


def _q4_1(blocks: Tensor) -> Tensor:
    return _nibbles(blocks[:, 4:], 16).float().mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q5_0(blocks: Tensor) -> Tensor:
    codes = _nibbles(blocks[:, 6:], 16) | _high_bits(blocks, 2)
    return codes.float().sub_(16).mul_(_half(blocks, 0))


def _q5_1(blocks: Tensor) -> Tensor:
    codes = _nibbles(blocks[:, 8:], 16) | _high_bits(blocks, 4)
    return codes.float().mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q2_k(blocks: Tensor) -> Tensor:
    scales = _half(blocks, 80) * (blocks[:, :16] & 15)
    least = _half(blocks, 82) * (blocks[:, :16] >> 4)
    values = _scaled(scales, _fields(blocks[:, 16:80], 32, 2))
    return values.sub_(least.unsqueeze(-1)).flatten(1)


def _q3_k(blocks: Tensor) -> Tensor:
    packed = blocks[:, 96:108]
    low = torch.cat((packed[:, :8] & 15, packed[:, :8] >> 4), dim=1)
    scales = (low | _fields(packed[:, 8:], 4, 2) << 4).float().sub_(32)
    codes = _fields(blocks[:, 32:96], 32, 2) | _fields(blocks[:, :32], 32, 1) << 2
    return _scaled(_half(blocks, 108) * scales, codes.float().sub_(4)).flatten(1)


def _scales_of_k(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the 8 scales and the 8 minima of 6 bits that 12 bytes hold, [n, 8] each."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat((first & 63, (third & 15) | ((first >> 2) & 48)), dim=1)
    least = torch.cat((second & 63, (third >> 4) | ((second >> 2) & 48)), dim=1)
    return scales, least


def _with_minima(blocks: Tensor, codes: Tensor) -> Tensor:
    """Return the values of Q4_K or Q5_K, given their codes."""
    scales, least = _scales_of_k(blocks[:, 4:16])
    values = _scaled(_half(blocks, 0) * scales, codes)
    return values.sub_((_half(blocks, 2) * least).unsqueeze(-1)).flatten(1)


def _q4_k(blocks: Tensor) -> Tensor:
    return _with_minima(blocks, _nibbles(blocks[:, 16:], 32))


def _q5_k(blocks: Tensor) -> Tensor:
    high = _fields(blocks[:, 16:48], 32, 1) << 4
    return _with_minima(blocks, _nibbles(blocks[:, 48:], 32) | high)


def _q6_k(blocks: Tensor) -> Tensor:
    codes = _nibbles(blocks[:, :128], 64) | _fields(blocks[:, 128:192], 32, 2) << 4
    scales = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8)
    return _scaled(scales, codes.float().sub_(32)).flatten(1)


def _iq4_nl(blocks: Tensor) -> Tensor:
    return _looked_up(_IQ4, _nibbles(blocks[:, 2:], 16)).mul_(_half(blocks, 0))


def _iq4_xs(blocks: Tensor) -> Tensor:
    shifts = torch.arange(0, 16, 2, device=blocks.device)
    high = blocks[:, 2:4].contiguous().view(torch.int16).int() >> shifts
    low = torch.stack((blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4), dim=2).flatten(1)
    scales = (low | (high & 3) << 4).float().sub_(32)
    values = _looked_up(_IQ4, _nibbles(blocks[:, 8:], 16))
    return _scaled(_half(blocks, 0) * scales, values).flatten(1)


def _mxfp4(blocks: Tensor) -> Tensor:
    exponents = blocks[:, :1].int()
    # Half of a power of two; the two smallest are subnormal.
    bits = torch.where(exponents < 2, 0x00200000 << exponents.clamp(max=1), (exponents - 1) << 23)
    return _looked_up(_MXFP4, _nibbles(blocks[:, 1:], 16)).mul_(bits.view(torch.float32))


def _looked_up(table: tuple[int, ...], codes: Tensor) -> Tensor:
    values = _table(table, codes.device)
    return values.index_select(0, codes.flatten().int()).view(codes.shape)


@cache
def _table(values: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)


_EXPAND: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4,
}

# The places of the float16 scales in a block; MXFP4 has an exponent in their place.
_SCALES_AT: Mapping[str, tuple[int, ...]] = {
    "Q8_0": (0,),
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "MXFP4": (),
}
