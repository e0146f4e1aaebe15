"""Decoding of weights coded by the cells of their 4-bit codes, on a GPU."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.triton_kernels.compiler import can_run

SEGMENT = 1024  # weights of a row whose indices begin at a byte that is stored
WARPS = 4
_ALIGNMENT = 16


@cache
def is_usable(device: torch.device) -> bool:
    """Return whether the kernel runs on a device. The log says why it does not."""
    if device.type != "cuda":
        return False

    def trial() -> None:
        pairs = torch.full((1, 16), 0x99, dtype=torch.uint8, device=device)
        scales = torch.zeros(1, 1, 2, dtype=torch.bfloat16, device=device)
        scales[..., 1] = 3.0  # the value of a constant group
        stream = torch.zeros(8, dtype=torch.uint8, device=device)
        starts = torch.zeros(1, 1, dtype=torch.int32, device=device)
        out = torch.empty(1, 32, dtype=torch.bfloat16, device=device)
        decode(pairs, scales, torch.zeros(32, device=device), stream, starts, 0, out)
        if not bool((out == 3.0).all()):
            raise ModelError("it decodes to wrong numbers")

    return can_run(device, "coded weights are decoded by PyTorch's operations", trial)


def decode(
    pairs: Tensor,
    scales: Tensor,
    ends: Tensor,
    stream: Tensor,
    starts: Tensor,
    before: int,
    out: Tensor,
) -> None:
    """Fill weights, of which escapes get any value, with the weights of a stream.

    Args:
        pairs: the codes, uint8 [copy's rows, columns / 2], the first of two in the upper half.
        scales: bfloat16 [groups, copy's rows, 2] of int4; else float32 [copy's rows, groups].
        ends: the ends of cells in steps, float32 [32]: 16 lower ones, then 16 upper ones.
        stream: uint8, whole words of 4 bytes, one of them after the last index.
        starts: int32 [rows, segments].
        before: the row of the copy that belongs to the first row of the weight.
        out: bfloat16 [rows, columns], contiguous.
    """
    from engine.triton_kernels import cell_decoder_kernel

    rows, columns = out.shape
    is_int4 = scales.dtype == torch.bfloat16
    groups = len(scales) if is_int4 else scales.shape[1]
    copy_rows = 2 * pairs.numel() // columns
    bits = scales.view(torch.int32)
    segments = -(-columns // SEGMENT)
    assert columns % (2 * groups) == 0 and before + rows <= copy_rows, (pairs.shape, out.shape)
    assert starts.shape == (rows, segments) and len(stream) % 4 == 0 and len(stream) >= 8
    assert all(own.data_ptr() % _ALIGNMENT == 0 for own in (pairs, scales, stream, out))
    kernel: Any = cell_decoder_kernel.decode_cells
    kernel[rows, segments](
        pairs,
        bits,
        ends,
        stream.view(torch.int32),
        starts,
        out.view(torch.int16),
        before,
        copy_rows,
        columns,
        len(stream) // 4,
        GROUP=columns // groups,
        IS_INT4=is_int4,
        SEGMENT=SEGMENT,
        num_warps=WARPS,
    )
