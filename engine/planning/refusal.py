"""The error for a model that does not fit, which names the limit that is too low."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from engine.errors import ModelError
from engine.planning.footprint import size_text

MORE_DEVICE = (
    "Raise it, lower context_length or stream.slots in the model's file, or choose a smaller draft."
)


@dataclass(frozen=True)
class Limit:
    """A limit of memory that a plan must keep."""

    key: Literal["memory.device", "memory.ram"]  # of the model's file
    is_set: bool  # whether the model's file sets it; otherwise it is what the machine has
    is_ram: bool  # whether it is about RAM, in which a device without memory of its own computes


class DoesNotFit(ModelError):
    """The model cannot be served within the limits; the message says how much is missing.

    Args:
        limit: the limit that is too low, whose key begins the message.
        problem: the rest of the message.
    """

    def __init__(self, limit: Limit, problem: str) -> None:
        super().__init__(f"{limit.key}: {problem}")
        self.limit = limit
        self.problem = problem


def too_little(has: int, missing: int, needed: Mapping[str, int]) -> str:
    """Return how much memory is missing, and for what it is needed, without a full stop.

    Args:
        has: bytes that can be used.
        missing: bytes beyond them.
        needed: the bytes of each part; parts of no bytes are left out.
    """
    parts = ", ".join(f"{what} {size_text(nbytes)}" for what, nbytes in needed.items() if nbytes)
    return f"{size_text(max(has, 0))} is {size_text(missing)} too little. Needed: {parts}"


def once(made: Sequence[str]) -> str:
    """Return a sentence, after a space, about what has to be made; "" if there is nothing.

    Args:
        made: what a load has to make, which the cache has afterwards.
    """
    if not made:
        return ""
    return (
        f" The cache does not have the {' and '.join(made)}, which this start has to make: it is "
        "enough to load the model once with more memory. Later starts find them in the cache, "
        "unless memory.cache is too low to keep them."
    )
