"""Token Recycling: what the target itself ranked highest after a token may come after it again.

Token Recycling (arXiv 2408.08696, section 3): a matrix holds each token's likeliest successors, as
the target's logits had them when it was last fed; every pass renews the rows of the tokens it fed.
A tree is grown out of the matrix, best first. The paper's tree has a fixed shape; here the
probabilities are kept beside the tokens and shape it. One matrix serves all sequences.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

from engine.drafting.lookups.bets import LEAST, Bet, Gambler
from engine.drafting.method import MethodFacts
from engine.drafting.tree import Bounds, DraftTree

if TYPE_CHECKING:
    from torch import Tensor

    from engine.sampling.large_vocabularies.blocks import Matrix, Rows
    from engine.sequences.sequence import Sequence

FACTS = MethodFacts(bounds=Bounds(depth=8, width=1, branch=1, budget=64), agreement=0.5)

SUCCESSORS = 8  # kept for each token
ROWS = 32  # of one block of a pass that are looked at: its first are the likeliest
TRUST = 0.6  # believed chance of a successor, over the probability in the matrix
KINDS = (0.01, 0.03, 0.06, 0.1, 0.2, 0.3, 0.4, 0.5, 0.57)  # bets between two share their rate


class Recycling:
    """Bets on each token's last known successors."""

    name = "recycling"

    def __init__(self) -> None:
        self._gambler = Gambler(self.name, self._bets, lambda _, token: token)
        # Successors and their chances, [V, SUCCESSORS], on the host; allocated by the first pass,
        # which knows V.
        self._matrix: tuple[Tensor, Tensor] | None = None
        # Of the last pass: tokens, their successors and log-probabilities, on the device.
        self._fresh: tuple[list[int], Tensor, Tensor] | None = None

    def propose(self, sequence: Sequence, depth: int, rows: int) -> DraftTree | None:
        self._store()
        return self._gambler.grow(sequence, sequence.tokens[-1], depth, rows)

    def observe(self, tokens: Seq[int], logits: Matrix) -> None:
        """Nothing waits here for the device: the figures come over with the next tree.

        A token that several rows fed is remembered by the first of them, the likeliest branch.
        """
        self._store()
        rows: dict[int, int] = {}
        for row, token in enumerate(tokens):
            rows.setdefault(token, row)
            if len(rows) == ROWS:
                break
        if not rows:
            return
        count = min(SUCCESSORS, logits.size)
        if self._matrix is None:
            import torch

            shape = logits.size, count
            self._matrix = torch.full(shape, -1, dtype=torch.int32), torch.zeros(shape)
        self._fresh = (list(rows), *_best(logits.rows(list(rows.values())), count))

    def _store(self) -> None:
        """Take the last pass into the matrix."""
        if self._fresh is None or self._matrix is None:
            return
        import torch

        tokens, best, logprobs = self._fresh
        successors, chances = self._matrix
        where = torch.tensor(tokens)
        successors[where] = best.to("cpu", torch.int32)
        chances[where] = TRUST * logprobs.to("cpu", torch.float32).exp()
        self._fresh = None

    def _bets(self, token: int) -> list[Bet]:
        """One bet for each successor: its chance, given that no better one was right."""
        if self._matrix is None:
            return []
        bets, left = [], 1.0
        successors, chances = (of_all[token].tolist() for of_all in self._matrix)
        for successor, chance in zip(successors, chances, strict=True):
            if not chance >= LEAST:  # also where a logit was not a number
                break
            rate = chance / left
            bets.append(Bet(bisect(KINDS, rate), rate, {successor: 1.0}))
            left -= chance
        return bets

    def release(self, sequence: Sequence) -> None:
        self._gambler.release(sequence)


def _best(rows: Rows, count: int) -> tuple[Tensor, Tensor]:
    """The best tokens of R rows and their log-probabilities, both [R, count], best first.

    The best are in the blocks with the largest maxima, so that only these are ranked. The
    probabilities are normalised over these blocks alone: a little large, but a softmax over all
    of a vocabulary costs more than everything else here.
    """
    from engine.sampling.large_vocabularies.blocks import all_blocks, best_blocks

    few = best_blocks(rows, count) if rows.num_blocks > count else all_blocks(rows)
    best = few.values.topk(count)
    return few.ids.gather(1, best.indices), best.values - few.values.logsumexp(-1, keepdim=True)


def lookup() -> Recycling:
    return Recycling()
