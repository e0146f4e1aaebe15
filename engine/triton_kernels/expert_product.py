"""The products of rows with int4 weights of the experts of a mixture, in one kernel for all.

Which expert a row is given to stays on the device, so the host does not wait, and a step with such
products can be a CUDA graph. Numbers of blocks depend on shapes alone.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.triton_kernels.int4_product import ALIGNMENT, GROUPS, OUTPUTS, STAGES, tiling
from engine.triton_kernels.operands import operand_type

ROWS = 16  # of a program: the fewest that tensor cores multiply


@dataclass(frozen=True)
class ExpertBlocks:
    """Rows that were given to experts, k to each row, in blocks of places of one expert.

    A place is the number of a row and one of its experts: row * k + index.
    """

    experts: Tensor  # int32 [blocks], -1 where a block has no places
    places: Tensor  # int32 [blocks, ROWS], -1 where there is none
    num_places: int


def group_places(index: Tensor, num_experts: int) -> ExpertBlocks:
    """Return the blocks of places, given the experts [rows, k] of each row."""
    flat = index.flatten()
    count, device = len(flat), flat.device
    order = torch.argsort(flat, stable=True)
    numbers = torch.arange(num_experts, device=device)
    counts = (flat[:, None] == numbers).sum(0)
    blocks = (counts + ROWS - 1) // ROWS
    ends = blocks.cumsum(0)
    most = min(count, num_experts + count // ROWS)
    block = torch.arange(most, device=device)
    expert = torch.searchsorted(ends, block, right=True)
    is_used = expert < num_experts
    expert = expert.clamp(max=num_experts - 1)
    first = (block - (ends - blocks)[expert]) * ROWS  # of the expert's places
    within = first[:, None] + torch.arange(ROWS, device=device)
    at = (counts.cumsum(0) - counts)[expert][:, None] + within
    is_place = is_used[:, None] & (within < counts[expert][:, None])
    places = torch.where(is_place, order[at.clamp(max=count - 1)], -1)
    return ExpertBlocks(torch.where(is_used, expert, -1).int(), places.int(), count)


def multiply(
    rows: Tensor,
    pairs: Tensor,
    scales_and_zeros: Tensor,
    bias: Tensor | None,
    blocks: ExpertBlocks,
) -> Tensor:
    """Return the product [places, out] of each place with its expert's weight, in rows' dtype.

    It is computed in bfloat16. One kernel is launched.

    Args:
        rows: [rows, in], or [places, in].
        pairs: the codes of all experts, uint8 [experts, out, in / 2], as `int4_product` has them.
        scales_and_zeros: bfloat16 [experts, in / group, out, 2].
        bias: [experts, out].
    """
    from engine.triton_kernels import int4_product_kernel

    rows = rows.contiguous()
    num_rows, inputs = rows.shape
    (_, outputs, _), groups = pairs.shape, scales_and_zeros.shape[1]
    scales = scales_and_zeros.view(torch.int32)
    assert inputs == 2 * pairs.shape[2] and inputs // groups in GROUPS, (inputs, groups)
    assert blocks.num_places % num_rows == 0, (blocks.num_places, num_rows)
    assert all(own.data_ptr() % ALIGNMENT == 0 for own in (rows, pairs, scales))
    out = torch.empty(blocks.num_places, outputs, dtype=rows.dtype, device=rows.device)
    block, warps = tiling(ROWS, is_gated=False)
    kernel: Any = int4_product_kernel.multiply_int4_of_experts
    kernel[-(-outputs // OUTPUTS), len(blocks.experts)](
        rows,
        pairs,
        scales,
        rows if bias is None else bias,
        out,
        blocks.experts,
        blocks.places,
        blocks.num_places // num_rows,
        outputs,
        groups,
        GROUP=inputs // groups,
        HAS_BIAS=bias is not None,
        ROWS=ROWS,
        OUTPUTS=OUTPUTS,
        INPUTS=block,
        DOT=operand_type(torch.bfloat16),
        num_warps=warps,
        num_stages=STAGES,
    )
    return out
