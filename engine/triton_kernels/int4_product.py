"""The product of few rows and an int4 weight whose codes are in the order of its rows.

It is made for 1 to 64 rows, which read the weight once; more rows read it once for each 64.
"""

from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.triton_kernels.compiler import can_run
from engine.triton_kernels.operands import operand_type

Gate = Literal["silu", "gelu_tanh"]

GROUPS = (32, 64)  # inputs that may share a scale
_GATES: dict[Gate | None, int] = {None: 0, "silu": 1, "gelu_tanh": 2}
ROW_TILES = (16, 32, 64)  # of a program
OUTPUTS = 64  # of a program: the tile of a warp group's tensor cores on Hopper
_INPUTS = 128  # of a block, by which a part of a sum is counted
ALIGNMENT = 16
# Programs that keep all multiprocessors of a large GPU busy: fewer outputs are summed in parts.
_PROGRAMS = 256
_LEAST_BLOCKS = 4  # of a part: fewer take less time than starting it
_MOST_PARTS = 8
_SUM_BLOCK = 1024
STAGES = 3  # blocks that are loaded ahead


@cache
def is_usable(device: torch.device) -> bool:
    """Return whether the kernels of drafts run on a device. The log says why they do not."""
    if device.type != "cuda":
        return False

    def trial() -> None:
        pairs = torch.full((OUTPUTS, GROUPS[0] // 2), 0x99, dtype=torch.uint8, device=device)
        scales = torch.ones(1, OUTPUTS, 2, dtype=torch.bfloat16, device=device)
        rows = torch.ones(1, GROUPS[0], dtype=torch.bfloat16, device=device)
        found = multiply(rows, pairs, scales)
        if not bool((found == 2.0 * GROUPS[0]).all()):
            raise ModelError("its product of numbers is wrong")

    return can_run(device, "4-bit drafts are computed by PyTorch's kernels", trial)


def multiply(
    rows: Tensor,
    pairs: Tensor,
    scales_and_zeros: Tensor,
    bias: Tensor | None = None,
    *,
    gate: Gate | None = None,
) -> Tensor:
    """Return the product [R, out] of rows [R, in] in their dtype, computed in bfloat16.

    One or two kernels are launched. With a gate, the result is `gate(a) * b` [R, out / 2] for the
    two halves a and b of the product, from one kernel.

    Args:
        pairs: the codes, uint8 [out, in / 2], the first of a byte in its upper half.
        scales_and_zeros: of groups of 32 or 64 inputs, bfloat16 [in / group, out, 2]. A weight is
            (code - 8) * scale + zero.
        bias: [out].
    """
    if gate is not None:
        return _launch(rows, pairs, scales_and_zeros, bias, 1, gate, rows.dtype)[0]
    parts = multiply_in_parts(rows, pairs, scales_and_zeros, bias)
    if len(parts) == 1 and parts.dtype == rows.dtype:
        return parts[0]
    out = torch.empty(parts.shape[1:], dtype=rows.dtype, device=rows.device)
    return _sum(parts, out)


def multiply_in_parts(
    rows: Tensor,
    pairs: Tensor,
    scales_and_zeros: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Return parts [P, R, out] whose sum is the product of `multiply`. One kernel is launched.

    A single part is of the dtype of `rows`, and others are float32. Their number depends on the
    shape of the weight alone.
    """
    parts = num_parts(*pairs.shape)
    dtype = rows.dtype if parts == 1 else torch.float32
    return _launch(rows, pairs, scales_and_zeros, bias, parts, None, dtype)


def num_parts(outputs: int, half_inputs: int) -> int:
    """Return the number of parts of the product with a weight's pairs [outputs, half_inputs]."""
    blocks = -(-2 * half_inputs // _INPUTS)
    wanted = min(_PROGRAMS // -(-outputs // OUTPUTS), blocks // _LEAST_BLOCKS, _MOST_PARTS)
    if wanted <= 1:
        return 1
    return -(-blocks // -(-blocks // wanted))  # so that no part is empty


def _launch(
    rows: Tensor,
    pairs: Tensor,
    scales_and_zeros: Tensor,
    bias: Tensor | None,
    parts: int,
    gate: Gate | None,
    dtype: torch.dtype,
) -> Tensor:
    from engine.triton_kernels import int4_product_kernel

    rows = rows.contiguous()
    num_rows, inputs = rows.shape
    outputs, groups = len(pairs), len(scales_and_zeros)
    scales = scales_and_zeros.view(torch.int32)
    assert inputs == 2 * pairs.shape[1] and inputs // groups in GROUPS, (inputs, groups)
    assert all(own.data_ptr() % ALIGNMENT == 0 for own in (rows, pairs, scales))
    width = outputs // 2 if gate else outputs
    out = torch.empty(parts, num_rows, width, dtype=dtype, device=rows.device)
    tile = next((size for size in ROW_TILES if num_rows <= size), ROW_TILES[-1])
    block, warps = tiling(tile, is_gated=gate is not None)
    blocks = -(-inputs // block)
    kernel: Any = int4_product_kernel.multiply_int4
    kernel[-(-width // OUTPUTS), -(-num_rows // tile), parts](
        rows,
        pairs,
        scales,
        rows if bias is None else bias,
        out,
        num_rows,
        outputs,
        groups,
        -(-blocks // parts),
        GROUP=inputs // groups,
        HAS_BIAS=bias is not None,
        GATE=_GATES[gate],
        ROWS=tile,
        OUTPUTS=OUTPUTS,
        INPUTS=block,
        DOT=operand_type(torch.bfloat16),
        num_warps=warps,
        num_stages=STAGES,
    )
    return out


def tiling(tile: int, *, is_gated: bool) -> tuple[int, int]:
    """Return the inputs of a block and the warps of a program, so that its registers suffice."""
    return (_INPUTS // 2, 8) if is_gated and tile == ROW_TILES[-1] else (_INPUTS, 4)


def _sum(parts: Tensor, out: Tensor) -> Tensor:
    """Write the sum of parts [P, R, out] to `out` [R, out], and return it."""
    from engine.triton_kernels import int4_product_kernel

    size = out.numel()
    kernel: Any = int4_product_kernel.add_parts
    kernel[(-(-size // _SUM_BLOCK),)](parts, out, size, len(parts), BLOCK=_SUM_BLOCK)
    return out
