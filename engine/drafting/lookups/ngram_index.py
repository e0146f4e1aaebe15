"""An index of the n-grams of a text, and guesses of what follows where the last tokens recur."""

from array import array
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from engine.drafting.lookups.lookup import Guess

LENGTHS = (4, 2, 1)  # of the n-grams whose places are kept
LONGEST = 16  # tokens before a place that are compared at most


class Match(NamedTuple):
    """A place in a text whose continuation may be the sequence's continuation too."""

    place: int  # of the token that came next, as an index of the text
    length: int  # tokens before the place that agree; `LONGEST` at most when it is found

    @property
    def kind(self) -> int:
        """Return the kind of guess (`Guess.kind`): one for matches of about the same length."""
        if self.length < 5:
            return self.length
        return 5 if self.length < 8 else 6 if self.length < LONGEST else 7


class NgramIndex:
    """An index of the places after each n-gram of a text. The text may grow at its end."""

    def __init__(self) -> None:
        # n -> n-gram -> the last place after it; place 0 means none.
        self._last: dict[int, dict[tuple[int, ...], int]] = {n: {} for n in LENGTHS}
        self._before = {n: array("i", [0] * n) for n in LENGTHS}  # place -> the previous one

    def update(self, text: Sequence[int]) -> None:
        """Index what was added to the text, but not its last n-grams: nothing follows them yet."""
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
        self, text: Sequence[int], tail: Sequence[int], places: int, shortest: int = 1
    ) -> list[Match]:
        """Return places of the text that follow the n-grams with which `tail` ends.

        The longest matches come first, and the latest of equal ones. For each n-gram length from
        `shortest` on, the latest `places` places are examined.
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
                    found[place] = _count_agreeing(text, place, tail)
                place = self._before[n][place]
        return sorted(map(Match._make, found.items()), key=lambda m: (-m.length, -m.place))


def _count_agreeing(text: Sequence[int], end: int, tail: Sequence[int]) -> int:
    """Return how many tokens before `end` equal the last tokens of `tail`, at most `LONGEST`."""
    count = 0
    most = min(end, len(tail), LONGEST)
    while count < most and text[end - 1 - count] == tail[-1 - count]:
        count += 1
    return count


def guess_from_matches(
    matches: Sequence[Match], token_at: Callable[[int], int | None], priors: Mapping[int, float]
) -> list[Guess]:
    """Return one guess for each kind of match, in the order of `matches`.

    Earlier matches of a kind have larger shares. A token of an earlier guess is left out of later
    ones.

    Args:
        token_at: returns the token at a place, or None after the end of the text.
        priors: kind of match -> the hit rate assumed before any trial.
    """
    guesses: list[Guess] = []
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
            guesses.append(Guess(kind, priors[kind], shares))
            taken.update(weights)
    return guesses
