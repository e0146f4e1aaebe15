"""Growing draft trees best first, by a model, for many sequences at once.

SpecExec (arXiv 2406.02532, section 4, algorithm 2): the tree of the most probable continuations
is a shortest-path search, where an edge weighs minus the log of the draft's probability. Each step
runs the best unexpanded nodes (`width`) through the draft and adds their best children
(`branch`); since scores only fall along a path, the best nodes at the end (`budget`) are a tree.
"""

import heapq
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.sequence import Sequence
from engine.tree import DraftTree


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


class Growth:
    """One sequence's tree while it grows.

    Nodes are numbered as they are made, scratch rows as the draft runs them: node 0 is the root,
    and so is scratch row 0.
    """

    def __init__(self, sequence: Sequence, bounds: Bounds, room: int) -> None:
        self.sequence = sequence
        self.bounds = bounds
        self.room = min(room, bounds.draft_rows)
        self.budget = min(bounds.budget, room)
        self.max_depth = min(bounds.depth, sequence.max_draft_depth)
        self.tokens = [sequence.tokens[-1]]
        self.parents = [-1]
        self.depths = [0]
        self.scores = [0.0]
        self.scratch: dict[int, int] = {}  # node -> scratch row
        self.ancestors = torch.zeros(self.room, self.room, dtype=torch.bool)
        self._frontier = [(0.0, 0)] if self.max_depth else []  # (minus score, node)

    def select(self) -> list[int]:
        """Take the best nodes worth expanding off the frontier and give them scratch rows."""
        best = heapq.nlargest(self.budget, self.scores)
        threshold = best[-1] if len(best) == self.budget else -float("inf")
        chosen: list[int] = []
        while self._frontier and len(chosen) < self.bounds.width and len(self.scratch) < self.room:
            cost, node = heapq.heappop(self._frontier)
            if -cost < threshold:
                break  # a child could not enter the tree, nor could any later candidate's
            row = self.scratch[node] = len(self.scratch)
            if node:
                self.ancestors[row] = self.ancestors[self.scratch[self.parents[node]]]
            self.ancestors[row, row] = True
            chosen.append(node)
        return chosen

    def extend(self, nodes: Seq[int], tokens: Tensor, scores: Tensor) -> None:
        """Add the children of expanded nodes; tokens and log scores are [nodes, branch]."""
        for node, children, gains in zip(nodes, tokens.tolist(), scores.tolist(), strict=True):
            for token, gain in zip(children, gains, strict=True):
                if gain > -float("inf"):
                    self._add(node, token, self.scores[node] + gain)

    def _add(self, parent: int, token: int, score: float) -> None:
        node, depth = len(self.tokens), self.depths[parent] + 1
        self.tokens.append(token)
        self.parents.append(parent)
        self.depths.append(depth)
        self.scores.append(score)
        if depth < self.max_depth and not self.sequence.is_terminal(token):
            heapq.heappush(self._frontier, (-score, node))

    def path(self, node: int) -> list[int]:
        """Drafted tokens from below the root down to this node."""
        tokens: list[int] = []
        while node:
            tokens.append(self.tokens[node])
            node = self.parents[node]
        return tokens[::-1]

    def finish(self) -> tuple[DraftTree, list[int | None]]:
        """The best nodes as a tree, and the scratch row of each tree row that the draft ran."""
        # Ties go to the older node, so that a parent never comes behind its child.
        order = sorted(range(len(self.tokens)), key=lambda node: (-self.scores[node], node))
        kept = order[: self.budget]
        row_of = {node: row for row, node in enumerate(kept)}
        tree = DraftTree(
            tokens=tuple(self.tokens[node] for node in kept),
            parents=tuple(row_of.get(self.parents[node], -1) for node in kept),
            depths=tuple(self.depths[node] for node in kept),
            scores=tuple(self.scores[node] for node in kept),
        )
        return tree, [self.scratch.get(node) for node in kept]


Forward = Callable[[list[tuple[Growth, list[int]]]], Tensor]
Children = Callable[[Growth, list[int], Tensor], tuple[Tensor, Tensor]]


def grow(growths: Seq[Growth], forward: Forward, children: Children) -> None:
    """Grow all trees together, one draft step at a time.

    `forward` runs the chosen nodes of all trees in one batch and gives their logits [rows, V];
    `children` turns the logits of one tree's nodes into (tokens, scores) [nodes, branch].
    """
    for _ in range(max((growth.max_depth for growth in growths), default=0)):
        step = [(growth, nodes) for growth in growths if (nodes := growth.select())]
        if not step:
            return
        logits = forward(step)
        first = 0
        for growth, nodes in step:
            own = logits[first : first + len(nodes)]
            growth.extend(nodes, *children(growth, nodes, own))
            first += len(nodes)
