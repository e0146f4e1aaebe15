"""The best values of long rows, found by way of the best of each block.

Looking through a whole vocabulary for a few tokens costs more than everything else a choice takes.
The n best values of a row lie in the n blocks whose own best values are the highest, so that only
these blocks are sorted. R rows, V values a row, N blocks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 64  # values


@dataclass(frozen=True)
class Pool:
    """Some blocks of each row, side by side in their old order."""

    values: Tensor  # [R, n * BLOCK]
    ids: Tensor  # [R, n * BLOCK] int64: where in its row a value stands
    rest: Tensor  # [R, 1] the best value left out; minus infinity if none is


def whole_blocks(rows: Tensor) -> Tensor:
    """Rows [R, V] lengthened to whole blocks by minus infinity; as they are if V is a multiple."""
    missing = -rows.shape[-1] % BLOCK
    return F.pad(rows, (0, missing), value=-torch.inf) if missing else rows


def num_blocks(rows: Tensor) -> int:
    return rows.shape[-1] // BLOCK


def best_of_blocks(rows: Tensor) -> Tensor:
    """The best value [R, N] of each block."""
    return rows.view(len(rows), -1, BLOCK).amax(-1)


def first_best(rows: Tensor) -> Tensor:
    """Where each row's best value stands [R]; the first of several. What `argmax` gives, faster."""
    block = best_of_blocks(rows).argmax(-1, keepdim=True)
    inside = rows.view(len(rows), -1, BLOCK).gather(1, block[..., None].expand(-1, -1, BLOCK))
    return (block * BLOCK + inside.argmax(-1))[:, 0]


def best_blocks(rows: Tensor, best: Tensor, count: int) -> Pool:
    """The `count` blocks of each row, of more, whose best values are the highest.

    `best` is what `best_of_blocks` gives. Every value above `rest` is in the pool.
    """
    highest = best.topk(count + 1)
    blocks = highest.indices[:, :-1].sort(-1).values
    # One copy of whole blocks: a gather goes value by value.
    offsets = torch.arange(len(rows), device=rows.device)[:, None] * best.shape[-1]
    values = rows.reshape(-1, BLOCK).index_select(0, (blocks + offsets).flatten())
    ids = blocks[..., None] * BLOCK + torch.arange(BLOCK, device=rows.device)
    return Pool(values.view(len(rows), -1), ids.flatten(1), highest.values[:, -1:])


def whole_pool(rows: Tensor) -> Pool:
    """All of each row."""
    ids = torch.arange(rows.shape[-1], device=rows.device).expand(len(rows), -1)
    return Pool(rows, ids, torch.full_like(rows[:, :1], -torch.inf))
