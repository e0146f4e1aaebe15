"""The best values of long rows, found by means of the best value of each block.

Sorting a whole vocabulary to find a few tokens takes longer than everything else in choosing a
token. The n best values of a row are in the n blocks with the highest best values, so only these
blocks are searched.

In shapes, M is the number of rows of a matrix, R the number of selected rows, V the number of
values per row, padded to whole blocks, and N the number of blocks per row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.transfer import upload

BLOCK = 64  # values per block
AT_ONCE = 1 << 21  # values of whole rows that are computed with at a time: limits the memory


@dataclass(frozen=True)
class Rows:
    """Selected rows of a matrix [M, V], with the best value of each of their blocks.

    float16 and bfloat16 values are converted only when they are read. All results have the type of
    `best`.
    """

    values: Tensor  # [M, V]
    where: Tensor  # [R] int64: numbers of the selected rows
    best: Tensor  # [R, N] float32 or float64
    size: int  # values per row without padding

    @classmethod
    def of(cls, rows: Tensor) -> "Rows":
        """Return the selection of all rows of a tensor [R, any size]."""
        return Matrix(rows).rows(range(len(rows)))

    def __len__(self) -> int:
        return len(self.where)

    @property
    def num_blocks(self) -> int:
        """The number of blocks per row."""
        return self.best.shape[-1]

    def only(self, rows: Tensor | slice) -> "Rows":
        """Return the rows selected by a mask [R], or by their numbers or a slice of the R rows."""
        return replace(self, where=self.where[rows], best=self.best[rows])

    def parts(self) -> Iterator[slice]:
        """Yield the R rows in parts of which all values may be computed with at a time."""
        step = max(1, AT_ONCE // self.values.shape[-1])
        return (slice(first, first + step) for first in range(0, len(self), step))

    def whole(self) -> Tensor:
        """Return a copy of the selected rows, [R, V]."""
        return self.values[self.where].to(self.best.dtype)

    def every(self, step: int) -> Tensor:
        """Return blocks 0, step, 2 step, ... of each selected row, [R, n, BLOCK]."""
        some = self.values.view(len(self.values), -1, BLOCK)[:, ::step]
        return some[self.where].to(self.best.dtype)

    def at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return single values of the selected rows; `rows` are numbers among the R rows."""
        return self.values[self.where[rows], columns].to(self.best.dtype)


class Matrix:
    """A matrix from which rows are selected, mostly in ascending order.

    The best values of each block are computed once: selecting a row computes them for all rows up
    to that one.
    """

    def __init__(self, rows: Tensor) -> None:
        """Take rows [M, any size], which are padded to whole blocks with minus infinity."""
        self.size = rows.shape[-1]
        self.values = whole_blocks(rows)
        shape = len(rows), self.values.shape[-1] // BLOCK
        dtype = torch.promote_types(rows.dtype, torch.float32)
        self._best = torch.empty(shape, dtype=dtype, device=rows.device)
        self._num_computed = 0

    def rows(self, where: Sequence[int]) -> Rows:
        """Return a selection of rows, given by at least one row number."""
        last = max(where) + 1
        if last > self._num_computed:
            part = slice(self._num_computed, last)
            self._best[part] = best_of_blocks(self.values[part])
            self._num_computed = last
        places = upload(torch.tensor(where), self.values.device)
        return Rows(self.values, places, self._best[places], self.size)


@dataclass(frozen=True)
class Selection:
    """Some blocks of each row, in their original order."""

    values: Tensor  # [R, n * BLOCK]
    ids: Tensor  # [R, n * BLOCK] int64: the index of each value in its row
    rest: Tensor  # [R, 1] the best value of the other blocks; minus infinity without any


def whole_blocks(rows: Tensor) -> Tensor:
    """Return rows padded to whole blocks with minus infinity; `rows` itself if they are whole."""
    missing = -rows.shape[-1] % BLOCK
    return F.pad(rows, (0, missing), value=-torch.inf) if missing else rows


def best_of_blocks(rows: Tensor) -> Tensor:
    """Return the best value [R, N] of each block of rows [R, V]."""
    return rows.view(len(rows), -1, BLOCK).amax(-1)


def argmax_of_rows(rows: Rows) -> Tensor:
    """Return the index [R] of each row's best value, the first if there are several.

    This is faster than `argmax`, since it searches one block of each row.
    """
    block = rows.best.argmax(-1)
    inside = rows.values.view(len(rows.values), -1, BLOCK)[rows.where, block]
    return block * BLOCK + inside.argmax(-1)


def best_blocks(rows: Rows, count: int) -> Selection:
    """Return the `count` blocks of each row with the highest best values.

    Every value above `rest` of the result is selected. Rows must have more than `count` blocks.
    """
    highest = rows.best.topk(count + 1)
    blocks = highest.indices[:, :-1].sort(-1).values
    # This copies whole blocks; `gather` would copy single values.
    places = blocks + rows.where[:, None] * rows.num_blocks
    values = rows.values.reshape(-1, BLOCK).index_select(0, places.flatten())
    ids = blocks[..., None] * BLOCK + torch.arange(BLOCK, device=values.device)
    values = values.view(len(rows), -1).to(rows.best.dtype)
    return Selection(values, ids.flatten(1), highest.values[:, -1:])


def all_blocks(rows: Rows) -> Selection:
    """Return a selection of all blocks of each row."""
    values = rows.whole()
    ids = torch.arange(values.shape[-1], device=values.device).expand(len(rows), -1)
    return Selection(values, ids, torch.full_like(values[:, :1], -torch.inf))
