"""N-gram look-up: propose what followed the same tokens earlier in this sequence.

Prompt lookup decoding (Saxena, 2023): find the latest places where the last n tokens occurred, and
propose what came next. All places found go into one tree; longer matches get better scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.drafting.lookups.lookup import BestFirstSearch, Guess
from engine.drafting.lookups.ngram_index import Match, NgramIndex, guess_from_matches
from engine.drafting.method import MethodFacts
from engine.drafting.tree import Bounds, DraftTree

if TYPE_CHECKING:
    from engine.sampling.large_vocabularies.blocks import Matrix
    from engine.sequences.sequence import TokenSequence

FACTS = MethodFacts(
    bounds=Bounds(depth=24, width=1, branch=1, budget=32), agreement=0.3, is_candidate=True
)
PLACES = 4  # examined for each length of an n-gram
# Kind of match -> the hit rate assumed until one is learned.
PRIORS = {1: 0.41, 2: 0.51, 3: 0.64, 4: 0.8, 5: 0.85, 6: 0.9, 7: 0.95}


@dataclass(frozen=True)
class _Branch:
    """A drafted path and the matches that agree with it so far."""

    text: Sequence[int]
    matches: tuple[Match, ...]
    path: tuple[int, ...] = ()

    def token_at(self, place: int) -> int:
        """Return the token at a place of the text followed by the path.

        A match may run into the path that it drafted itself, so a loop continues to any depth.
        """
        return self.text[place] if place < len(self.text) else self.path[place - len(self.text)]

    def guesses(self) -> list[Guess]:
        return guess_from_matches(self.matches, self.token_at, PRIORS)

    def follow(self, token: int) -> _Branch:
        """Return the branch with this token added, and the matches that continue with it."""
        matches = tuple(
            Match(place + 1, length + 1)
            for place, length in self.matches
            if self.token_at(place) == token
        )
        return _Branch(self.text, matches, (*self.path, token))


class Ngram:
    """A look-up in the sequence's own past."""

    name = "ngram"

    def __init__(self) -> None:
        self._search = BestFirstSearch(self.name, _Branch.guesses, _Branch.follow)
        self._pasts: dict[TokenSequence, NgramIndex] = {}

    def propose(self, sequence: TokenSequence, depth: int, rows: int) -> DraftTree | None:
        """Return a tree of what followed the earlier occurrences of the last tokens."""
        tokens = sequence.tokens
        past = self._pasts.setdefault(sequence, NgramIndex())
        past.update(tokens)
        branch = _Branch(tokens, tuple(past.matches(tokens, tokens, PLACES)))
        return self._search.grow(sequence, branch, depth, rows)

    def observe(self, tokens: Sequence[int], logits: Matrix) -> None:
        """Ignore the logits: the sequence's tokens are all that is needed."""

    def release(self, sequence: TokenSequence) -> None:
        """Forget the index and the last tree of a sequence."""
        self._pasts.pop(sequence, None)
        self._search.release(sequence)


def lookup() -> Ngram:
    """Return a look-up without any history."""
    return Ngram()
