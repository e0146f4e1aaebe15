"""Where the last tokens of a sequence occurred in a text, and bets on what came next there."""

from array import array
from collections.abc import Callable, Mapping, Sequence as Seq
from itertools import groupby
from typing import NamedTuple

from engine.drafting.lookups.bets import Bet

LENGTHS = (4, 2, 1)  # the n-grams whose places are kept
LONGEST = 16  # tokens that a match is compared back for


class Match(NamedTuple):
    """A place in a text that may go on as the sequence does."""

    place: int  # of the token that came next
    length: int  # tokens before it that agree; `LONGEST` at most when found

    @property
    def kind(self) -> int:
        """Matches of about one length are worth about the same."""
        if self.length < 5:
            return self.length
        return 5 if self.length < 8 else 6 if self.length < LONGEST else 7


class Suffixes:
    """The places of a text's n-grams. The text may grow at its end."""

    def __init__(self) -> None:
        self._last: dict[int, dict[tuple[int, ...], int]] = {n: {} for n in LENGTHS}
        self._before = {n: array("i", [0] * n) for n in LENGTHS}  # place -> the one before it

    def update(self, text: Seq[int]) -> None:
        """Take in what the text has grown by. What ends it has no continuation yet."""
        for n in LENGTHS:
            last, before = self._last[n], self._before[n]
            first = len(before)
            if len(text) <= first:
                continue
            columns = (text[first - n + i : len(text) - n + i] for i in range(n))
            for place, gram in enumerate(zip(*columns, strict=True), first):
                before.append(last.get(gram, 0))
                last[gram] = place

    def matches(
        self, text: Seq[int], tail: Seq[int], places: int, shortest: int = 1
    ) -> list[Match]:
        """Places of the text behind what ends `tail`: the longest, then the latest ones first.

        For each n-gram length from `shortest` on, the latest `places` are looked at.
        """
        found: dict[int, int] = {}
        for n in LENGTHS:
            if n < shortest or n > len(tail):
                continue
            place = self._last[n].get(tuple(tail[-n:]), 0)
            for _ in range(places):
                if not place:
                    break
                if place not in found:
                    found[place] = _agreement(text, place, tail)
                place = self._before[n][place]
        return sorted(map(Match._make, found.items()), key=lambda m: (-m.length, -m.place))


def _agreement(text: Seq[int], end: int, tail: Seq[int]) -> int:
    """How many tokens before `end` are the last ones of the tail, `LONGEST` at most."""
    count = 0
    most = min(end, len(tail), LONGEST)
    while count < most and text[end - 1 - count] == tail[-1 - count]:
        count += 1
    return count


def bets_on(
    matches: Seq[Match], token_at: Callable[[int], int | None], priors: Mapping[int, float]
) -> list[Bet]:
    """One bet for each kind of match, in the order given; earlier matches have larger shares.

    A token that a better kind bets on is no part of a later bet.
    """
    bets: list[Bet] = []
    taken: set[int] = set()
    for kind, group in groupby(matches, key=lambda match: match.kind):
        weights: dict[int, float] = {}
        rank = 0
        for match in group:
            token = token_at(match.place)
            if token is None or token in taken:
                continue
            rank += 1
            weights[token] = weights.get(token, 0.0) + 1 / rank
        if weights:
            total = sum(weights.values())
            shares = {token: weight / total for token, weight in weights.items()}
            bets.append(Bet(kind, priors[kind], shares))
            taken.update(weights)
    return bets
