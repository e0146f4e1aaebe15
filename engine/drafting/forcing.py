"""Grammars, thinking budgets and draft trees: cut rows that are forbidden, add forced tokens."""

from collections.abc import Sequence

from torch import Tensor

from engine.drafting.growth import Growth, Node
from engine.drafting.tree import DraftTree
from engine.sampling.grammar.constraint import to_tensor
from engine.sequences.sequence import TokenSequence

SOURCE = "grammar"
FORCED_GAIN = -1e-6  # below 0, so that scores fall along a path and parents come first


def prune(tree: DraftTree, sequence: TokenSequence) -> DraftTree:
    """Return the tree without the rows that the sequence's grammar or budget forbids."""
    if not sequence.can_force(max(tree.depths)):
        return tree
    kept = {0}
    for row in range(1, len(tree)):
        if tree.parents[row] in kept:
            path = [tree.tokens[own] for own in tree.path(row)[1:]]
            if _is_allowed(path, sequence):
                kept.add(row)
    return tree.only(sorted(kept))


def _is_allowed(path: list[int], sequence: TokenSequence) -> bool:
    """Return whether the last token of a path may follow the others, which are allowed."""
    if sequence.constraint is not None and not sequence.constraint.may_follow(path):
        return False
    forced = sequence.forced(path[:-1])
    return not forced or path[-1] == forced[0]


def force(growth: Growth, node: Node) -> bool:
    """Add the tokens that are forced after a node. Return True if there are any.

    They form a chain with nearly the score of the node, because no other tokens can follow it.
    """
    if not growth.sequence.can_force(node.position - growth.root.position):
        return False
    tokens = _forced(growth.path(node), growth.sequence)
    for token in tokens[: growth.last_position - node.position]:
        node = growth.add(node, token, FORCED_GAIN, FORCED_GAIN, SOURCE)
    return bool(tokens)


def _forced(path: Sequence[int], sequence: TokenSequence) -> Sequence[int]:
    """Return the tokens that the sequence's budget, or else its grammar, forces after a path."""
    tokens = sequence.forced(path)
    if tokens or sequence.constraint is None:
        return tokens
    return sequence.constraint.forced_after(path)


def select_undetermined(growth: Growth, nodes: Sequence[Node]) -> tuple[list[int], Tensor | None]:
    """Return the indices of the nodes whose next token a draft has to guess, and a mask for them.

    The mask [n, V] has the tokens that the grammar allows after each of these n nodes; it is None
    without a grammar. A node after which tokens are forced is left out and gets them as
    descendants; a node that nothing may follow is left out as well.
    """
    sequence = growth.sequence
    rows, masks = [], []
    for row, node in enumerate(nodes):
        if force(growth, node):
            continue
        if sequence.constraint is not None:
            banned = sequence.banned(node.position + 1)
            mask = sequence.constraint.allowed_after(growth.path(node), banned)
            if mask is None:
                continue
            masks.append(mask)
        rows.append(row)
    return rows, to_tensor(masks) if masks else None
