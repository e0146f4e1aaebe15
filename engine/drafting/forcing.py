"""What a grammar does for draft trees: rows it forbids are cut, tokens it forces cost no draft."""

from collections.abc import Sequence as Seq

from torch import Tensor

from engine.drafting.growth import Growth, Node
from engine.drafting.tree import DraftTree
from engine.sampling.grammar.constraint import to_tensor
from engine.sequences.sequence import Sequence

SOURCE = "grammar"
SURE = -1e-6  # gain of a forced token: scores fall along a path, so that parents come first


def prune(tree: DraftTree, sequence: Sequence) -> DraftTree:
    """The rows that a sequence's grammar leaves possible."""
    if sequence.constraint is None:
        return tree
    grammar, kept = sequence.constraint.grammar, {0}
    for row in range(1, len(tree)):
        if tree.parents[row] in kept:
            path = [tree.tokens[own] for own in tree.path(row)[1:]]
            if grammar.matches(path):
                kept.add(row)
    return tree.only(sorted(kept))


def force(growth: Growth, node: Node) -> bool:
    """Add what alone may follow a node, as sure as the node itself; whether there is anything."""
    constraint = growth.sequence.constraint
    if constraint is None:
        return False
    with constraint.grammar.trial(growth.path(node)) as matches:
        tokens = constraint.grammar.forced() if matches else []
    for token in tokens[: growth.last - node.position]:
        node = growth.add(node, token, SURE, SURE, SOURCE)
    return bool(tokens)


def to_guess(growth: Growth, nodes: Seq[Node]) -> tuple[list[int], Tensor | None]:
    """Which of these nodes a draft has to guess behind, and what it may guess there [n, V].

    None without a grammar: it guesses behind all of them. Where one text alone may follow, that is
    added; where nothing may, there is nothing to guess.
    """
    sequence = growth.sequence
    if sequence.constraint is None:
        return list(range(len(nodes))), None
    rows, masks = [], []
    for row, node in enumerate(nodes):
        if force(growth, node):
            continue
        banned = sequence.banned(node.position + 1)
        mask = sequence.constraint.allowed_after(growth.path(node), banned)
        if mask is not None:
            rows.append(row)
            masks.append(mask)
    return rows, to_tensor(masks) if masks else None
