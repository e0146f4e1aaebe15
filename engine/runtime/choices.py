"""The logits of a pass's rows, and the tokens that the target chooses at them.

Verification walks down a tree and visits few of its rows. On the CPU, a row's token is chosen when
the walk reaches the row, together with those of the rows it is likely to visit next: one call for
several rows is much cheaper than one call for each. A GPU chooses at all rows in the time of one,
and the walk would wait for each call. There the tokens of a whole tree are chosen by one call, and
only the token ids are copied to the host.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from engine.drafting.tree import DraftTree
from engine.sampling.choose import UNDECIDED, choose, choose_rows, choose_rows_at_once
from engine.sampling.grammar.constraint import Constraint, to_tensor
from engine.sampling.grammar.grammar import Mask
from engine.sampling.large_vocabularies.blocks import Matrix, Rows
from engine.sampling.logit_rules import TokenCounts, is_path_dependent
from engine.sequences.sequence import TokenSequence
from engine.spec import TILE

MAX_LIKELY_ROWS = 16  # the most rows whose tokens `choose_likely_rows` chooses in one call
MIN_LIKELIHOOD = 1 / 4  # of visiting a row, given the row reached; less likely rows are left out


class Logits:
    """The logits of a pass's rows, computed by the head on request, in blocks of 64 rows.

    Callers ask for rows in ascending order, so only one block, [64, V], is held at a time, and each
    is computed once.
    """

    def __init__(
        self,
        hidden: Tensor,
        head: Callable[[Tensor], Tensor],
        show: Callable[[int, Matrix], None] = lambda first, block: None,
    ) -> None:
        """Create the logits of some rows without computing any.

        Args:
            hidden: the hidden states of the pass's rows, [R, D].
            head: returns the logits [n, V] of hidden states [n, D].
            show: called with each computed block and the pass's row that it begins with.
        """
        self._hidden = hidden
        self._head = head
        self._show = show
        self._first = -TILE
        self._block = Matrix(hidden[:0])

    def row(self, row: int) -> Tensor:
        """Return the logits [V] of a row of the pass."""
        return self.span(range(row, row + 1))[0]

    def span(self, rows: range) -> Tensor:
        """Return the logits [n, V] of consecutive rows of the pass, which lie in one block."""
        block, first = self._block_of(rows[0]), self._first
        return block.values[rows.start - first : rows.stop - first, : block.size]

    def rows(self, rows: Sequence[int]) -> Rows:
        """Return rows of the pass, which lie in one block, for choosing tokens at them."""
        block = self._block_of(rows[0])
        return block.rows([row - self._first for row in rows])

    def parts(self, rows: range) -> Iterator[range]:
        """Yield these rows of the pass in parts that each lie in one block."""
        first = rows.start
        while first < rows.stop:
            last = min((first // TILE + 1) * TILE, rows.stop)
            yield range(first, last)
            first = last

    def _block_of(self, row: int) -> Matrix:
        """Return the block of a row; compute it if it is not the last one."""
        first = row // TILE * TILE
        if first != self._first:
            block = Matrix(self._head(self._hidden[first : first + TILE]))
            self._first, self._block = first, block  # only now: the head may run out of memory
            self._show(first, self._block)
        return self._block


def choose_tree(
    sequence: TokenSequence, depths: Sequence[int], root: int, logits: Logits
) -> dict[int, int]:
    """Return the target's tokens at the rows of a tree that can be chosen together.

    There are none if the tokens before a row change its logits (penalties, a grammar), or if
    log-probabilities are requested. Rows whose nucleus is too large are left out.

    Args:
        depths: the depth of each row of the tree.
        root: the row of the pass that is the tree's root.
    """
    params = sequence.params
    rules = is_path_dependent(params) or sequence.constraint is not None
    if rules or params.logprobs is not None:
        return {}
    parts = []
    for rows in logits.parts(range(root, root + len(depths))):
        positions = [len(sequence.tokens) + depths[row - root] for row in rows]
        parts.append(
            choose_rows_at_once(
                logits.rows(rows),
                params,
                positions=positions,
                choice=sequence.choice,
                banned=[sequence.banned(own) for own in positions],
            )
        )
    chosen: list[int] = torch.cat(parts).tolist()  # the host waits for the device only here
    return {row: token for row, token in enumerate(chosen) if token != UNDECIDED}


def choose_likely_rows(
    sequence: TokenSequence, tree: DraftTree, row: int, root: int, logits: Logits
) -> dict[int, int]:
    """Return the target's token at a row of the tree, and at rows that are likely visited next.

    Args:
        row: the row that verification has reached; the tokens down to it have been emitted.
        root: the row of the pass that is the tree's root.
    """
    params = sequence.params
    is_alone = is_path_dependent(params) or params.logprobs is not None
    stop = min(len(tree), ((root + row) // TILE + 1) * TILE - root)
    rows = [row] if is_alone else _likely_rows(tree, row, stop)
    allowed = None
    if sequence.constraint is not None:
        masks = _allowed_tokens(sequence, sequence.constraint, tree, rows)
        rows, allowed = list(masks), to_tensor(list(masks.values()))
    positions = [_position(sequence, tree, row, own) for own in rows]
    chosen = _choose(sequence, logits.rows([root + own for own in rows]), positions, allowed)
    return dict(zip(rows, chosen.tolist(), strict=True))


def _choose(
    sequence: TokenSequence, logits: Rows, positions: Sequence[int], allowed: Tensor | None = None
) -> Tensor:
    """Return the target's tokens [R] at these positions, among the `allowed` ones [R, V]."""
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


def _position(sequence: TokenSequence, tree: DraftTree, row: int, below: int) -> int:
    """Return the position of the token chosen at row `below`, a descendant of the row reached."""
    return len(sequence.tokens) + tree.depths[below] - tree.depths[row]


def _likely_rows(tree: DraftTree, row: int, stop: int) -> list[int]:
    """Return a row and its likeliest descendants before row `stop`, ascending.

    The parent of each returned descendant is returned too.
    """
    least = tree.scores[row] + math.log(MIN_LIKELIHOOD)
    below = {row}
    for own in range(row + 1, stop):
        if tree.parents[own] in below and tree.scores[own] >= least:
            below.add(own)
    return sorted(sorted(below, key=lambda own: (-tree.scores[own], own))[:MAX_LIKELY_ROWS])


def ensure_closable(
    sequence: TokenSequence,
    token: int,
    logits: Tensor,
    constraint: Constraint,
    counts: TokenCounts,
    position: int,
) -> int:
    """Return `token`, or another one if the answer could not be completed in time after it.

    Args:
        token: the token that the target chose at the position.
        logits: the logits [V] that chose it; the other token is chosen from them as well.
        constraint, counts: the state after all tokens before the position.
    """

    def choose_among(allowed: Tensor) -> int:
        params, choice = sequence.params, sequence.choice
        return choose(logits, params, counts, position=position, choice=choice, allowed=allowed)

    room = sequence.num_left(position) - 1
    return constraint.first_closable(token, room, sequence.banned(position), choose_among)


def _allowed_tokens(
    sequence: TokenSequence, constraint: Constraint, tree: DraftTree, rows: Sequence[int]
) -> dict[int, Mask]:
    """Return the tokens that a grammar allows at each of some rows.

    A row is left out if the tokens down to it do not match the grammar.

    Args:
        rows: the row that verification has reached, then descendants of it, ascending.
    """
    paths: dict[int, tuple[int, ...]] = {rows[0]: ()}
    masks = {rows[0]: constraint.allowed(sequence.banned(len(sequence.tokens)))}
    for row in rows[1:]:
        paths[row] = (*paths[tree.parents[row]], tree.tokens[row])
        banned = sequence.banned(_position(sequence, tree, rows[0], row))
        if (mask := constraint.allowed_after(paths[row], banned)) is not None:
            masks[row] = mask
    return masks
