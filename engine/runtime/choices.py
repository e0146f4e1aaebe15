"""Logits of a pass's rows, and the target's choice at them: some ahead, or a tree at once.

A walk visits few of a tree's rows, so on the host a row's choice is made when the walk comes to
it, with those that likely follow: in one call they cost a small part of what calls of their own
would. A device makes all of them in the time of one, and the walk would wait for each: there a
tree's choices are made at once, and only the token ids come to the host.
"""

import math
from collections.abc import Callable, Iterator, Sequence as Seq

import torch
from torch import Tensor

from engine.drafting.tree import DraftTree
from engine.sampling.choose import choose, choose_rows
from engine.sampling.grammar.constraint import Constraint, to_tensor
from engine.sampling.grammar.grammar import Mask
from engine.sampling.large_vocabularies.blocks import Matrix, Rows
from engine.sampling.logit_rules import TokenCounts, is_path_dependent
from engine.sequences.sequence import Sequence
from engine.spec import TILE

AHEAD = 16  # rows chosen in one call, at most,
CHANCE = 1 / 4  # while the walk comes to the next one with this chance


class Logits:
    """Logits of the rows a walk visits, computed in blocks, each at most once.

    Walks ask for ascending rows, so one block is all that is held: 64 x V.
    """

    def __init__(
        self,
        hidden: Tensor,
        head: Callable[[Tensor], Tensor],
        show: Callable[[int, Matrix], None] = lambda first, block: None,
    ) -> None:
        """`show(first, logits)` sees every block, which begins with row `first` of the pass."""
        self._hidden = hidden
        self._head = head
        self._show = show
        self._first = -TILE
        self._block = Matrix(hidden[:0])

    def row(self, row: int) -> Tensor:
        """Logits [V] of a row of the pass."""
        return self.span(range(row, row + 1))[0]

    def span(self, rows: range) -> Tensor:
        """Logits [n, V] of rows of one block of the pass."""
        block, first = self._block_of(rows[0]), self._first
        return block.values[rows.start - first : rows.stop - first, : block.size]

    def rows(self, rows: Seq[int]) -> Rows:
        """Rows of one block of the pass, to choose at."""
        block = self._block_of(rows[0])
        return block.rows([row - self._first for row in rows])

    def parts(self, rows: range) -> Iterator[range]:
        """These rows of the pass, those of a block at a time."""
        first = rows.start
        while first < rows.stop:
            last = min((first // TILE + 1) * TILE, rows.stop)
            yield range(first, last)
            first = last

    def _block_of(self, row: int) -> Matrix:
        first = row // TILE * TILE
        if first != self._first:
            self._first = first
            self._block = Matrix(self._head(self._hidden[first : first + TILE]))
            self._show(first, self._block)
        return self._block


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
    for rows in logits.parts(range(root, root + len(depths))):
        positions = [len(sequence.tokens) + depths[row - root] for row in rows]
        chosen.append(_choose(sequence, logits.rows(rows), positions))
    return torch.cat(chosen).tolist()  # the one time that the host waits for this tree


def choose_ahead(
    sequence: Sequence, tree: DraftTree, row: int, root: int, logits: Logits
) -> dict[int, int]:
    """The target's choice at the row a walk has come to, and at rows it likely comes to next.

    The tree begins with row `root` of the pass; the tokens down to `row` are emitted.
    """
    params = sequence.params
    is_alone = is_path_dependent(params) or params.logprobs is not None
    stop = min(len(tree), ((root + row) // TILE + 1) * TILE - root)
    rows = [row] if is_alone else _likely(tree, row, stop)
    allowed = None
    if sequence.constraint is not None:
        masks = _allowed(sequence, sequence.constraint, tree, rows)
        rows, allowed = list(masks), to_tensor(list(masks.values()))
    positions = [_position(sequence, tree, row, own) for own in rows]
    chosen = _choose(sequence, logits.rows([root + own for own in rows]), positions, allowed)
    return dict(zip(rows, chosen.tolist(), strict=True))


def _choose(
    sequence: Sequence, logits: Rows, positions: Seq[int], allowed: Tensor | None = None
) -> Tensor:
    """Return the target's choices [R] at these positions, among the `allowed` tokens [R, V]."""
    banned = None if allowed is not None else [sequence.banned(own) for own in positions]
    return choose_rows(
        logits,
        sequence.params,
        sequence.counts,
        positions=positions,
        choice=sequence.choice,
        banned=banned,
        allowed=allowed,
    )


def _position(sequence: Sequence, tree: DraftTree, row: int, below: int) -> int:
    """Of the token chosen at a row below the one that the walk has come to."""
    return len(sequence.tokens) + tree.depths[below] - tree.depths[row]


def _likely(tree: DraftTree, row: int, stop: int) -> list[int]:
    """A row and the likeliest below it and before `stop`, ascending; parents are among them."""
    least = tree.scores[row] + math.log(CHANCE)
    below = {row}
    for own in range(row + 1, stop):
        if tree.parents[own] in below and tree.scores[own] >= least:
            below.add(own)
    return sorted(sorted(below, key=lambda own: (-tree.scores[own], own))[:AHEAD])


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
    return constraint.first_closable(token, room, sequence.banned(position), choose_of)


def _allowed(
    sequence: Sequence, constraint: Constraint, tree: DraftTree, rows: Seq[int]
) -> dict[int, Mask]:
    """What a grammar allows at the row that a walk has come to, the first, and at those below it.

    A row is left out where the tokens down to it do not match.
    """
    paths: dict[int, tuple[int, ...]] = {rows[0]: ()}
    masks = {rows[0]: constraint.allowed(sequence.banned(len(sequence.tokens)))}
    for row in rows[1:]:
        paths[row] = (*paths[tree.parents[row]], tree.tokens[row])
        banned = sequence.banned(_position(sequence, tree, rows[0], row))
        if (mask := constraint.allowed_after(paths[row], banned)) is not None:
            masks[row] = mask
    return masks
