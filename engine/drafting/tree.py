"""The draft tree: guesses of one sequence that a single pass of the target checks together.

SpecInfer (arXiv 2305.09781, section 3): guesses that share a prefix share its rows, and a mask
lets every row see its own ancestors only.
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
    """How far a tree may grow."""

    depth: int  # levels below the root, and steps of the draft
    width: int  # rows of one draft step
    branch: int  # children of one row
    budget: int  # rows of the finished tree, the root among them

    @property
    def draft_rows(self) -> int:
        """Rows the draft may run for one tree."""
        return 1 + (self.depth - 1) * self.width


@dataclass(frozen=True)
class DraftTree:
    """Drafted tokens of one sequence, one row each.

    Row 0 is the last emitted token. A parent always precedes its children, and no two children of
    a parent share a token. Scores are log-probabilities of the path down to the row, so they fall
    from parent to child; row 0 has 0.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]  # -1 for row 0
    depths: tuple[int, ...]  # 0 for row 0
    scores: tuple[float, ...]
    sources: tuple[str, ...]  # which draft a row came from; "" for row 0

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
        """The tree that guesses nothing: plain decoding."""
        return cls((token,), (-1,), (0,), (0.0,), ("",))

    @classmethod
    def chain(
        cls, tokens: Sequence[int], scores: Sequence[float] | None = None, source: str = ""
    ) -> DraftTree:
        """One guess: `tokens[0]` is the last emitted token. Without scores all are 0."""
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
        """Return who sees whom, [N, N] bool: row i sees its ancestors and itself."""
        import numpy as np
        import torch

        sees = np.eye(len(self), dtype=np.bool_)
        for row, parent in enumerate(self.parents[1:], 1):
            sees[row] |= sees[parent]
        return torch.from_numpy(sees)

    def children(self, row: int) -> Mapping[int, int]:
        """The children of a row: token -> row."""
        return self._children[row]

    def origin(self, row: int, token: int) -> tuple[str, int]:
        """The source and level of a token that the target chose at a row."""
        child = self.children(row).get(token)
        return (TARGET, 0) if child is None else (self.sources[child], self.depths[child])

    def path(self, row: int) -> list[int]:
        """The rows from the root down to this one, both included."""
        rows = []
        while row >= 0:
            rows.append(row)
            row = self.parents[row]
        return rows[::-1]

    def only(self, rows: Sequence[int]) -> DraftTree:
        """The tree of these rows, in their order: the root, and with each its parent."""
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
