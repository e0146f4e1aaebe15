"""Tree verification: which drafted tokens the target would have chosen itself.

SpecInfer (arXiv 2305.09781, algorithm 2, VerifyGreedy): walk down from the root; at each row take
the target's own choice; while the tree holds it as a child, go on there. The choice may be a
sample: its noise is keyed by position, so that it does not depend on the tree, and what is emitted
is what plain decoding would have emitted.
"""

from collections.abc import Callable
from dataclasses import dataclass

from engine.drafting.tree import DraftTree


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
    stop: Callable[[int], bool] = lambda token: False,
) -> Accepted:
    """Walk the tree by the target's choices.

    `choose(row)` gives the token after a row; it is called on visited rows only, in ascending
    order, once each. Nothing is walked after a token for which `stop` holds: it is the last one.
    """
    rows, tokens = [0], [choose(0)]
    while not stop(tokens[-1]):
        child = tree.children(rows[-1]).get(tokens[-1])
        if child is None:
            break
        rows.append(child)
        tokens.append(choose(child))
    return Accepted(tuple(rows), tuple(tokens))
