"""The order in which tokens are tried to bring a text to its end.

It is a guess by spelling alone. Closing brackets and quotes end what is open, separators lead to
the next thing that is required, and what opens something makes a text longer. Inside a quoted text
brackets end nothing.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

_BRACKETS = frozenset(b"]})>")
_QUOTES = frozenset(b"\"'")
_EMPTY = (b"[]", b"{}", b'""')
_SEPARATORS = frozenset(b",: ")
_STRUCTURE = _BRACKETS | _QUOTES | _SEPARATORS
_TERMINATORS = frozenset(b".!?;\n ")

LAST = 99


class TokenRanks:
    """A preference among the tokens of a vocabulary.

    Args:
        spellings: the bytes of each token, empty for special ones. Those come first: a grammar
            allows them only where it names them.
        plain: the rank of a token that ends nothing, by its spelling; lower goes first.
        eager: whether a token that ends something and goes on to the next is better than one that
            only ends it. It is where something has to follow.
    """

    def __init__(
        self, spellings: Sequence[bytes], plain: Callable[[bytes], tuple[int, int]], eager: bool
    ) -> None:
        first = np.array([spelling[0] if spelling else 0 for spelling in spellings])
        self._brackets, self._letters = first == ord("}"), first == ord("e")
        self._outside, self._inside = (
            np.array(sorted(range(len(spellings)), key=lambda t: rank(spellings[t])), np.int64)
            for rank in (partial(_rank, ends, plain, eager) for ends in (_BRACKETS, _QUOTES))
        )

    def best(self, mask: NDArray[np.bool_]) -> int:
        """Return the preferred token of a mask [V]."""
        in_text = (mask & self._brackets).any() and (mask & self._letters).any()
        order = self._inside if in_text else self._outside
        return int(order[mask[order].argmax()])


def token_ranks(spellings: Sequence[bytes]) -> tuple[TokenRanks, ...]:
    """Return several preferences: where one never finds the end, another may."""
    kinds = ((_terminators, False), (_longest, True), (_shortest, True))
    return tuple(TokenRanks(spellings, plain, eager) for plain, eager in kinds)


def _rank(
    ends: frozenset[int],
    plain: Callable[[bytes], tuple[int, int]],
    eager: bool,
    spelling: bytes,
) -> tuple[int, int]:
    """Return the rank of a token; one that begins with a byte of `ends` ends something."""
    if not spelling:
        return 0, 0
    characters = frozenset(spelling)
    if spelling[0] in ends and characters <= (_STRUCTURE if eager else _BRACKETS | _QUOTES):
        return 1, -len(spelling)
    if spelling in _EMPTY:
        return 2, 0
    if spelling == b'"':  # opens a text: shorter than a number or a word, or longer
        return (LAST, 0) if plain is _shortest else (3, 0)
    if characters <= _STRUCTURE and spelling[0] in _SEPARATORS and spelling.strip():
        return 4, -len(spelling)
    return plain(spelling)


def _terminators(spelling: bytes) -> tuple[int, int]:
    if frozenset(spelling) <= _TERMINATORS and spelling.strip():
        return 5, -len(spelling)
    return _longest(spelling)


def _longest(spelling: bytes) -> tuple[int, int]:
    if spelling == b"0":
        return 6, 0
    return (7, -len(spelling)) if spelling.isalnum() else (LAST, len(spelling))


def _shortest(spelling: bytes) -> tuple[int, int]:
    return (7, len(spelling)) if spelling.isalpha() else (8, len(spelling))
