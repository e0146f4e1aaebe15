"""The draft tree: proposed continuations of one sequence that one pass of the target verifies.

SpecInfer (arXiv 2305.09781, section 3): continuations that share a prefix share its rows, and a
mask lets each row attend to its own ancestors only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from engine.messages import TARGET

if TYPE_CHECKING:  # a method's file imports this module, and the front end reads that file
    from torch import Tensor


@dataclass(frozen=True)
class Bounds:
    """The largest size of a draft tree."""

    depth: int  # levels below the root, and so steps of the draft model
    width: int  # rows of one step of the draft model
    branch: int  # children of one row
    budget: int  # rows of the finished tree, the root included

    @property
    def draft_rows(self) -> int:
        """Return the most rows that the draft model runs for one tree."""
        return 1 + (self.depth - 1) * self.width


@dataclass(frozen=True)
class DraftTree:
    """A tree of drafted tokens for one sequence, one row for each token.

    Row 0, the root, is the last emitted token. A parent precedes its children, and no two children
    of a parent have the same token. A score is the log-probability of the path down to its row, so
    scores fall from parent to child; row 0 has the score 0.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]  # -1 for row 0
    depths: tuple[int, ...]  # 0 for row 0
    scores: tuple[float, ...]
    sources: tuple[str, ...]  # the name of the draft that proposed a row; "" for row 0

    def __post_init__(self) -> None:
        rows = len(self.tokens)
        assert rows > 0, "a tree has a root"
        assert len(self.parents) == len(self.depths) == len(self.scores) == rows
        assert len(self.sources) == rows
        assert self.parents[0] == -1 and self.depths[0] == 0, "row 0 is the root"
        for row in range(1, rows):
            parent = self.parents[row]
            assert 0 <= parent < row, f"row {row}: its parent {parent} does not precede it"
            assert self.depths[row] == self.depths[parent] + 1, f"row {row}: wrong depth"
        edges = set(zip(self.parents, self.tokens, strict=True))
        assert len(edges) == rows, "two children of one parent share a token"

    @classmethod
    def root(cls, token: int) -> DraftTree:
        """Return a tree of the last emitted token alone, as plain decoding uses it."""
        return cls((token,), (-1,), (0,), (0.0,), ("",))

    @classmethod
    def chain(
        cls, tokens: Sequence[int], scores: Sequence[float] | None = None, source: str = ""
    ) -> DraftTree:
        """Return a tree of one path. `tokens[0]` is the last emitted token.

        Without `scores` all scores are 0.
        """
        rows = range(len(tokens))
        return cls(
            tokens=tuple(tokens),
            parents=tuple(row - 1 for row in rows),
            depths=tuple(rows),
            scores=tuple(scores) if scores is not None else (0.0,) * len(tokens),
            sources=("", *(source,) * (len(tokens) - 1)),
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def mask(self) -> Tensor:
        """Return the attention mask, [N, N] bool: row i attends to its ancestors and itself."""
        import numpy as np
        import torch

        mask = np.eye(len(self), dtype=np.bool_)
        for row, parent in enumerate(self.parents[1:], 1):
            mask[row] |= mask[parent]
        return torch.from_numpy(mask)

    def children(self, row: int) -> Mapping[int, int]:
        """Return the children of a row as a mapping from token to row."""
        return self._children[row]

    def origin(self, row: int, token: int) -> tuple[str, int]:
        """Return the source and level of a token that the target chose at a row.

        The source is `TARGET` and the level 0 for a token that was not drafted there.
        """
        child = self.children(row).get(token)
        return (TARGET, 0) if child is None else (self.sources[child], self.depths[child])

    def path(self, row: int) -> list[int]:
        """Return the rows from the root down to this one, both included."""
        rows = []
        while row >= 0:
            rows.append(row)
            row = self.parents[row]
        return rows[::-1]

    def only(self, rows: Sequence[int]) -> DraftTree:
        """Return the tree of these rows, in their order.

        Args:
            rows: the root first, and no row before its parent.
        """
        new_row = {row: new for new, row in enumerate(rows)} | {-1: -1}
        return DraftTree(
            tokens=tuple(self.tokens[row] for row in rows),
            parents=tuple(new_row[self.parents[row]] for row in rows),
            depths=tuple(self.depths[row] for row in rows),
            scores=tuple(self.scores[row] for row in rows),
            sources=tuple(self.sources[row] for row in rows),
        )

    @cached_property
    def _children(self) -> tuple[dict[int, int], ...]:
        children: tuple[dict[int, int], ...] = tuple({} for _ in self.tokens)
        for row in range(1, len(self)):
            children[self.parents[row]][self.tokens[row]] = row
        return children
