"""Suggestions for words that are not known but resemble one that is."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a sentence with the most similar known words, after a blank; "" if there is none."""
    found = get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(found)}?" if found else ""
