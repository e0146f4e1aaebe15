"""The memory that loading takes for a while: to make what the cache lacks, and to read copies."""

from collections.abc import Set

from engine.planning.footprint import Demand

COPIES, CODES = "4-bit copies", "coded weights"  # what may have to be made


def must_make(demand: Demand, resident: Set[int]) -> tuple[str, ...]:
    """Return what a load has to make because the cache lacks it: of `COPIES` and `CODES`.

    Args:
        resident: the units that are resident.
    """
    copies = _uses_copies(demand, resident) and not demand.cached.copies
    codes = _uses_codes(demand, resident) and not demand.cached.codes
    return (COPIES,) * copies + (CODES,) * codes


def made_bytes(demand: Demand, resident: Set[int]) -> int:
    """Return the most host memory that a load takes for a while, beside what it keeps.

    The ring, the activations of a pass and units in RAM take theirs later.
    """
    makes, copies = must_make(demand, resident), 0
    if _uses_copies(demand, resident):
        own = demand.draft
        copies = own.making_bytes if COPIES in makes else own.reading_bytes
    return max(copies, coding_bytes(demand) if CODES in makes else 0)


def coding_bytes(demand: Demand) -> int:
    """Return the most host memory that coding a unit takes.

    It is a bound: the unit, the 4-bit copies of its layer, and 1.5 times as much as the unit. The
    codes of all weights are kept until they take the place of the unit. No code of a copy has more
    than 0.75 times the bytes of its weight, and its parts are there beside it while they are
    joined.
    """
    if not demand.coded_bytes:
        return 0
    copies = demand.draft.substitute_bytes or [0] * len(demand.unit_bytes)
    layers = [sum(copies[unit] for unit in layer.units) for layer in demand.layers]
    return 5 * max(demand.unit_bytes) // 2 + max([*layers, copies[-1]])


def _uses_copies(demand: Demand, resident: Set[int]) -> bool:
    """Return whether the draft has something to make: not if it is the target itself."""
    return demand.draft.making_bytes > 0 and demand.draft_bytes(resident) > 0


def _uses_codes(demand: Demand, resident: Set[int]) -> bool:
    return bool(demand.coded_bytes) and len(resident) < len(demand.unit_bytes)
