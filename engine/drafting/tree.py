"""The draft tree: guesses of one sequence that a single pass of the target checks together.

SpecInfer (arXiv 2305.09781, section 3): guesses that share a prefix share its rows, and a mask
lets every row see its own ancestors only.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from engine.messages import TARGET


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
    def root(cls, token: int) -> "DraftTree":
        """The tree that guesses nothing: plain decoding."""
        return cls((token,), (-1,), (0,), (0.0,), ("",))

    @classmethod
    def chain(
        cls, tokens: Sequence[int], scores: Sequence[float] | None = None, source: str = ""
    ) -> "DraftTree":
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
        """[N, N] bool: row i sees its ancestors and itself."""
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

    def limit(self, max_depth: int, max_rows: int) -> "DraftTree":
        """The best-scored part: at most `max_rows` (at least the root), none below `max_depth`.

        Takes the best row whose parent is in, again and again; equal scores go to the older row.
        The rows keep their order.
        """
        if len(self) <= max_rows and max(self.depths) <= max_depth:
            return self
        kept: list[int] = []
        frontier = [(-self.scores[0], 0)]
        while frontier and len(kept) < max(max_rows, 1):
            _, row = heapq.heappop(frontier)
            kept.append(row)
            if self.depths[row] < max_depth:
                for child in self.children(row).values():
                    heapq.heappush(frontier, (-self.scores[child], child))
        return self.only(sorted(kept))

    def only(self, rows: Sequence[int]) -> "DraftTree":
        """The tree of these rows, in their order: the root, and with each its parent."""
        new_row = {row: new for new, row in enumerate(rows)} | {-1: -1}
        return DraftTree(
            tokens=tuple(self.tokens[row] for row in rows),
            parents=tuple(new_row[self.parents[row]] for row in rows),
            depths=tuple(self.depths[row] for row in rows),
            scores=tuple(self.scores[row] for row in rows),
            sources=tuple(self.sources[row] for row in rows),
        )

    def merge(self, other: "DraftTree") -> "DraftTree":
        """All paths of both trees, which share their root token. Rows of self come first.

        A row found in both has the better of its two scores and the source of self.
        """
        assert self.tokens[0] == other.tokens[0], "trees to merge have the same root"
        tokens, parents, depths = list(self.tokens), list(self.parents), list(self.depths)
        scores, sources = list(self.scores), list(self.sources)
        row_of = {(p, t): row for row, (p, t) in enumerate(zip(parents, tokens, strict=True))}
        merged = [0] * len(other)  # row of other -> row here
        for row in range(1, len(other)):
            edge = merged[other.parents[row]], other.tokens[row]
            if edge not in row_of:
                row_of[edge] = len(tokens)
                parents.append(edge[0])
                tokens.append(edge[1])
                depths.append(other.depths[row])
                scores.append(other.scores[row])
                sources.append(other.sources[row])
            merged[row] = row_of[edge]
            scores[merged[row]] = max(scores[merged[row]], other.scores[row])
        return DraftTree(
            tuple(tokens), tuple(parents), tuple(depths), tuple(scores), tuple(sources)
        )

    @cached_property
    def _children(self) -> tuple[dict[int, int], ...]:
        children: tuple[dict[int, int], ...] = tuple({} for _ in self.tokens)
        for row in range(1, len(self)):
            children[self.parents[row]][self.tokens[row]] = row
        return children
