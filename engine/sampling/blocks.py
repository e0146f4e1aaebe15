"""The best values of long rows, found by way of the best of each block.

Looking through a whole vocabulary for a few tokens costs more than everything else a choice takes.
The n best values of a row lie in the n blocks whose own best values are the highest, so that only
these blocks are sorted. R rows, V values a row in whole blocks, N blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 64  # values


@dataclass(frozen=True)
class Rows:
    """Some rows of a matrix [M, V], and the best value of each of their blocks.

    float16 and bfloat16 stay as they are until they are looked at: everything that comes out of
    here has the type of `best`.
    """

    values: Tensor  # [M, V]
    where: Tensor  # [R] int64: which rows
    best: Tensor  # [R, N] float32 or float64
    size: int  # values of a row before it was lengthened to whole blocks

    @classmethod
    def of(cls, rows: Tensor) -> "Rows":
        """All rows [R, any size]."""
        return Matrix(rows).rows(range(len(rows)))

    def __len__(self) -> int:
        return len(self.where)

    @property
    def num_blocks(self) -> int:
        return self.best.shape[-1]

    def only(self, rows: Tensor) -> "Rows":
        """Those of a mask [R], or with these numbers."""
        return replace(self, where=self.where[rows], best=self.best[rows])

    def whole(self) -> Tensor:
        """The rows themselves [R, V]: a copy."""
        return self.values[self.where].to(self.best.dtype)

    def every(self, step: int) -> Tensor:
        """Every so many of each row's blocks [R, n, BLOCK], the first among them."""
        some = self.values.view(len(self.values), -1, BLOCK)[:, ::step]
        return some[self.where].to(self.best.dtype)

    def at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Values of some of the rows [R]."""
        return self.values[self.where[rows], columns].to(self.best.dtype)


class Matrix:
    """Rows of which some are looked at, one after another: the best of a block is found once.

    Rows are asked for in ascending order, more or less: all up to the last one are looked at.
    """

    def __init__(self, rows: Tensor) -> None:
        """Rows [M, any size], lengthened to whole blocks by minus infinity."""
        self.size = rows.shape[-1]
        self.values = whole_blocks(rows)
        shape = len(rows), self.values.shape[-1] // BLOCK
        dtype = torch.promote_types(rows.dtype, torch.float32)
        self._best = torch.empty(shape, dtype=dtype, device=rows.device)
        self._looked_at = 0

    def rows(self, where: Sequence[int]) -> Rows:
        """Some of them, at least one."""
        last = max(where) + 1
        if last > self._looked_at:
            part = slice(self._looked_at, last)
            self._best[part] = best_of_blocks(self.values[part])
            self._looked_at = last
        places = torch.tensor(where).to(self.values.device, non_blocking=True)
        return Rows(self.values, places, self._best[places], self.size)


@dataclass(frozen=True)
class Pool:
    """Some blocks of each row, side by side in their old order."""

    values: Tensor  # [R, n * BLOCK]
    ids: Tensor  # [R, n * BLOCK] int64: where in its row a value stands
    rest: Tensor  # [R, 1] the best value left out; minus infinity if none is


def whole_blocks(rows: Tensor) -> Tensor:
    """Rows lengthened to whole blocks by minus infinity; as they are if they are whole."""
    missing = -rows.shape[-1] % BLOCK
    return F.pad(rows, (0, missing), value=-torch.inf) if missing else rows


def best_of_blocks(rows: Tensor) -> Tensor:
    """The best value [R, N] of each block of rows [R, V]."""
    return rows.view(len(rows), -1, BLOCK).amax(-1)


def first_best(rows: Rows) -> Tensor:
    """Where each row's best value stands [R]; the first of several. What `argmax` gives, faster."""
    block = rows.best.argmax(-1)
    inside = rows.values.view(len(rows.values), -1, BLOCK)[rows.where, block]
    return block * BLOCK + inside.argmax(-1)


def best_blocks(rows: Rows, count: int) -> Pool:
    """The `count` blocks of each row, of more, whose best values are the highest.

    Every value above `rest` is in the pool.
    """
    highest = rows.best.topk(count + 1)
    blocks = highest.indices[:, :-1].sort(-1).values
    # One copy of whole blocks: a gather goes value by value.
    places = blocks + rows.where[:, None] * rows.num_blocks
    values = rows.values.reshape(-1, BLOCK).index_select(0, places.flatten())
    ids = blocks[..., None] * BLOCK + torch.arange(BLOCK, device=values.device)
    values = values.view(len(rows), -1).to(rows.best.dtype)
    return Pool(values, ids.flatten(1), highest.values[:, -1:])


def whole_pool(rows: Rows) -> Pool:
    """All of each row."""
    values = rows.whole()
    ids = torch.arange(values.shape[-1], device=values.device).expand(len(rows), -1)
    return Pool(values, ids, torch.full_like(values[:, :1], -torch.inf))
