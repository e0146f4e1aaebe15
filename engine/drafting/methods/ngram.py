"""N-gram look-up: what followed the same tokens earlier in this sequence may follow again.

Prompt lookup decoding (Saxena, 2023): find the latest places where the last n tokens occurred, and
propose what came next. All places found go into one tree; the longer the match, the surer.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.drafting.lookups.bets import Bet, Gambler
from engine.drafting.lookups.suffixes import Match, Suffixes, bets_on
from engine.drafting.method import MethodFacts
from engine.drafting.tree import Bounds, DraftTree

if TYPE_CHECKING:
    from engine.sampling.large_vocabularies.blocks import Matrix
    from engine.sequences.sequence import Sequence

FACTS = MethodFacts(
    bounds=Bounds(depth=24, width=1, branch=1, budget=32), agreement=0.3, is_candidate=True
)
PLACES = 4  # looked at for each length of an n-gram
# Kind of match -> how often it is believed to go on alike, until that is learned.
PRIORS = {1: 0.41, 2: 0.51, 3: 0.64, 4: 0.8, 5: 0.85, 6: 0.9, 7: 0.95}


@dataclass(frozen=True)
class _Branch:
    """The matches that a drafted path agrees with."""

    text: Seq[int]
    matches: tuple[Match, ...]
    path: tuple[int, ...] = ()

    def token_at(self, place: int) -> int:
        """A match may run on into what it drafted itself: so a loop goes on as long as wanted."""
        return self.text[place] if place < len(self.text) else self.path[place - len(self.text)]

    def bets(self) -> list[Bet]:
        return bets_on(self.matches, self.token_at, PRIORS)

    def follow(self, token: int) -> _Branch:
        matches = tuple(
            Match(place + 1, length + 1)
            for place, length in self.matches
            if self.token_at(place) == token
        )
        return _Branch(self.text, matches, (*self.path, token))


class Ngram:
    """Bets on the sequence's own past."""

    name = "ngram"

    def __init__(self) -> None:
        self._gambler = Gambler(self.name, _Branch.bets, _Branch.follow)
        self._pasts: dict[Sequence, Suffixes] = {}

    def propose(self, sequence: Sequence, depth: int, rows: int) -> DraftTree | None:
        tokens = sequence.tokens
        past = self._pasts.setdefault(sequence, Suffixes())
        past.update(tokens)
        branch = _Branch(tokens, tuple(past.matches(tokens, tokens, PLACES)))
        return self._gambler.grow(sequence, branch, depth, rows)

    def observe(self, tokens: Seq[int], logits: Matrix) -> None:
        """The tokens themselves tell all there is to remember."""

    def release(self, sequence: Sequence) -> None:
        self._pasts.pop(sequence, None)
        self._gambler.release(sequence)


def lookup() -> Ngram:
    return Ngram()
