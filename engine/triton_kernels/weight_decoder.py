"""Decoding of weights in lossless codes, on a GPU.

`engine.weights.coding` defines the codes. No function allocates memory on the device.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.triton_kernels.compiler import can_run

SEGMENT = 1024  # weights of a row whose indices begin at a byte that is stored
BLOCK = 2048  # weights of a program, where they do not depend on each other
ESCAPES = 256  # of a program
WARPS = 4
_ALIGNMENT = 16


@cache
def is_usable(device: torch.device) -> bool:
    """Return whether the kernels run on a device. The log says why they do not."""
    return device.type == "cuda" and can_run(
        device, "weights travel in all of their bits", lambda: _try(device)
    )


def _try(device: torch.device) -> None:
    """Decode some weights of each code. Raises `ModelError` if they are wrong."""
    pairs = torch.full((1, 16), 0x99, dtype=torch.uint8, device=device)
    scales = torch.zeros(1, 1, 2, dtype=torch.bfloat16, device=device)
    scales[..., 1] = 3.0  # the value of a constant group
    stream = torch.zeros(8, dtype=torch.uint8, device=device)
    starts = torch.zeros(1, 1, dtype=torch.int32, device=device)
    out = torch.empty(1, 32, dtype=torch.bfloat16, device=device)
    decode_cells(pairs, scales, torch.zeros(32, device=device), stream, starts, 0, out)
    is_right = bool((out == 3.0).all())
    table = torch.full((16,), 128, dtype=torch.uint8, device=device)
    fractions = torch.zeros(32, dtype=torch.uint8, device=device)
    decode_exponents(pairs.view(-1), fractions, table, out)
    is_right = is_right and bool((out == 2.0).all())
    place = torch.full((1,), 5, dtype=torch.int32, device=device)
    put_escapes(place, torch.zeros(1, dtype=torch.int16, device=device), out)
    if not is_right or out.tolist() != [[2.0] * 5 + [0.0] + [2.0] * 26]:
        raise ModelError("coded weights are decoded to wrong numbers")


def decode_cells(
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
    from engine.triton_kernels import weight_decoder_kernel

    rows, columns = out.shape
    is_int4 = scales.dtype == torch.bfloat16
    groups = len(scales) if is_int4 else scales.shape[1]
    copy_rows = 2 * pairs.numel() // columns
    segments = -(-columns // SEGMENT)
    assert columns % (2 * groups) == 0 and before + rows <= copy_rows, (pairs.shape, out.shape)
    assert starts.shape == (rows, segments) and len(stream) % 4 == 0 and len(stream) >= 8
    _check_aligned(pairs, scales, stream, out)
    kernel: Any = weight_decoder_kernel.decode_cells
    kernel[rows, segments](
        pairs,
        scales.view(torch.int32),
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


def decode_exponents(exponents: Tensor, fractions: Tensor, table: Tensor, out: Tensor) -> None:
    """Fill weights, of which escapes get any value, by the numbers of their exponents.

    Args:
        exponents: uint8 [weights / 2], the number of the first of two in the upper half.
        fractions: uint8 [weights], the sign in the highest bit.
        table: the exponents, uint8 [16].
        out: bfloat16 of any shape, contiguous.
    """
    from engine.triton_kernels import weight_decoder_kernel

    count = out.numel()
    assert len(fractions) == count == 2 * len(exponents), (exponents.shape, out.shape)
    _check_aligned(exponents, fractions, out)
    kernel: Any = weight_decoder_kernel.decode_exponents
    kernel[(-(-count // BLOCK),)](
        exponents,
        fractions,
        table,
        out.view(torch.int16).view(-1),
        count,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )


def put_escapes(places: Tensor, values: Tensor, out: Tensor) -> None:
    """Write escapes into decoded weights, after these have been written.

    Args:
        places: the numbers of the escapes among the weights, int32 [escapes].
        values: their bits, int16 [escapes].
        out: bfloat16 of any shape, contiguous.
    """
    from engine.triton_kernels import weight_decoder_kernel

    if not len(places):
        return
    kernel: Any = weight_decoder_kernel.put_escapes
    kernel[(-(-len(places) // ESCAPES),)](
        places,
        values,
        out.view(torch.int16).view(-1),
        len(places),
        out.numel(),
        BLOCK=ESCAPES,
        num_warps=WARPS,
    )


def _check_aligned(*tensors: Tensor) -> None:
    """Check that kernels may read 16 bytes of each tensor at once."""
    assert all(own.data_ptr() % _ALIGNMENT == 0 and own.is_contiguous() for own in tensors)
