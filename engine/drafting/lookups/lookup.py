"""Look-ups: drafts that take no draft time. They join the trees of a draft model, or draft alone.

A look-up finds tokens that may come next (in the sequence's own past, in the target's earlier
logits, in what the client expects) and guesses them. The hit rate of each kind of guess is learned
as answers are emitted, so that the score of a row is a calibrated log-probability.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import log
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

from engine.drafting.tree import DraftTree

if TYPE_CHECKING:  # a method's file imports this module, and the front end reads that file
    from engine.sampling.large_vocabularies.blocks import Matrix
    from engine.sequences.sequence import TokenSequence

PRIOR_WEIGHT = 4.0  # trials that the prior of a guess counts for
MEMORY = 128.0  # the weight of a trial falls by 1 / MEMORY with each later one
MAX_RATE = 0.99  # no hit rate is higher, so that scores fall along a path
MIN_PROBABILITY = 1e-3  # of a path: a row that is accepted more rarely is not worth its place

State = TypeVar("State")


class Lookup(Protocol):
    """A draft that proposes trees and takes no draft time."""

    name: str  # the source of its rows, in metrics and in an answer's provenance

    def propose(self, sequence: TokenSequence, depth: int, rows: int) -> DraftTree | None:
        """Return a tree below the sequence's last token, or None where nothing is found.

        The tree has at most `rows` rows, its root included, and `depth` levels below the root.
        Scores are log-probabilities of the path down to a row; they fall from parent to child. A
        token that ends the sequence has no children, and no level is deeper than
        `sequence.max_draft_depth`.
        """

    def observe(self, tokens: Sequence[int], logits: Matrix) -> None:
        """Learn from the target's logits at rows of a pass.

        Args:
            tokens: the input tokens of the first rows.
        """

    def release(self, sequence: TokenSequence) -> None:
        """Forget what is kept for a sequence that ended or was paused."""


class Guess(NamedTuple):
    """One kind of evidence: the next token is one of these, unless an earlier guess was right.

    Guesses are ordered like the contexts of prediction by partial matching (Cleary and Witten,
    1984) with its escape: each is tried only where all guesses before it missed.
    """

    kind: Hashable  # guesses of one kind share their learned hit rate
    prior: float  # the hit rate assumed before any trial, 0 to 1
    shares: Mapping[int, float]  # token -> its share of the guess; the shares add up to 1


class HitRates:
    """The hit rates of all kinds of guesses. Old trials fade, so the rates follow the text."""

    def __init__(self) -> None:
        self._counts: dict[Hashable, tuple[float, float]] = {}  # kind -> (hits, trials)

    def estimate_rate(self, guess: Guess) -> float:
        """Return the probability that this guess is right where it is tried, at most `MAX_RATE`."""
        hits, trials = self._counts.get(guess.kind, (0.0, 0.0))
        return min((PRIOR_WEIGHT * guess.prior + hits) / (PRIOR_WEIGHT + trials), MAX_RATE)

    def estimate_probabilities(self, guesses: Sequence[Guess]) -> list[tuple[int, float]]:
        """Return the guessed tokens, each with the probability that it comes next.

        That is the probability that all earlier guesses are wrong, times the hit rate of the
        token's own guess, times the token's share of it.
        """
        probabilities = []
        left = 1.0
        for guess in guesses:
            rate = self.estimate_rate(guess)
            for token, share in guess.shares.items():
                probabilities.append((token, left * rate * share))
            left *= 1 - rate
        return probabilities

    def record(self, guesses: Sequence[Guess], token: int) -> None:
        """Count a trial for each guess up to the first that contains `token`, the actual token."""
        for guess in guesses:
            hits, trials = self._counts.get(guess.kind, (0.0, 0.0))
            fade = 1 - 1 / MEMORY
            self._counts[guess.kind] = hits * fade + (token in guess.shares), trials * fade + 1
            if token in guess.shares:
                return


class _TreeBuilder(Generic[State]):
    """A tree under construction, with the guesses made at its rows."""

    def __init__(self, sequence: TokenSequence, state: State, depth: int) -> None:
        self.sequence = sequence
        self.start = len(sequence.tokens)  # position of the first level in the sequence
        self.depth = min(depth, sequence.max_draft_depth)
        self.tokens = [sequence.tokens[-1]]
        self.parents = [-1]
        self.depths = [0]
        self.probabilities = [1.0]  # of the path down to each row
        self.states = [state]
        self.guesses: dict[int, Sequence[Guess]] = {}
        self._candidates: list[
            tuple[float, int, int, int]
        ] = []  # -probability, number, parent, token
        self._numbers = count()

    def can_expand(self, row: int) -> bool:
        ends = row > 0 and self.sequence.is_terminal(self.tokens[row])
        return self.depths[row] < self.depth and not ends

    def expand(self, row: int, guesses: Sequence[Guess], rates: HitRates) -> None:
        """Make the guessed tokens candidates for children of the row."""
        self.guesses[row] = guesses
        path = self.probabilities[row]
        for token, probability in rates.estimate_probabilities(guesses):
            if path * probability >= MIN_PROBABILITY:
                candidate = (-path * probability, next(self._numbers), row, token)
                heapq.heappush(self._candidates, candidate)

    def add_best(self) -> tuple[int, int] | None:
        """Make the best candidate a row and return its parent and token; None if there is none."""
        if not self._candidates:
            return None
        probability, _, parent, token = heapq.heappop(self._candidates)
        self.tokens.append(token)
        self.parents.append(parent)
        self.depths.append(self.depths[parent] + 1)
        self.probabilities.append(-probability)
        return parent, token

    def tree(self, source: str) -> DraftTree:
        return DraftTree(
            tokens=tuple(self.tokens),
            parents=tuple(self.parents),
            depths=tuple(self.depths),
            scores=tuple(map(log, self.probabilities)),
            sources=("", *(source,) * (len(self.tokens) - 1)),
        )


@dataclass(frozen=True)
class _ProposedTree:
    """The last tree of a sequence and the guesses made at its rows."""

    start: int  # position of the first level in the sequence
    tree: DraftTree
    guesses: Mapping[int, Sequence[Guess]]  # row -> guesses of its children


class BestFirstSearch(Generic[State]):
    """A search for the most probable tree of guesses, which learns their hit rates.

    Args:
        source: the source of the trees' rows.
        guesses: returns the guesses of the next token in a state.
        follow: returns the state that a token leads to from a state.
    """

    def __init__(
        self,
        source: str,
        guesses: Callable[[State], Sequence[Guess]],
        follow: Callable[[State, int], State],
    ) -> None:
        self.rates = HitRates()
        self._source = source
        self._guesses = guesses
        self._follow = follow
        self._proposed: dict[TokenSequence, _ProposedTree] = {}

    def grow(
        self, sequence: TokenSequence, state: State, depth: int, rows: int
    ) -> DraftTree | None:
        """Return the tree of the best `rows` rows, the root included; None without any guess.

        First record which guesses of the sequence's last tree were right.
        """
        self._learn(sequence)
        builder = _TreeBuilder(sequence, state, depth)
        for row in range(rows - 1):
            if builder.can_expand(row):
                builder.expand(row, self._guesses(builder.states[row]), self.rates)
            added = builder.add_best()
            if added is None:
                break
            parent, token = added
            builder.states.append(self._follow(builder.states[parent], token))
        if len(builder.tokens) == 1:
            return None
        tree = builder.tree(self._source)
        self._proposed[sequence] = _ProposedTree(builder.start, tree, builder.guesses)
        return tree

    def _learn(self, sequence: TokenSequence) -> None:
        """Record the guesses at the rows of the last tree that the emitted tokens reached."""
        proposed = self._proposed.pop(sequence, None)
        if proposed is None:
            return
        row = 0
        for token in sequence.tokens[proposed.start :]:
            self.rates.record(proposed.guesses.get(row, ()), token)
            children = proposed.tree.children(row)
            if token not in children:
                return
            row = children[token]

    def release(self, sequence: TokenSequence) -> None:
        """Forget the last tree of a sequence that ended or was paused."""
        self._proposed.pop(sequence, None)
