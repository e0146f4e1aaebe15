"""The best values of long rows, found by way of the best value of each block.

Looking through a whole vocabulary for a few tokens costs more than everything else that a choice
takes. The n best values of a row lie in the n blocks whose own best values are the highest, so only
these blocks are sorted. M rows of a matrix, R rows of interest, V values a row in whole blocks, N
blocks.
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

    float16 and bfloat16 values stay as they are until they are looked at. All results have the type
    of `best`.
    """

    values: Tensor  # [M, V]
    where: Tensor  # [R] int64: which rows
    best: Tensor  # [R, N] float32 or float64
    size: int  # values of a row before it was lengthened to whole blocks

    @classmethod
    def of(cls, rows: Tensor) -> "Rows":
        """Return all rows of a tensor [R, any size]."""
        return Matrix(rows).rows(range(len(rows)))

    def __len__(self) -> int:
        return len(self.where)

    @property
    def num_blocks(self) -> int:
        """Blocks of a row."""
        return self.best.shape[-1]

    def only(self, rows: Tensor) -> "Rows":
        """Return the rows selected by a boolean mask [R] or by their numbers."""
        return replace(self, where=self.where[rows], best=self.best[rows])

    def whole(self) -> Tensor:
        """Return a copy of the rows [R, V]."""
        return self.values[self.where].to(self.best.dtype)

    def every(self, step: int) -> Tensor:
        """Return each row's blocks 0, step, 2 step, ...: [R, n, BLOCK]."""
        some = self.values.view(len(self.values), -1, BLOCK)[:, ::step]
        return some[self.where].to(self.best.dtype)

    def at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return single values; `rows` are numbers among the R rows."""
        return self.values[self.where[rows], columns].to(self.best.dtype)


class Matrix:
    """A matrix of which some rows are looked at, one after another.

    The best values of a row's blocks are computed once. Rows are asked for in ascending order, more
    or less: all rows up to the last one asked for are computed.
    """

    def __init__(self, rows: Tensor) -> None:
        """Take rows [M, any size], which are lengthened to whole blocks by minus infinity."""
        self.size = rows.shape[-1]
        self.values = whole_blocks(rows)
        shape = len(rows), self.values.shape[-1] // BLOCK
        dtype = torch.promote_types(rows.dtype, torch.float32)
        self._best = torch.empty(shape, dtype=dtype, device=rows.device)
        self._num_computed = 0

    def rows(self, where: Sequence[int]) -> Rows:
        """Return the rows of these numbers, at least one."""
        last = max(where) + 1
        if last > self._num_computed:
            part = slice(self._num_computed, last)
            self._best[part] = best_of_blocks(self.values[part])
            self._num_computed = last
        places = torch.tensor(where).to(self.values.device, non_blocking=True)
        return Rows(self.values, places, self._best[places], self.size)


@dataclass(frozen=True)
class Selection:
    """Some blocks of each row, side by side in their old order."""

    values: Tensor  # [R, n * BLOCK]
    ids: Tensor  # [R, n * BLOCK] int64: the place of each value in its row
    rest: Tensor  # [R, 1] the best value outside of the selection; minus infinity if there is none


def whole_blocks(rows: Tensor) -> Tensor:
    """Return rows lengthened to whole blocks by minus infinity; the same tensor if they are."""
    missing = -rows.shape[-1] % BLOCK
    return F.pad(rows, (0, missing), value=-torch.inf) if missing else rows


def best_of_blocks(rows: Tensor) -> Tensor:
    """Return the best value [R, N] of each block of rows [R, V]."""
    return rows.view(len(rows), -1, BLOCK).amax(-1)


def first_best(rows: Rows) -> Tensor:
    """Return the place [R] of each row's best value, the first of several: a faster `argmax`."""
    block = rows.best.argmax(-1)
    inside = rows.values.view(len(rows.values), -1, BLOCK)[rows.where, block]
    return block * BLOCK + inside.argmax(-1)


def best_blocks(rows: Rows, count: int) -> Selection:
    """Return the `count` blocks of each row, of more than that, whose best values are the highest.

    Every value above `rest` is in the selection.
    """
    highest = rows.best.topk(count + 1)
    blocks = highest.indices[:, :-1].sort(-1).values
    # One copy of whole blocks: a gather goes value by value.
    places = blocks + rows.where[:, None] * rows.num_blocks
    values = rows.values.reshape(-1, BLOCK).index_select(0, places.flatten())
    ids = blocks[..., None] * BLOCK + torch.arange(BLOCK, device=values.device)
    values = values.view(len(rows), -1).to(rows.best.dtype)
    return Selection(values, ids.flatten(1), highest.values[:, -1:])


def all_blocks(rows: Rows) -> Selection:
    """Return all blocks of each row."""
    values = rows.whole()
    ids = torch.arange(values.shape[-1], device=values.device).expand(len(rows), -1)
    return Selection(values, ids, torch.full_like(values[:, :1], -torch.inf))
