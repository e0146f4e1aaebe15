"""Look-ups: drafts that cost no draft time. They join a model's trees, or draft alone.

A look-up finds tokens that may come next (in the sequence's own past, in the target's earlier
logits, in what the client expects) and bets on them. How often bets of a kind come true is learned
while they are made, so that a row's score is an honest log-probability.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Mapping, Sequence as Seq
from dataclasses import dataclass
from itertools import count
from math import log
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

from engine.drafting.tree import DraftTree

if TYPE_CHECKING:  # a method's file imports this module, and the front end reads that file
    from engine.sampling.large_vocabularies.blocks import Matrix
    from engine.sequences.sequence import Sequence

PRIOR_WEIGHT = 4.0  # trials that what is believed beforehand counts for
MEMORY = 128.0  # trials that are remembered: older ones fade
SURE = 0.99  # no bet is surer than this, so that scores fall along a path
LEAST = 1e-3  # chance of a path: a row that comes true more seldom is not worth its place

State = TypeVar("State")


class Lookup(Protocol):
    """Guesses that cost no draft time."""

    name: str  # the source of its rows, in metrics and provenance

    def propose(self, sequence: Sequence, depth: int, rows: int) -> DraftTree | None:
        """At most `rows` rows and `depth` levels below the last token; None: nothing found.

        Scores are log-probabilities of the path; they fall from parent to child. Nothing stands
        behind a token that ends the sequence, nor deeper than the sequence can still grow.
        """

    def observe(self, tokens: Seq[int], logits: Matrix) -> None:
        """The target's logits at the rows of a pass, the first of which fed these tokens."""

    def release(self, sequence: Sequence) -> None:
        """The sequence ended or was paused: forget what is kept for it."""


class Bet(NamedTuple):
    """One kind of evidence: the next token is one of these, if no better evidence was right.

    The escape of prediction by partial matching (Cleary and Witten, 1984): each bet is tried only
    where all bets before it lost.
    """

    kind: Hashable  # bets of one kind share their learned rate
    prior: float  # the rate believed beforehand, 0 to 1
    shares: Mapping[int, float]  # token -> its share of the bet; the shares add up to 1


class Rates:
    """How often bets of each kind came true. Old trials fade, so that it follows the text."""

    def __init__(self) -> None:
        self._counts: dict[Hashable, tuple[float, float]] = {}  # kind -> (won, tried)

    def rate(self, bet: Bet) -> float:
        """The chance that this bet comes true, `SURE` at most."""
        won, tried = self._counts.get(bet.kind, (0.0, 0.0))
        return min((PRIOR_WEIGHT * bet.prior + won) / (PRIOR_WEIGHT + tried), SURE)

    def chances(self, bets: Seq[Bet]) -> list[tuple[int, float]]:
        """Each token's chance: the bets before its own lose, its own wins, and it is the one."""
        chances = []
        left = 1.0
        for bet in bets:
            rate = self.rate(bet)
            for token, share in bet.shares.items():
                chances.append((token, left * rate * share))
            left *= 1 - rate
        return chances

    def settle(self, bets: Seq[Bet], token: int) -> None:
        """Count the bets made before this token came, up to the one that won."""
        for bet in bets:
            won, tried = self._counts.get(bet.kind, (0.0, 0.0))
            fade = 1 - 1 / MEMORY
            self._counts[bet.kind] = won * fade + (token in bet.shares), tried * fade + 1
            if token in bet.shares:
                return


class _Growing(Generic[State]):
    """A tree while it grows, and the bets made at its rows."""

    def __init__(self, sequence: Sequence, state: State, depth: int) -> None:
        self.sequence = sequence
        self.start = len(sequence.tokens)  # where in the sequence the first level would stand
        self.depth = min(depth, sequence.max_draft_depth)
        self.tokens = [sequence.tokens[-1]]
        self.parents = [-1]
        self.depths = [0]
        self.chances = [1.0]  # of the path down to each row
        self.states = [state]
        self.bets: dict[int, Seq[Bet]] = {}
        self._candidates: list[tuple[float, int, int, int]] = []  # -chance, number, parent, token
        self._numbers = count()

    def can_expand(self, row: int) -> bool:
        ends = row > 0 and self.sequence.is_terminal(self.tokens[row])
        return self.depths[row] < self.depth and not ends

    def expand(self, row: int, bets: Seq[Bet], rates: Rates) -> None:
        """Make the row's children candidates."""
        self.bets[row] = bets
        path = self.chances[row]
        for token, chance in rates.chances(bets):
            if path * chance >= LEAST:
                candidate = (-path * chance, next(self._numbers), row, token)
                heapq.heappush(self._candidates, candidate)

    def take(self) -> tuple[int, int] | None:
        """The best candidate becomes a row: its parent and token. None if there is none."""
        if not self._candidates:
            return None
        chance, _, parent, token = heapq.heappop(self._candidates)
        self.tokens.append(token)
        self.parents.append(parent)
        self.depths.append(self.depths[parent] + 1)
        self.chances.append(-chance)
        return parent, token

    def tree(self, source: str) -> DraftTree:
        return DraftTree(
            tokens=tuple(self.tokens),
            parents=tuple(self.parents),
            depths=tuple(self.depths),
            scores=tuple(map(log, self.chances)),
            sources=("", *(source,) * (len(self.tokens) - 1)),
        )


@dataclass(frozen=True)
class _Asked:
    """The last tree of a sequence and the bets made at its rows."""

    start: int  # where in the sequence the first level would stand
    tree: DraftTree
    bets: Mapping[int, Seq[Bet]]  # row -> bets on its children


class Gambler(Generic[State]):
    """Grows trees best first out of bets, and learns from what was emitted what bets are worth.

    `bets(state)` are the bets on the next token in a state, `follow(state, token)` is the state
    after it. Rows of the trees come from `source`.
    """

    def __init__(
        self, source: str, bets: Callable[[State], Seq[Bet]], follow: Callable[[State, int], State]
    ) -> None:
        self.rates = Rates()
        self._source = source
        self._bets = bets
        self._follow = follow
        self._asked: dict[Sequence, _Asked] = {}

    def grow(self, sequence: Sequence, state: State, depth: int, rows: int) -> DraftTree | None:
        """The best `rows` rows, the root among them; None if there is no bet worth a row."""
        self._learn(sequence)
        growing = _Growing(sequence, state, depth)
        for row in range(rows - 1):
            if growing.can_expand(row):
                growing.expand(row, self._bets(growing.states[row]), self.rates)
            taken = growing.take()
            if taken is None:
                break
            parent, token = taken
            growing.states.append(self._follow(growing.states[parent], token))
        if len(growing.tokens) == 1:
            return None
        tree = growing.tree(self._source)
        self._asked[sequence] = _Asked(growing.start, tree, growing.bets)
        return tree

    def _learn(self, sequence: Sequence) -> None:
        """Count the bets of the last tree on the way that the sequence went since."""
        asked = self._asked.pop(sequence, None)
        if asked is None:
            return
        row = 0
        for token in sequence.tokens[asked.start :]:
            self.rates.settle(asked.bets.get(row, ()), token)
            children = asked.tree.children(row)
            if token not in children:
                return
            row = children[token]

    def release(self, sequence: Sequence) -> None:
        self._asked.pop(sequence, None)
