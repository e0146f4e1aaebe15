"""Predicted outputs: the client says what it expects, and the answer often follows it.

A pointer goes through the prediction with the answer. Where the answer departs from it, the pointer
is set again by the answer's last tokens (the longest match, near where it was lost), and until they
match there are guesses: tokens were replaced, inserted or left out.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.drafting.lookups.bets import Bet, Gambler
from engine.drafting.lookups.suffixes import LONGEST, Match, Suffixes, bets_on
from engine.drafting.method import MethodFacts
from engine.drafting.tree import Bounds, DraftTree
from engine.messages import PREDICTION

if TYPE_CHECKING:
    from engine.sampling.large_vocabularies.blocks import Matrix
    from engine.sequences.sequence import Sequence

# No agreement is expected: most requests predict nothing.
FACTS = MethodFacts(bounds=Bounds(depth=48, width=1, branch=1, budget=64))

PLACES = 64  # looked at for each length of an n-gram when the pointer is lost
ELSEWHERE = 2  # other places that are kept as alternates
NEAR = 8  # tokens behind the place of departure in which one matching token counts
FAR = 64  # tokens around it in which a match of two counts; longer ones count anywhere
START = 4  # the start of the prediction counts like a match of so many tokens
LOST = 16  # tokens without a match after which nothing is guessed any more

# Kinds of guesses, beside matches by length (`Match.kind`): as lengths that no match has.
REPLACED, INSERTED, LONGER, SHORTER, SKIPPED = 0, -1, -2, -3, -4
# Kind -> how often it is believed to go on alike, until that is learned.
PRIORS = {1: 0.4, 2: 0.6, 3: 0.75, 4: 0.85, 5: 0.9, 6: 0.95, 7: 0.97}
PRIORS |= {REPLACED: 0.4, INSERTED: 0.25, LONGER: 0.1, SHORTER: 0.1, SKIPPED: 0.15}


@dataclass
class _Pointer:
    """How far one answer has come in its prediction."""

    text: tuple[int, ...]  # the prediction
    num_seen: int  # tokens of the sequence that were followed; at first those of its prompt
    place: int = 0  # in the prediction: what is expected next, or was when the pointer was lost
    run: int = START  # tokens before the place that agree, `LONGEST` at most
    lost: int = 0  # tokens that came since the answer departed
    index: Suffixes = field(default_factory=Suffixes)

    def __post_init__(self) -> None:
        self.index.update(self.text)

    def advance(self, tokens: Seq[int], num_prompt: int) -> None:
        """Follow what was emitted."""
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

    def _realign(self, tail: Seq[int]) -> None:
        found = [
            match
            for match in self.index.matches(self.text, tail, PLACES, shortest=2)
            if match.length > 2 or self._distance(match) <= FAR
        ]
        if found:
            best = min(found, key=lambda match: (-match.length, self._distance(match)))
            self.place, self.run, self.lost = best.place, best.length, 0

    def matches(self, tail: Seq[int]) -> tuple[Match, ...]:
        """Where the answer may go on, the most trusted place first."""
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
    """The same, and last the guess that one token of the first is left out."""
    if not matches or matches[0].length <= 0:
        return matches
    return (*matches, Match(matches[0].place + 1, SKIPPED))


@dataclass(frozen=True)
class _Branch:
    """The places of the prediction that a drafted path agrees with."""

    text: tuple[int, ...]
    matches: tuple[Match, ...]

    def token_at(self, place: int) -> int | None:
        return self.text[place] if place < len(self.text) else None

    def bets(self) -> list[Bet]:
        return bets_on(self.matches, self.token_at, PRIORS)

    def follow(self, token: int) -> _Branch:
        matches = tuple(
            Match(place + 1, max(length, 0) + 1)
            for place, length in self.matches
            if self.token_at(place) == token
        )
        return _Branch(self.text, _with_skip(matches))


class Prediction:
    """Bets on the tokens that the client expects."""

    name = PREDICTION

    def __init__(self) -> None:
        self._gambler = Gambler(self.name, _Branch.bets, _Branch.follow)
        self._pointers: dict[Sequence, _Pointer] = {}

    def propose(self, sequence: Sequence, depth: int, rows: int) -> DraftTree | None:
        text = sequence.prediction
        if not text:
            return None
        pointer = self._pointers.get(sequence)
        if pointer is None:
            pointer = self._pointers[sequence] = _Pointer(text, sequence.num_prompt)
        pointer.advance(sequence.tokens, sequence.num_prompt)
        tail = sequence.tokens[max(sequence.num_prompt, len(sequence.tokens) - LONGEST) :]
        branch = _Branch(text, pointer.matches(tail))
        return self._gambler.grow(sequence, branch, depth, rows)

    def observe(self, tokens: Seq[int], logits: Matrix) -> None:
        """The prediction tells all there is to know."""

    def release(self, sequence: Sequence) -> None:
        self._pointers.pop(sequence, None)
        self._gambler.release(sequence)


def lookup() -> Prediction:
    return Prediction()
