"""The order in which tokens are tried when a text has to be ended soon.

The order is a heuristic that looks only at the spelling of a token. Closing brackets and quotes end
an open structure, separators lead to the next required part, and opening brackets make a text
longer. Inside a quoted string, brackets end nothing.
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

LAST_RANK = 99


class TokenRanks:
    """An order of the tokens of a vocabulary.

    Args:
        spellings: the bytes of each token; empty for special tokens. These go first, since a
            grammar allows them only where it names them.
        plain: returns the rank of a token that ends nothing, by its spelling; lower ranks go first.
        eager: whether tokens that end something and also begin the next part go before tokens that
            only end something. This is better where something has to follow.
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
        """Return the token of a mask [V] that is first in the order."""
        in_text = (mask & self._brackets).any() and (mask & self._letters).any()
        order = self._inside if in_text else self._outside
        return int(order[mask[order].argmax()])


def token_ranks(spellings: Sequence[bytes]) -> tuple[TokenRanks, ...]:
    """Return several orders: where one of them never reaches the end, another one may."""
    kinds = ((_terminators, False), (_longest, True), (_shortest, True))
    return tuple(TokenRanks(spellings, plain, eager) for plain, eager in kinds)


def _rank(
    ends: frozenset[int],
    plain: Callable[[bytes], tuple[int, int]],
    eager: bool,
    spelling: bytes,
) -> tuple[int, int]:
    """Return the rank of a token. A token that begins with a byte of `ends` ends something."""
    if not spelling:
        return 0, 0
    characters = frozenset(spelling)
    if spelling[0] in ends and characters <= (_STRUCTURE if eager else _BRACKETS | _QUOTES):
        return 1, -len(spelling)
    if spelling in _EMPTY:
        return 2, 0
    if spelling == b'"':  # an opening quote: a string may be shorter than a number, or longer
        return (LAST_RANK, 0) if plain is _shortest else (3, 0)
    if characters <= _STRUCTURE and spelling[0] in _SEPARATORS and spelling.strip():
        return 4, -len(spelling)
    return plain(spelling)


def _terminators(spelling: bytes) -> tuple[int, int]:
    """Rank tokens of sentence ends first, then as `_longest`."""
    if frozenset(spelling) <= _TERMINATORS and spelling.strip():
        return 5, -len(spelling)
    return _longest(spelling)


def _longest(spelling: bytes) -> tuple[int, int]:
    """Rank a zero first, then long words and numbers before short ones, then other tokens."""
    if spelling == b"0":
        return 6, 0
    return (7, -len(spelling)) if spelling.isalnum() else (LAST_RANK, len(spelling))


def _shortest(spelling: bytes) -> tuple[int, int]:
    """Rank words before other tokens, and short ones before long ones."""
    return (7, len(spelling)) if spelling.isalpha() else (8, len(spelling))
