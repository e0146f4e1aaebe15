"""Hashes that name full KV pages by their tokens and by all tokens before them.

Equal beginnings of two texts have equal hashes, on every machine, so that servers can tell each
other which pages they hold. Two pages with one hash would cost time and change no answer: a page is
used only after its tokens were compared.
"""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

PAGE_TOKENS = 64  # `engine.kv.page_pool.PAGE`, whose file needs torch
HASH_BYTES = 8
ROOT = b""  # the parent of a first page

PageHash = bytes


def page_hash(parent: PageHash, tokens: Sequence[int]) -> PageHash:
    """Return the hash of a page, given that of the page before it, or `ROOT`."""
    return blake2b(parent + array("q", tokens).tobytes(), digest_size=HASH_BYTES).digest()


def page_hashes(tokens: Sequence[int]) -> list[PageHash]:
    """Return the hashes of the full pages of a text, in order."""
    hashes: list[PageHash] = []
    parent = ROOT
    for first in range(0, len(tokens) - PAGE_TOKENS + 1, PAGE_TOKENS):
        parent = page_hash(parent, tokens[first : first + PAGE_TOKENS])
        hashes.append(parent)
    return hashes
