"""The messages about weights that move while a model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from engine.spec import Tier

Reason = Literal["device", "ram", "freed"]
Counts = tuple[tuple[str, int], ...]  # a number for each tier that has units


@dataclass(frozen=True)
class LimitMemory:
    """A message that sets limits of memory, in bytes, until another such message changes them.

    The limits of the model's file hold too. Units of weights move until the limits are kept. None
    removes a limit.
    """

    device: int | None = None  # as `memory.device`
    ram: int | None = None  # as `memory.ram`


@dataclass(frozen=True)
class Replanned:
    """A notice that units of weights have moved."""

    reason: Reason  # why: there is too little memory of this kind, or there is more again
    plan: str  # this and the next two are the fields of `ModelInfo` as they are now
    tiers: Counts
    tier_bytes: Counts


def sums_by_tier(tiers: Sequence[Tier], amounts: Sequence[int]) -> Counts:
    """Return the sums of units' amounts in each tier, in the order of the tiers' names."""
    pairs = [*zip(tiers, amounts, strict=True)]
    return tuple((own, sum(n for tier, n in pairs if tier == own)) for own in sorted(set(tiers)))
