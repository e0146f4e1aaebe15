"""Logits of a pass's rows, and the target's choice at them: some ahead, or a tree at once.

A walk visits few of a tree's rows, so on the host a row's choice is made when the walk comes to
it, with those that likely follow where a small vocabulary makes many cost little more than one. A
device makes all of them in the time of one, and the walk would wait for each: there a tree's
choices are made at once, and only the token ids come to the host.
"""

import math
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from engine.constraint import Constraint, to_tensor
from engine.decoder import HEAD_ROWS
from engine.sampling import TokenCounts, choose, choose_rows, is_path_dependent
from engine.sequence import Sequence
from engine.tree import DraftTree

AT_ONCE = 1 << 16  # logits that are looked at in about the time that one row's call costs
LIKELY = 8  # rows of a larger vocabulary chosen ahead, each for a third of a call's time,
CHANCE = 1 / 3  # while the walk comes to the next one with this chance


class Logits:
    """Logits of the rows a walk visits, computed in blocks, each at most once.

    Walks ask for ascending rows, so one block is all that is held: 64 x V.
    """

    def __init__(
        self,
        hidden: Tensor,
        head: Callable[[Tensor], Tensor],
        show: Callable[[int, Tensor], None],
    ) -> None:
        """`show(first, logits)` sees every block, which begins with row `first` of the pass."""
        self._hidden = hidden
        self._head = head
        self._show = show
        self._first = -HEAD_ROWS
        self._block = hidden[:0]

    def row(self, row: int) -> Tensor:
        """Logits [V] of a row of the pass."""
        first = row // HEAD_ROWS * HEAD_ROWS
        if first != self._first:
            self._first = first
            self._block = self._head(self._hidden[first : first + HEAD_ROWS])
            self._show(first, self._block)
        return self._block[row - first]

    def parts(self, rows: range) -> Iterator[tuple[range, Tensor]]:
        """These rows of the pass, block by block, with their logits [n, V]."""
        first = rows.start
        while first < rows.stop:
            self.row(first)
            last = min(self._first + HEAD_ROWS, rows.stop)
            yield range(first, last), self._block[first - self._first : last - self._first]
            first = last


def choose_tree(
    sequence: Sequence, depths: Seq[int], root: int, logits: Logits
) -> list[int] | None:
    """The target's choice at each row of a tree; None where a choice must wait for the walk.

    That is where the tokens before a row change its logits, and where its log-probabilities are
    asked for. The tree's rows have these depths and begin with row `root` of the pass.
    """
    params = sequence.params
    rules = is_path_dependent(params) or sequence.constraint is not None
    if rules or params.logprobs is not None:
        return None
    chosen = []
    for rows, own in logits.parts(range(root, root + len(depths))):
        positions = [len(sequence.tokens) + depths[row - root] for row in rows]
        chosen.append(
            choose_rows(
                own,
                params,
                None,
                positions=positions,
                choice=sequence.choice,
                banned=[sequence.banned(position) for position in positions],
            )
        )
    return torch.cat(chosen).tolist()  # the one time that the host waits for this tree


def choose_ahead(
    sequence: Sequence, tree: DraftTree, row: int, root: int, logits: Logits
) -> dict[int, int]:
    """The target's choice at the row a walk has come to, and at rows it likely comes to next.

    The tree begins with row `root` of the pass; the tokens down to `row` are emitted.
    """
    params, rows, block = sequence.params, [row], (root + row) // HEAD_ROWS
    here = logits.row(root + row)
    cheap = AT_ONCE // len(here)
    most = max(cheap, LIKELY)
    if is_path_dependent(params) or params.logprobs is not None:
        most = 1
    while len(rows) < most and (children := tree.children(rows[-1])):
        likeliest = max(children.values(), key=tree.scores.__getitem__)
        is_likely = tree.scores[likeliest] - tree.scores[row] > math.log(CHANCE)
        if (root + likeliest) // HEAD_ROWS != block or not (is_likely or len(rows) < cheap):
            break
        rows.append(likeliest)
    allowed = _allowed(sequence, [tree.tokens[own] for own in rows[1:]])
    if allowed is not None:
        rows = rows[: len(allowed)]
    positions = [len(sequence.tokens) + place for place in range(len(rows))]
    chosen = choose_rows(
        here[None] if len(rows) == 1 else torch.stack([logits.row(root + own) for own in rows]),
        params,
        sequence.counts,
        positions=positions,
        choice=sequence.choice,
        banned=[sequence.banned(position) for position in positions] if allowed is None else None,
        allowed=allowed,
    )
    return dict(zip(rows, chosen.tolist(), strict=True))


def settle(
    sequence: Sequence,
    token: int,
    logits: Tensor,
    constraint: Constraint,
    counts: TokenCounts,
    position: int,
) -> int:
    """What is emitted at a position for the target's choice there, out of logits [V].

    Another token only where the answer could not be completed in time behind this one.
    `constraint` and `counts` stand behind the tokens before the position.
    """

    def choose_of(allowed: Tensor) -> int:
        params, choice = sequence.params, sequence.choice
        return choose(logits, params, counts, position=position, choice=choice, allowed=allowed)

    room = sequence.num_left(position) - 1
    return constraint.settle(token, room, sequence.banned(position), choose_of)


def _allowed(sequence: Sequence, path: Seq[int]) -> Tensor | None:
    """What a grammar allows at the row a walk has come to and behind each token of a path [R, V].

    Fewer rows where the path does not match; None without a grammar.
    """
    constraint, position = sequence.constraint, len(sequence.tokens)
    if constraint is None:
        return None
    masks = [constraint.allowed(sequence.banned(position))]
    for depth in range(1, len(path) + 1):
        mask = constraint.behind(path[:depth], sequence.banned(position + depth))
        if mask is None:
            break
        masks.append(mask)
    return to_tensor(masks)
