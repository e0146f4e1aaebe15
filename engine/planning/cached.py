"""What a load finds in the cache of packed models, and so does not have to make."""

from collections.abc import Callable
from dataclasses import dataclass

from engine.drafting.method import DraftNeeds
from engine.streaming.coded import code_identity


@dataclass(frozen=True)
class Cached:
    """What the cache has for a model and its draft."""

    copies: bool = False  # all that is made for the draft
    codes: bool = False  # the weights in their lossless code


def find_cached(
    find: Callable[[str], str | None], needs: DraftNeeds, *, is_coded_by_copies: bool
) -> Cached:
    """Return what the cache has.

    Args:
        find: returns the digest of a complete entry, by what names it beside the target's weights;
            None if there is none.
        is_coded_by_copies: whether coded weights need the copies of the draft.
    """
    digests = [find(entry) for entry in needs.cache_entries]
    copies = digests[-1] if digests and is_coded_by_copies else None
    has_code = copies is not None or not is_coded_by_copies
    return Cached(
        copies=all(digest is not None for digest in digests),
        codes=has_code and find(code_identity(copies)) is not None,
    )
