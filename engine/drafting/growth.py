"""A growth: the draft tree of one sequence while it grows, within a pass and across passes.

SpecExec (arXiv 2406.02532, section 4, algorithm 2): finding the tree of the most probable
continuations is a shortest-path search in which an edge weighs minus the log of the draft's
probability. Each step runs the best nodes that were not run yet through the draft and adds their
best children. Scores only fall along a path, so the best nodes at the end form a tree.

A growth outlives its pass. The accepted tokens move its root down; the branch below the new root,
drafted while the weights travelled, is the start of the next tree.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import exp, inf

import numpy as np
import torch
from torch import Tensor

from engine.drafting.calibration import Calibration
from engine.drafting.tree import DraftTree
from engine.messages import PREDICTION
from engine.sequences.sequence import TokenSequence


@dataclass(eq=False, slots=True)
class Node:
    """A drafted token in a growth, or its root."""

    token: int
    position: int  # in the sequence
    parent: "Node | None"
    source: str  # the draft that proposed it first, or the request's prediction where that did too
    score: float  # log-probability of the path down to it, calibrated
    # Each draft that proposed it -> the log-probability that this draft gave it after its parent.
    logprobs: dict[str, float] = field(default_factory=dict)
    children: dict[int, "Node"] = field(default_factory=dict)  # by token
    slot: int | None = None  # of its KV in the draft's scratch, once the draft ran it
    path_bits: int = 0  # bit i is set if `Growth.ran[i]` is on its path, itself included


class Growth:
    """The growing tree of one sequence. Its frontier are the nodes that the draft could still run.

    `budget` bounds the rows of a finished tree. A node whose score is below that of the last such
    row is not worth running.
    """

    def __init__(self, sequence: TokenSequence, budget: int) -> None:
        self.sequence = sequence
        self.budget = budget
        position = len(sequence.tokens) - 1
        self.root = Node(sequence.tokens[-1], position, None, "", 0.0)
        self.last_position = position + sequence.max_draft_depth  # deepest row that can be emitted
        self.ran: list[Node] = []  # the nodes that the draft has run, in order
        self._num_nodes = 0
        self._frontier: list[tuple[float, int, Node]] = []  # (minus score, age, node)
        self._best: list[float] = []  # heap: scores of the best `budget - 1` nodes below the root
        self._mass = 0.0  # the sum of their probabilities
        self._push(self.root)

    def __len__(self) -> int:
        """Return the rows that a tree would have now, at most `budget`."""
        return 1 + len(self._best)

    @property
    def num_levels(self) -> int:
        """Return the number of levels that the draft has run, the root's included."""
        deepest = max((node.position for node in self.ran), default=self.root.position - 1)
        return deepest - self.root.position + 1

    @property
    def expected(self) -> float:
        """Return the tokens that a pass is expected to emit with the best `budget` rows."""
        return 1.0 + self._mass

    def probability(self, node: Node) -> float:
        """Return the probability that the target's own continuation contains this node."""
        return exp(node.score - self.root.score)

    def pop(self, count: int, depth: int, floor: float = -inf) -> list[Node]:
        """Take at most `count` nodes above level `depth` from the frontier, the best first.

        Parents come before their children. No node scores below `floor`, which is relative to the
        root. A taken node is off the frontier until it is put back.
        """
        chosen: list[Node] = []
        too_deep: list[Node] = []
        while self._frontier and len(chosen) < count:
            cost, _, node = heapq.heappop(self._frontier)
            if node.slot is not None or -cost != node.score:
                continue  # it was run since, or is there again with a better score
            if node.score - self.root.score < floor:
                too_deep.append(node)
                break
            deep = node.position - self.root.position >= depth
            (too_deep if deep else chosen).append(node)
        self.put_back(too_deep)
        return chosen

    def put_back(self, nodes: Sequence[Node]) -> None:
        """Return nodes to the frontier that were taken from it and not run."""
        for node in nodes:
            self._push(node)

    @property
    def floor(self) -> float:
        """Return the score, relative to the root, below which no node can enter the tree."""
        if len(self._best) < self.budget - 1:
            return -inf
        return self._best[0] if self._best else inf  # a budget of one row leaves the root alone

    def mark_run(self, node: Node, slot: int) -> None:
        """Record that the draft runs this node and stores its KV in this scratch slot."""
        node.slot = slot
        self._append_run(node)

    def undo_run(self, nodes: Sequence[Node]) -> list[int]:
        """Record that the nodes run last were not run after all, and return their scratch slots."""
        slots = [node.slot for node in nodes if node.slot is not None]
        assert len(slots) == len(nodes) and self.ran[-len(nodes) :] == list(nodes)
        del self.ran[-len(nodes) :]
        for node in nodes:
            node.slot, node.path_bits = None, 0
            self._push(node)
        return slots

    def visible(self, nodes: Sequence[Node]) -> tuple[list[Node], Tensor | None]:
        """Return the earlier nodes on the paths of `nodes`, and the attention mask.

        `nodes` are those run last. The mask is [nodes, earlier + nodes], bool. It is None for a
        root alone, which attends to all tokens before it.
        """
        if len(nodes) == 1 and nodes[0] is self.root:
            return [], None
        width = len(self.ran) // 8 + 1
        packed = b"".join(node.path_bits.to_bytes(width, "little") for node in nodes)
        bits = np.frombuffer(packed, np.uint8).reshape(len(nodes), width)
        mask = np.unpackbits(bits, axis=1, bitorder="little").view(np.bool_)
        columns = np.flatnonzero(mask.any(axis=0))
        earlier = [self.ran[column] for column in columns[: -len(nodes)]]
        return earlier, torch.from_numpy(mask[:, columns])

    def add(self, parent: Node, token: int, logprob: float, gain: float, source: str) -> Node:
        """Add a child to a node and return it. A child that exists keeps the better score.

        Args:
            logprob: the log-probability that the draft gave the token after its parent.
            gain: the same, calibrated: the child's score is the parent's plus this.
            source: the draft that proposes the token.
        """
        child = parent.children.get(token)
        score = parent.score + gain
        if child is None:
            child = Node(token, parent.position + 1, parent, source, score)
            parent.children[token] = child
            self._add_to_best(child)
            self._push(child)
        elif score > child.score:
            self._raise_scores(child, score - child.score)
        child.logprobs[source] = logprob
        if source == PREDICTION:
            child.source = source  # usage counts its accepted tokens, also if others proposed them
        return child

    def insert(self, tree: DraftTree, calibration: Calibration) -> None:
        """Add all paths of another draft's tree with the same root."""
        nodes = [self.root]
        for row in range(1, len(tree)):
            parent, source = tree.parents[row], tree.sources[row]
            logprob = min(tree.scores[row] - tree.scores[parent], 0.0)
            gain = calibration.calibrate(source, logprob)
            nodes.append(self.add(nodes[parent], tree.tokens[row], logprob, gain, source))

    def ranked(self, rows: int, depth: int) -> list[Node]:
        """Return the best nodes by falling score, the root first.

        Args:
            rows: the most nodes to return; the root is returned in any case.
            depth: the most levels below the root.
        """
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

    def tree(self, nodes: Sequence[Node]) -> DraftTree:
        """Return the tree of these nodes: the root first, and each after its parent."""
        row_of = {id(node): row for row, node in enumerate(nodes)}
        return DraftTree(
            tokens=tuple(node.token for node in nodes),
            parents=(-1, *(row_of[id(node.parent)] for node in nodes[1:])),
            depths=tuple(node.position - self.root.position for node in nodes),
            scores=tuple(min(node.score - self.root.score, 0.0) for node in nodes),
            sources=tuple(node.source if node is not self.root else "" for node in nodes),
        )

    def path(self, node: Node) -> list[int]:
        """Return the drafted tokens from below the root down to this node."""
        tokens = []
        while node is not self.root:
            assert node.parent is not None, "a node outside of its tree"
            tokens.append(node.token)
            node = node.parent
        return tokens[::-1]

    def follow(self, tokens: Sequence[int]) -> list[Node]:
        """Return the root and the nodes of the emitted tokens below it, as far as they exist."""
        nodes = [self.root]
        for token in tokens:
            child = nodes[-1].children.get(token)
            if child is None:
                break
            nodes.append(child)
        return nodes

    def reroot(self, root: Node) -> list[int]:
        """Make a node the root, drop all nodes not below it, and return their scratch slots."""
        self.root = root
        root.parent = None
        self._frontier.clear()
        self._best.clear()
        self._mass = 0.0
        below = set()
        for node in self._walk(root):
            below.add(id(node))
            if node is not root:
                self._add_to_best(node)
            if node.slot is None:
                self._push(node)
        freed = [n.slot for n in self.ran if id(n) not in below and n.slot is not None]
        kept = [n for n in self.ran if id(n) in below]
        self.ran = []
        for node in kept:
            self._append_run(node)
        return freed

    def _append_run(self, node: Node) -> None:
        """Add a node to `ran` and set its path bits. A parent must have been added before."""
        above = node.parent.path_bits if node.parent is not None else 0
        node.path_bits = above | 1 << len(self.ran)
        self.ran.append(node)

    def _walk(self, root: Node) -> Iterator[Node]:
        waiting = [root]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += node.children.values()

    def _push(self, node: Node) -> None:
        """Add a node to the frontier, if a token after it could be emitted."""
        ends = node is not self.root and self.sequence.is_terminal(node.token)
        if node.position < self.last_position and not ends:
            self._num_nodes += 1
            heapq.heappush(self._frontier, (-node.score, self._num_nodes, node))

    def _add_to_best(self, node: Node) -> None:
        """Count a node below the root among the best ones, if it is one."""
        score = node.score - self.root.score
        if len(self._best) < self.budget - 1:
            heapq.heappush(self._best, score)
            self._mass += exp(score)
        elif self._best:
            self._mass += exp(score) - exp(heapq.heappushpop(self._best, score))

    def _remove_from_best(self, node: Node) -> None:
        """Remove a node from the best ones, if it is among them."""
        score = node.score - self.root.score
        if self._best and score >= self._best[0]:
            self._best.remove(score)
            heapq.heapify(self._best)
            self._mass -= exp(score)

    def _raise_scores(self, node: Node, by: float) -> None:
        """Raise the scores of a node and of all nodes below it."""
        for other in self._walk(node):
            self._remove_from_best(other)
            score = other.score
            other.score += by
            self._add_to_best(other)
            if other.slot is None and other.score > score:  # rounding may leave the score as it was
                self._push(other)
