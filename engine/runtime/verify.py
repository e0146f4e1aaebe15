"""Tree verification: find the drafted tokens that the target would have chosen itself.

This is VerifyGreedy of SpecInfer (arXiv 2305.09781, algorithm 2). From the root on, take the token
that the target chooses at each row, and continue at the child with that token while there is one.
The token may be sampled: the noise is keyed by position and does not depend on the tree, so the
emitted tokens are those of plain decoding.
"""

from collections.abc import Callable

import torch

from engine.drafting.tree import DraftTree
from engine.errors import not_finite
from engine.messages import PREDICTION
from engine.runtime.choices import Logits, choose_likely_rows, choose_tree, ensure_closable
from engine.sampling.choose import NO_CHOICE
from engine.sampling.logprobs import model_logprobs
from engine.sequences.sequence import TokenSequence


def verify(
    tree: DraftTree, choose: Callable[[int], int], emit: Callable[[int, int], bool]
) -> list[int]:
    """Follow the target's choices down the tree and return the visited rows, the root first.

    Args:
        choose: returns the target's token after a row. It is called once for each visited row, in
            ascending order, and for no other row.
        emit: called with each visited row and the token chosen there. The last of these tokens is
            the bonus token, which is not in the tree, unless emit ends the walk by returning True.
    """
    rows = [0]
    while not emit(rows[-1], token := choose(rows[-1])):
        child = tree.children(rows[-1]).get(token)
        if child is None:
            break
        rows.append(child)
    return rows


def emit_accepted(
    sequence: TokenSequence, tree: DraftTree, root: int, logits: Logits, *, at_once: bool
) -> list[int]:
    """Emit the tokens that the target accepts of a tree; return the accepted rows, the root first.

    If the device's memory runs out, the walk ends with the tokens that are emitted already. Without
    any, this raises `torch.OutOfMemoryError`, and nothing has changed.

    Args:
        root: the row of the pass that is the tree's root.
        at_once: whether to choose the tokens of all rows together, where that is possible.

    Raises `RequestError` if the sequence's grammar is too complex to be followed any further, and
    `PassFailed` if the target's logits are not finite.
    """
    params, constraint = sequence.params, sequence.constraint
    if sequence.max_new_tokens == 0:  # the request only scores its prompt
        sequence.end_at_limit()
        return [0]
    chosen = choose_tree(sequence, tree.depths, root, logits) if at_once else {}
    emitted: list[int] = []  # rows whose next token is emitted

    def choose(row: int) -> int:
        if row not in chosen:
            chosen.update(choose_likely_rows(sequence, tree, row, root, logits))
        if chosen[row] == NO_CHOICE:
            raise not_finite()
        forced = sequence.forced()
        token = forced[0] if forced else chosen[row]
        if constraint is None:
            return token
        own, length = logits.row(root + row), len(sequence.tokens)
        return ensure_closable(sequence, token, own, constraint, sequence.counts, length)

    def emit(row: int, token: int) -> bool:
        logprob = None
        if params.logprobs is not None:
            logprob = model_logprobs(logits.row(root + row), token, params.logprobs)
        is_last = sequence.emit(token, logprob, *tree.origin(row, token))
        emitted.append(row)
        return is_last

    try:
        rows = verify(tree, choose, emit)
    except torch.OutOfMemoryError:
        if not emitted:
            raise
        rows = emitted
    sequence.count_drafted(
        rows=len(tree) - 1,
        accepted=len(rows) - 1,
        predicted=tree.sources.count(PREDICTION),
    )
    return rows
