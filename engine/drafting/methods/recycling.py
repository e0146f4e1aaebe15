"""Token Recycling: propose the tokens that the target ranked highest after each token before.

Token Recycling (arXiv 2408.08696, section 3): a matrix holds the most probable successors of each
token, by the target's logits when the token was last fed; every pass renews the rows of the tokens
that it fed. Trees are grown from the matrix, best first. The paper's tree has a fixed shape; here
the probabilities are kept beside the tokens and shape it. One matrix serves all sequences.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.drafting.lookups.lookup import MIN_PROBABILITY, BestFirstSearch, Guess
from engine.drafting.method import MethodFacts
from engine.drafting.tree import Bounds, DraftTree

if TYPE_CHECKING:
    from torch import Tensor

    from engine.sampling.large_vocabularies.blocks import Matrix, Rows
    from engine.sequences.sequence import TokenSequence
    from engine.transfer import Download

FACTS = MethodFacts(bounds=Bounds(depth=8, width=1, branch=1, budget=64), agreement=0.5)

SUCCESSORS = 8  # kept for each token
ROWS = 32  # of each block of a pass, those that are examined: the first are the most probable
PRIOR_SHARE = 0.6  # assumed hit rate of a successor, as a share of its probability by the logits
KINDS = (0.01, 0.03, 0.06, 0.1, 0.2, 0.3, 0.4, 0.5, 0.57)  # rates between two are of one kind


class Recycling:
    """A look-up of each token's last known successors."""

    name = "recycling"

    def __init__(self) -> None:
        self._search = BestFirstSearch(self.name, self._guesses, lambda _, token: token)
        # Successors and their assumed hit rates, [V, SUCCESSORS] each, on the host. Allocated in
        # the first pass, when the vocabulary size V is known.
        self._matrix: tuple[Tensor, Tensor] | None = None
        # Of the last pass: tokens, and their successors and log-probabilities on their way to the
        # host.
        self._fresh: tuple[list[int], Download, Download] | None = None

    def propose(self, sequence: TokenSequence, depth: int, rows: int) -> DraftTree | None:
        """Return a tree of the known successors below the sequence's last token."""
        self._store()
        return self._search.grow(sequence, sequence.tokens[-1], depth, rows)

    def observe(self, tokens: Sequence[int], logits: Matrix) -> None:
        """Remember the best tokens at these rows as the successors of the tokens they fed.

        Of several rows that fed the same token the first counts: it is on the most probable branch.
        The results are on the host when the next tree needs them, so that nothing waits here.
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
        from engine.transfer import Download

        best, logprobs = _best(logits.rows(list(rows.values())), count)
        self._fresh = list(rows), Download(best.int()), Download(logprobs.float())

    def _store(self) -> None:
        """Copy the last pass's successors to the matrix."""
        if self._fresh is None or self._matrix is None:
            return
        import torch

        tokens, best, logprobs = self._fresh
        successors, probabilities = self._matrix
        where = torch.tensor(tokens)
        successors[where] = best.result()
        probabilities[where] = PRIOR_SHARE * logprobs.result().exp()
        self._fresh = None

    def _guesses(self, token: int) -> list[Guess]:
        """Return a guess for each successor; its prior assumes that all better ones were wrong."""
        if self._matrix is None:
            return []
        guesses, left = [], 1.0
        successors, probabilities = (of_all[token].tolist() for of_all in self._matrix)
        for successor, probability in zip(successors, probabilities, strict=True):
            if not probability >= MIN_PROBABILITY:  # also where a logit was not a number
                break
            rate = probability / left
            guesses.append(Guess(bisect(KINDS, rate), rate, {successor: 1.0}))
            left -= probability
        return guesses

    def release(self, sequence: TokenSequence) -> None:
        """Forget the last tree of a sequence. The matrix is kept."""
        self._search.release(sequence)


def _best(rows: Rows, count: int) -> tuple[Tensor, Tensor]:
    """Return the best tokens of R rows and their log-probabilities, both [R, count], best first.

    The best tokens are in the blocks with the largest maxima, so only these are ranked. The
    probabilities are normalized over these blocks alone and so a little too large: a softmax over
    the whole vocabulary would take longer than everything else here.
    """
    from engine.sampling.large_vocabularies.blocks import all_blocks, best_blocks

    few = best_blocks(rows, count) if rows.num_blocks > count else all_blocks(rows)
    best = few.values.topk(count)
    return few.ids.gather(1, best.indices), best.values - few.values.logsumexp(-1, keepdim=True)


def lookup() -> Recycling:
    """Return a look-up that has observed no logits yet."""
    return Recycling()
