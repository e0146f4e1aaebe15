"""The blocks of KV on disk: a page, or the states after a prefix, named by all tokens up to it.

The hash of a prefix is chained: it follows from the hash of the tokens before its last page and
from the tokens of that page. So a block is found by the tokens of a prompt alone, and two processes
that store the same prefix write the same file.
"""

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Literal, get_args

Kind = Literal["page", "state"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_NAME = re.compile(r"([0-9a-f]{32})-([0-9a-f]{32})-(\d{1,9})-(\d{1,2})\.(page|state)")


def root_hash(salt: int) -> bytes:
    """Return the hash of no tokens. Sequences with different salts share no block."""
    return _hash(b"", [salt], "page")


def prefix_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Return the hash of a prefix, given that of the tokens before its last page."""
    return _hash(parent, tokens, "page")


def _hash(parent: bytes, tokens: Sequence[int], kind: Kind) -> bytes:
    numbers = array("q", tokens).tobytes()
    return blake2b(parent + numbers, digest_size=16, person=kind.encode()).digest()


@dataclass(frozen=True)
class Block:
    """The KV of a page, or the states of recurrent layers, in one file.

    Args:
        kind: which of the two.
        parent: the hash of all tokens before the page, or before the `tokens` of a state.
        tokens: the tokens of the page; for a state, those after the last full page of its prefix.
        number: the number of full pages before them.
    """

    kind: Kind
    parent: bytes
    tokens: tuple[int, ...]
    number: int

    @cached_property
    def hash(self) -> bytes:
        """The hash by which the block is found. That of a page is the hash of its prefix."""
        return _hash(self.parent, self.tokens, self.kind)

    @property
    def name(self) -> "BlockName":
        """The name of its file."""
        return BlockName(self.kind, self.parent, self.hash, self.number, len(self.tokens))


@dataclass(frozen=True, slots=True)
class BlockName:
    """What the name of a file says about its block; `count` is the number of its tokens."""

    kind: Kind
    parent: bytes
    hash: bytes
    number: int
    count: int

    def __str__(self) -> str:
        places = f"{self.number}-{self.count}"
        return f"{self.parent.hex()}-{self.hash.hex()}-{places}.{self.kind}"

    @classmethod
    def parse(cls, name: str) -> "BlockName | None":
        """Return what a file's name says; None if the file holds no block."""
        if (found := _NAME.fullmatch(name)) is None:
            return None
        parent, own, number, count, kind = found.groups()
        kinds: dict[str, Kind] = dict(zip(KINDS, KINDS, strict=True))
        return cls(kinds[kind], bytes.fromhex(parent), bytes.fromhex(own), int(number), int(count))
