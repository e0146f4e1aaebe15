"""What a replica reports about itself, and what is known of its pages by differences."""

from collections.abc import Collection
from dataclasses import dataclass
from hashlib import blake2b, sha256
from typing import Annotated

from pydantic import Field

from cluster.page_hashes import HASH_BYTES, PageHash

# Numbers of another server, of which sums are made that have to stay numbers.
Amount = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=1 << 48)]
PageName = bytes  # a page hash, or one that only the holder of a key can compute


@dataclass(frozen=True)
class Load:
    """The work that a replica has, and how fast it is.

    Args:
        prompt_seconds: the time that the prompts take which it has not computed yet.
        sequences: sequences that run, or wait for their turn.
        max_sequences: the most of them that run at once.
        turn_seconds: the time between the ends of two sequences, while all places are taken.
        free_pages: KV pages that a new sequence could get, those of unused prefixes included.
        pass_seconds: the shortest time of a pass, in which all weights travel.
        row_seconds: the time that each row of a prompt takes beyond that.
        longest: the most tokens of a prompt and its answer.
    """

    prompt_seconds: Amount
    sequences: Count
    max_sequences: Count
    turn_seconds: Amount
    free_pages: Count
    pass_seconds: Amount
    row_seconds: Amount
    longest: Count


@dataclass(frozen=True)
class Figures:
    """What a replica has done since it has loaded its model, for people and metrics.

    Args:
        tokens: that its passes have emitted.
        tokens_per_second: in the last seconds.
        kv_pages_used: those that sequences hold.
    """

    passes: Count = 0
    tokens: Count = 0
    tokens_per_second: Amount = 0.0
    kv_pages: Count = 0
    kv_pages_used: Count = 0


def naming_key(secret: str) -> bytes:
    """Return the key by which the pages are named for the holder of an API key; "" has none."""
    return sha256(secret.encode()).digest() if secret else b""


def page_name(page: PageHash, key: bytes) -> PageName:
    """Return the name of a page under a key.

    Who does not have the key cannot compute the name of a guessed text. Without a key the name is
    the hash itself.
    """
    return blake2b(page, digest_size=HASH_BYTES, key=key).digest() if key else page


@dataclass(frozen=True)
class PageChange:
    """How the pages of a replica have changed since its earlier report.

    Args:
        added: names of pages that it holds now.
        dropped: names of pages that it does not hold any more.
        is_whole: whether `added` are all of its pages, and what was known before is void.
    """

    added: Collection[PageName] = ()
    dropped: Collection[PageName] = ()
    is_whole: bool = False

    def apply(self, known: set[PageName]) -> None:
        """Change the set of the pages that a replica is known to hold."""
        if self.is_whole:
            known.clear()
        known.difference_update(self.dropped)
        known.update(self.added)
