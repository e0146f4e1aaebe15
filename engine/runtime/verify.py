"""Tree verification: which drafted tokens the target would have chosen itself.

SpecInfer (arXiv 2305.09781, algorithm 2, VerifyGreedy): walk down from the root; at each row take
the target's own choice; while the tree holds it as a child, go on there. The choice may be a
sample: its noise is keyed by position, so that it does not depend on the tree, and what is emitted
is what plain decoding would have emitted.
"""

from collections.abc import Callable
from dataclasses import dataclass

from engine.drafting.tree import DraftTree
from engine.messages import PREDICTION
from engine.runtime.choices import Logits, choose_ahead, choose_tree, settle
from engine.sampling.logprobs import model_logprobs
from engine.sequences.sequence import Sequence


@dataclass(frozen=True)
class Accepted:
    """The rows walked, the root included, and the token the target chose at each of them.

    `tokens[i]` was chosen at `rows[i]`, so `tokens[:-1]` are the tokens of `rows[1:]`, and
    `tokens[-1]` is the bonus token, which no row holds.
    """

    rows: tuple[int, ...]
    tokens: tuple[int, ...]


def verify(
    tree: DraftTree,
    choose: Callable[[int], int],
    stop: Callable[[int, int], bool] = lambda row, token: False,
) -> Accepted:
    """Walk the tree by the target's choices.

    `choose(row)` gives the token after a row; it is called on visited rows only, in ascending
    order, once each. Nothing is walked after a token for which `stop(row, token)` holds: it is the
    last one.
    """
    rows, tokens = [0], [choose(0)]
    while not stop(rows[-1], tokens[-1]):
        child = tree.children(rows[-1]).get(tokens[-1])
        if child is None:
            break
        rows.append(child)
        tokens.append(choose(child))
    return Accepted(tuple(rows), tuple(tokens))


def emit_accepted(
    sequence: Sequence, tree: DraftTree, root: int, logits: Logits, *, at_once: bool
) -> list[int]:
    """Emit what the target accepts of a sequence's tree; return the accepted rows, the root first.

    The tree begins with row `root` of the pass. With `at_once` the choices of all its rows are
    made together, where they can be.
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
        if constraint is None:
            return chosen[row]
        own, length = logits.row(root + row), len(sequence.tokens)
        return settle(sequence, chosen[row], own, constraint, sequence.counts, length)

    def emit(row: int, token: int) -> bool:
        logprob = None
        if params.logprobs is not None:
            logprob = model_logprobs(logits.row(root + row), token, params.logprobs)
        return sequence.emit(token, logprob, *tree.origin(row, token))

    accepted = verify(tree, choose, emit)
    sequence.count_drafted(
        rows=len(tree) - 1,
        accepted=len(accepted.rows) - 1,
        predicted=tree.sources.count(PREDICTION),
    )
    return list(accepted.rows)
