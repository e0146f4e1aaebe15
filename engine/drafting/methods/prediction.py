"""Predicted outputs: propose the answer that the client's request predicts.

A pointer advances through the prediction with the answer. Where the answer departs from it, the
pointer is lost until the answer's last tokens match some place of the prediction again: the longest
match counts, and of equal ones the one nearest to the departure. Until then the guesses assume that
tokens were replaced, inserted or left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.drafting.lookups.lookup import BestFirstSearch, Guess
from engine.drafting.lookups.ngram_index import LONGEST, Match, NgramIndex, guess_from_matches
from engine.drafting.method import MethodFacts
from engine.drafting.tree import Bounds, DraftTree
from engine.messages import PREDICTION

if TYPE_CHECKING:
    from engine.sampling.large_vocabularies.blocks import Matrix
    from engine.sequences.sequence import TokenSequence

# No agreement is expected: most requests have no prediction.
FACTS = MethodFacts(bounds=Bounds(depth=48, width=1, branch=1, budget=64))

PLACES = 64  # examined for each length of an n-gram when the pointer is lost
ELSEWHERE = 2  # places beside the pointer, examined for each length of an n-gram
NEAR = 8  # tokens after the departure within which a match of one token counts
FAR = 64  # tokens around it within which a match of two counts; longer ones count anywhere
START = 4  # the start of the prediction counts like a match of this length
LOST = 16  # tokens without a match after which nothing is guessed any more

# Kinds of guesses beside matches by length (`Match.kind`), written as lengths that no match has.
# The tokens emitted since the departure replace as many of the prediction, one fewer (LONGER) or
# one more (SHORTER), or were inserted; SKIPPED: the answer leaves out the next token.
REPLACED, INSERTED, LONGER, SHORTER, SKIPPED = 0, -1, -2, -3, -4
# Kind -> the hit rate assumed until one is learned.
PRIORS = {1: 0.4, 2: 0.6, 3: 0.75, 4: 0.85, 5: 0.9, 6: 0.95, 7: 0.97}
PRIORS |= {REPLACED: 0.4, INSERTED: 0.25, LONGER: 0.1, SHORTER: 0.1, SKIPPED: 0.15}


@dataclass
class _Pointer:
    """The place in a prediction that one answer has reached."""

    text: tuple[int, ...]  # the prediction
    num_seen: int  # tokens of the sequence that were followed; at first those of its prompt
    place: int = 0  # of the token expected next, or the one expected when the pointer was lost
    run: int = START  # tokens before the place that agree, `LONGEST` at most
    lost: int = 0  # tokens emitted since the answer departed
    index: NgramIndex = field(default_factory=NgramIndex)

    def __post_init__(self) -> None:
        self.index.update(self.text)

    def advance(self, tokens: Sequence[int], num_prompt: int) -> None:
        """Follow the tokens that were emitted since the last call."""
        for end in range(self.num_seen + 1, len(tokens) + 1):
            if not self.lost and self._expected(self.place) == tokens[end - 1]:
                self.place += 1
                self.run = min(self.run + 1, LONGEST)
            else:
                self.lost += 1
                self._realign(tokens[max(num_prompt, end - LONGEST) : end])
        self.num_seen = len(tokens)

    def _expected(self, place: int) -> int | None:
        return self.text[place] if 0 <= place < len(self.text) else None

    def _distance(self, match: Match) -> int:
        return abs(match.place - self.place - self.lost)

    def _realign(self, tail: Sequence[int]) -> None:
        """Move a lost pointer to the place that matches the answer's last tokens, if any does."""
        found = [
            match
            for match in self.index.matches(self.text, tail, PLACES, shortest=2)
            if match.length > 2 or self._distance(match) <= FAR
        ]
        if found:
            best = min(found, key=lambda match: (-match.length, self._distance(match)))
            self.place, self.run, self.lost = best.place, best.length, 0

    def matches(self, tail: Sequence[int]) -> tuple[Match, ...]:
        """Return the places where the answer may continue, those with the longest match first."""
        found = {} if self.lost else {self.place: self.run}
        for match in self.index.matches(self.text, tail, ELSEWHERE, shortest=2):
            found.setdefault(match.place, match.length)
        if 0 < self.lost <= LOST:
            for place in range(self.place, self.place + self.lost + NEAR):
                if self._expected(place) == tail[-1]:
                    found.setdefault(place + 1, 1)
            for place, kind in (
                (self.place + self.lost, REPLACED),
                (self.place, INSERTED),
                (self.place + self.lost - 1, LONGER),
                (self.place + self.lost + 1, SHORTER),
            ):
                found.setdefault(place, kind)
        ordered = sorted(map(Match._make, found.items()), key=lambda match: -match.length)
        return _with_skip(tuple(ordered))


def _with_skip(matches: tuple[Match, ...]) -> tuple[Match, ...]:
    """Return the matches and, as the last, the place one token after the first match's place.

    It guesses that the answer leaves out the token that the prediction has next. Nothing is added
    if the first match agrees with no token.
    """
    if not matches or matches[0].length <= 0:
        return matches
    return (*matches, Match(matches[0].place + 1, SKIPPED))


@dataclass(frozen=True)
class _Branch:
    """The places of the prediction that agree with a drafted path so far."""

    text: tuple[int, ...]
    matches: tuple[Match, ...]

    def token_at(self, place: int) -> int | None:
        return self.text[place] if place < len(self.text) else None

    def guesses(self) -> list[Guess]:
        return guess_from_matches(self.matches, self.token_at, PRIORS)

    def follow(self, token: int) -> _Branch:
        """Return the branch with this token added: the places that continue with it."""
        matches = tuple(
            Match(place + 1, max(length, 0) + 1)
            for place, length in self.matches
            if self.token_at(place) == token
        )
        return _Branch(self.text, _with_skip(matches))


class Prediction:
    """A look-up in the predictions that clients send with their requests."""

    name = PREDICTION

    def __init__(self) -> None:
        self._search = BestFirstSearch(self.name, _Branch.guesses, _Branch.follow)
        self._pointers: dict[TokenSequence, _Pointer] = {}

    def propose(self, sequence: TokenSequence, depth: int, rows: int) -> DraftTree | None:
        """Return a tree of the prediction's next tokens; None for a request without one."""
        text = sequence.prediction
        if not text:
            return None
        pointer = self._pointers.get(sequence)
        if pointer is None:
            pointer = self._pointers[sequence] = _Pointer(text, sequence.num_prompt)
        pointer.advance(sequence.tokens, sequence.num_prompt)
        tail = sequence.tokens[max(sequence.num_prompt, len(sequence.tokens) - LONGEST) :]
        branch = _Branch(text, pointer.matches(tail))
        return self._search.grow(sequence, branch, depth, rows)

    def observe(self, tokens: Sequence[int], logits: Matrix) -> None:
        """Ignore the logits: the prediction is all that is needed."""

    def release(self, sequence: TokenSequence) -> None:
        """Forget the pointer and the last tree of a sequence."""
        self._pointers.pop(sequence, None)
        self._search.release(sequence)


def lookup() -> Prediction:
    """Return a look-up that follows no answer yet."""
    return Prediction()
