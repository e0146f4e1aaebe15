"""A draft tree while it grows, and from one pass to the next.

SpecExec (arXiv 2406.02532, section 4, algorithm 2): the tree of the most probable continuations
is a shortest-path search, where an edge weighs minus the log of the draft's probability. Each step
runs the best nodes that were not run yet through the draft and adds their best children; since
scores only fall along a path, the best nodes at the end are a tree.

A growth outlives its pass. What the target accepted moves the root down; the branch below it,
drafted while the weights travelled, is the start of the next tree.
"""

import heapq
from collections.abc import Iterator, Sequence as Seq
from dataclasses import dataclass, field
from math import exp, inf

import numpy as np
import torch
from torch import Tensor

from engine.drafting.calibration import Calibration
from engine.drafting.tree import DraftTree
from engine.messages import PREDICTION
from engine.sequences.sequence import Sequence


@dataclass(eq=False, slots=True)
class Node:
    """A drafted token."""

    token: int
    position: int  # in the sequence
    parent: "Node | None"
    source: str  # which draft proposed it first; the request's prediction goes before all
    score: float  # log-probability of the path down to it, calibrated
    # Which drafts proposed it -> their log-probability of it behind its parent.
    beliefs: dict[str, float] = field(default_factory=dict)
    children: dict[int, "Node"] = field(default_factory=dict)  # by token
    slot: int | None = None  # of its KV in the draft's scratch, once the draft ran it
    seen: int = 0  # a bit for each of `Growth.ran` that is on its path, itself included


class Growth:
    """One sequence's tree. Nodes that the draft could still run are its frontier.

    `budget` bounds the rows of a finished tree, so what scores worse than its last is not worth
    running.
    """

    def __init__(self, sequence: Sequence, budget: int) -> None:
        self.sequence = sequence
        self.budget = budget
        position = len(sequence.tokens) - 1
        self.root = Node(sequence.tokens[-1], position, None, "", 0.0)
        self.last = position + sequence.max_draft_depth  # position behind which nothing is emitted
        self.ran: list[Node] = []
        self._num_nodes = 0
        self._frontier: list[tuple[float, int, Node]] = []  # (minus score, age, node)
        self._best: list[float] = []  # scores of the best nodes below the root, worst first
        self._mass = 0.0
        self._offer(self.root)

    def __len__(self) -> int:
        """Rows of the tree as it stands, at most `budget`."""
        return 1 + len(self._best)

    @property
    def num_levels(self) -> int:
        """Levels that the draft has run, the root's among them: its steps, seen from the root."""
        deepest = max((node.position for node in self.ran), default=self.root.position - 1)
        return deepest - self.root.position + 1

    @property
    def expected(self) -> float:
        """Tokens a pass is expected to emit with the best `budget` rows as the tree."""
        return 1.0 + self._mass

    def probability(self, node: Node) -> float:
        """That the target's own path leads through this node."""
        return exp(node.score - self.root.score)

    def pop(self, count: int, depth: int, floor: float = -inf) -> list[Node]:
        """The best nodes of the frontier, at most `count`, above level `depth`; parents first.

        None scores below `floor` (relative to the root). They are off the frontier until put back.
        """
        chosen: list[Node] = []
        too_deep: list[Node] = []
        while self._frontier and len(chosen) < count:
            cost, _, node = heapq.heappop(self._frontier)
            if node.slot is not None or -cost != node.score:
                continue  # run since, or offered again with a better score
            if node.score - self.root.score < floor:
                too_deep.append(node)
                break
            deep = node.position - self.root.position >= depth
            (too_deep if deep else chosen).append(node)
        self.put_back(too_deep)
        return chosen

    def put_back(self, nodes: Seq[Node]) -> None:
        """These nodes were not run after all."""
        for node in nodes:
            self._offer(node)

    @property
    def floor(self) -> float:
        """The score below which a node's children could not enter the tree."""
        if len(self._best) < self.budget - 1:
            return -inf
        return self._best[0] if self._best else inf  # a budget of one is the root's

    def run(self, node: Node, slot: int) -> None:
        """The draft ran this node; its KV is in this slot."""
        node.slot = slot
        self._see(node)

    def take_back(self, nodes: Seq[Node]) -> list[int]:
        """The nodes run last were not run after all; their scratch slots."""
        slots = [node.slot for node in nodes if node.slot is not None]
        assert len(slots) == len(nodes) and self.ran[-len(nodes) :] == list(nodes)
        del self.ran[-len(nodes) :]
        for node in nodes:
            node.slot, node.seen = None, 0
            self._offer(node)
        return slots

    def visible(self, nodes: Seq[Node]) -> tuple[list[Node], Tensor | None]:
        """The nodes run before these and on their paths, and who sees whom.

        `nodes` are those run last. The mask is [nodes, earlier + nodes]; None for a lone root,
        which sees all before it.
        """
        if len(nodes) == 1 and nodes[0] is self.root:
            return [], None
        width = len(self.ran) // 8 + 1
        packed = b"".join(node.seen.to_bytes(width, "little") for node in nodes)
        bits = np.frombuffer(packed, np.uint8).reshape(len(nodes), width)
        sees = np.unpackbits(bits, axis=1, bitorder="little").view(np.bool_)
        columns = np.flatnonzero(sees.any(axis=0))
        earlier = [self.ran[column] for column in columns[: -len(nodes)]]
        return earlier, torch.from_numpy(sees[:, columns])

    def add(self, parent: Node, token: int, belief: float, gain: float, source: str) -> Node:
        """A child of a node; one that is there already keeps the better of its scores."""
        child = parent.children.get(token)
        score = parent.score + gain
        if child is None:
            child = Node(token, parent.position + 1, parent, source, score)
            parent.children[token] = child
            self._count(child)
            self._offer(child)
        elif score > child.score:
            self._raise(child, score - child.score)
        child.beliefs[source] = belief
        if source == PREDICTION:
            child.source = source  # clients are told what came of theirs, whoever else had it too
        return child

    def insert(self, tree: DraftTree, calibration: Calibration) -> None:
        """The paths of another draft's tree, which stands on the same root."""
        nodes = [self.root]
        for row in range(1, len(tree)):
            parent, source = tree.parents[row], tree.sources[row]
            belief = min(tree.scores[row] - tree.scores[parent], 0.0)
            gain = calibration.gain(source, belief)
            nodes.append(self.add(nodes[parent], tree.tokens[row], belief, gain, source))

    def ranked(self, rows: int, depth: int) -> list[Node]:
        """The best nodes, the root first, at most so many rows and levels; scores fall."""
        order: list[Node] = []
        heap = [(0.0, 0, self.root)]
        pushed = 1
        while heap and len(order) < max(rows, 1):
            _, _, node = heapq.heappop(heap)
            order.append(node)
            if node.position - self.root.position < depth:
                for child in node.children.values():
                    heapq.heappush(heap, (-child.score, pushed, child))
                    pushed += 1
        return order

    def tree(self, nodes: Seq[Node]) -> DraftTree:
        """A tree of these nodes, each behind its parent, the root first."""
        row_of = {id(node): row for row, node in enumerate(nodes)}
        return DraftTree(
            tokens=tuple(node.token for node in nodes),
            parents=(-1, *(row_of[id(node.parent)] for node in nodes[1:])),
            depths=tuple(node.position - self.root.position for node in nodes),
            scores=tuple(min(node.score - self.root.score, 0.0) for node in nodes),
            sources=tuple(node.source if node is not self.root else "" for node in nodes),
        )

    def path(self, node: Node) -> list[int]:
        """Drafted tokens from below the root down to this node."""
        tokens = []
        while node is not self.root:
            assert node.parent is not None, "a node outside of its tree"
            tokens.append(node.token)
            node = node.parent
        return tokens[::-1]

    def follow(self, tokens: Seq[int]) -> list[Node]:
        """The nodes of what was emitted, the root first, as far as it was drafted."""
        nodes = [self.root]
        for token in tokens:
            child = nodes[-1].children.get(token)
            if child is None:
                break
            nodes.append(child)
        return nodes

    def reroot(self, root: Node) -> list[int]:
        """Go on below this node; gives the scratch slots that nobody needs any more."""
        self.root = root
        root.parent = None
        self._frontier.clear()
        self._best.clear()
        self._mass = 0.0
        below = set()
        for node in self._walk(root):
            below.add(id(node))
            if node is not root:
                self._count(node)
            if node.slot is None:
                self._offer(node)
        freed = [n.slot for n in self.ran if id(n) not in below and n.slot is not None]
        kept = [n for n in self.ran if id(n) in below]
        self.ran = []
        for node in kept:
            self._see(node)
        return freed

    def _see(self, node: Node) -> None:
        """Number a node among those that were run; its parent has its number."""
        above = node.parent.seen if node.parent is not None else 0
        node.seen = above | 1 << len(self.ran)
        self.ran.append(node)

    def _walk(self, root: Node) -> Iterator[Node]:
        waiting = [root]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += node.children.values()

    def _offer(self, node: Node) -> None:
        """To the frontier, if what follows the node could be emitted."""
        ends = node is not self.root and self.sequence.is_terminal(node.token)
        if node.position < self.last and not ends:
            self._num_nodes += 1
            heapq.heappush(self._frontier, (-node.score, self._num_nodes, node))

    def _count(self, node: Node) -> None:
        """Take a node below the root into the best ones."""
        score = node.score - self.root.score
        if len(self._best) < self.budget - 1:
            heapq.heappush(self._best, score)
            self._mass += exp(score)
        elif self._best:
            self._mass += exp(score) - exp(heapq.heappushpop(self._best, score))

    def _discount(self, node: Node) -> None:
        """Take a node out of the best ones, if it is there."""
        score = node.score - self.root.score
        if self._best and score >= self._best[0]:
            self._best.remove(score)
            heapq.heapify(self._best)
            self._mass -= exp(score)

    def _raise(self, node: Node, by: float) -> None:
        """A better score for a node and all that is below it."""
        for other in self._walk(node):
            self._discount(other)
            score = other.score
            other.score += by
            self._count(other)
            if other.slot is None and other.score > score:  # rounding may leave it as offered
                self._offer(other)
