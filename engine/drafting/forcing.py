"""Grammars and draft trees: cut rows that a grammar forbids, add tokens that it forces."""

from collections.abc import Sequence

from torch import Tensor

from engine.drafting.growth import Growth, Node
from engine.drafting.tree import DraftTree
from engine.sampling.grammar.constraint import to_tensor
from engine.sequences.sequence import TokenSequence

SOURCE = "grammar"
FORCED_GAIN = -1e-6  # below 0, so that scores fall along a path and parents come first


def prune(tree: DraftTree, sequence: TokenSequence) -> DraftTree:
    """Return the tree without the rows that the sequence's grammar forbids."""
    if sequence.constraint is None:
        return tree
    kept = {0}
    for row in range(1, len(tree)):
        if tree.parents[row] in kept:
            path = [tree.tokens[own] for own in tree.path(row)[1:]]
            if sequence.constraint.may_follow(path):
                kept.add(row)
    return tree.only(sorted(kept))


def force(growth: Growth, node: Node) -> bool:
    """Add the tokens that the grammar forces after a node. Return True if there are any.

    They form a chain with nearly the score of the node, because no other tokens can follow it.
    """
    constraint = growth.sequence.constraint
    if constraint is None:
        return False
    tokens = constraint.forced_after(growth.path(node))
    for token in tokens[: growth.last_position - node.position]:
        node = growth.add(node, token, FORCED_GAIN, FORCED_GAIN, SOURCE)
    return bool(tokens)


def select_undetermined(growth: Growth, nodes: Sequence[Node]) -> tuple[list[int], Tensor | None]:
    """Return the indices of the nodes whose next token a draft has to guess, and a mask for them.

    The mask [n, V] has the tokens that the grammar allows after each of these n nodes. Without a
    grammar all nodes are returned, and no mask. A node after which the grammar forces tokens is
    left out and gets them as descendants; a node that nothing may follow is left out as well.
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
