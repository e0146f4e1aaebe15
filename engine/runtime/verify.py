"""Tree verification: which drafted tokens the target would have chosen itself.

SpecInfer (arXiv 2305.09781, algorithm 2, VerifyGreedy): walk down from the root; at each row take
the target's own choice; while the tree holds it as a child, go on there. The choice may be a
sample: its noise is keyed by position, so that it does not depend on the tree, and what is emitted
is what plain decoding would have emitted.
"""

from collections.abc import Callable

from engine.drafting.tree import DraftTree
from engine.errors import not_finite
from engine.messages import PREDICTION
from engine.runtime.choices import Logits, choose_ahead, choose_tree, settle
from engine.sampling.choose import NO_CHOICE
from engine.sampling.logprobs import model_logprobs
from engine.sequences.sequence import Sequence


def verify(
    tree: DraftTree, choose: Callable[[int], int], emit: Callable[[int, int], bool]
) -> list[int]:
    """Walk the tree by the target's choices, and return the rows walked, the root first.

    `choose(row)` gives the token after a row; it is called on visited rows only, in ascending
    order, once each. `emit(row, token)` is called with each choice: the token of the next row
    walked, or the bonus token, which no row holds. Where it returns True the token is the last one.
    """
    rows = [0]
    while not emit(rows[-1], token := choose(rows[-1])):
        child = tree.children(rows[-1]).get(token)
        if child is None:
            break
        rows.append(child)
    return rows


def emit_accepted(
    sequence: Sequence, tree: DraftTree, root: int, logits: Logits, *, at_once: bool
) -> list[int]:
    """Emit what the target accepts of a sequence's tree; return the accepted rows, the root first.

    The tree begins with row `root` of the pass. With `at_once` the choices of all its rows are
    made together, where they can be. Raises `PassFailed` where the target's logits are no numbers.
    """
    params, constraint = sequence.params, sequence.constraint
    if sequence.max_new_tokens == 0:  # only its prompt was to be scored
        sequence.end_at_limit()
        return [0]
    all_rows = choose_tree(sequence, tree.depths, root, logits) if at_once else None
    chosen = dict(enumerate(all_rows or ()))

    def choose(row: int) -> int:
        if row not in chosen:
            chosen.update(choose_ahead(sequence, tree, row, root, logits))
        if chosen[row] == NO_CHOICE:
            raise not_finite()
        if constraint is None:
            return chosen[row]
        own, length = logits.row(root + row), len(sequence.tokens)
        return settle(sequence, chosen[row], own, constraint, sequence.counts, length)

    def emit(row: int, token: int) -> bool:
        logprob = None
        if params.logprobs is not None:
            logprob = model_logprobs(logits.row(root + row), token, params.logprobs)
        return sequence.emit(token, logprob, *tree.origin(row, token))

    rows = verify(tree, choose, emit)
    sequence.count_drafted(
        rows=len(tree) - 1,
        accepted=len(rows) - 1,
        predicted=tree.sources.count(PREDICTION),
    )
    return rows
