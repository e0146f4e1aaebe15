"""The slots of the ring: how many there are of each size.

A layer that is divided into parts uses them together, so the ring has room for one whole layer and
for some units that are copied ahead of it. A part has slots of its own, which are no larger than
that part of any layer.
"""

from collections import Counter
from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass

from engine.streaming.coded import CODED_STAGING
from engine.streaming.link import Link, Slot
from engine.weights.layout import LayerUnits


@dataclass(frozen=True)
class SlotKind:
    """The slots that the units of one place share (`unit_places`)."""

    count: int
    nbytes: int  # of each slot


def unit_places(layers: Sequence[LayerUnits], num_units: int) -> list[int]:
    """Return the place of each unit among the parts of its layer.

    It is 0 for slices of experts and for the head, which are used alone.
    """
    places = [0] * num_units
    for layer in layers:
        for place, unit in enumerate(layer.parts):
            places[unit] = place
    return places


def ring_slots(
    unit_bytes: Sequence[int],
    layers: Sequence[LayerUnits],
    streamed: Set[int],
    slots: int,
) -> dict[int, SlotKind]:
    """Return the slots for the streamed units, by the units' place.

    Args:
        unit_bytes: the size of each unit.
        layers: the units of each layer.
        streamed: the units that are not resident.
        slots: one for the units in use, and one for each unit that is copied ahead of them.
    """
    sizes: dict[int, int] = {}
    for unit, place in enumerate(unit_places(layers, len(unit_bytes))):
        if unit in streamed:
            sizes[place] = max(sizes.get(place, 0), unit_bytes[unit])
    away = [layer for layer in layers if any(unit in streamed for unit in layer.parts)]
    divisions = {layer.num_parts for layer in away} or {1}
    counts = Counter[int]()
    for num_parts in divisions:
        ahead = Counter(number % num_parts for number in range(slots - 1))
        counts |= Counter({place: 1 + ahead[place] for place in range(num_parts)})
    return {place: SlotKind(counts[place], nbytes) for place, nbytes in sizes.items()}


def allocate_slots(
    link: Link,
    unit_bytes: Sequence[int],
    layers: Sequence[LayerUnits],
    streamed: Sequence[int],
    slots: int,
) -> dict[int, list[Slot]]:
    """Return the slots of a ring by place, as `ring_slots` has them, but no more than units.

    Raises `ModelError` where the device has too little memory.
    """
    places = unit_places(layers, len(unit_bytes))
    needed = Counter(places[unit] for unit in streamed)
    kinds = ring_slots(unit_bytes, layers, set(streamed), slots)
    return {
        place: [link.slot(kind.nbytes) for _ in range(min(kind.count, needed[place]))]
        for place, kind in kinds.items()
    }


def ring_bytes(
    kinds: Collection[SlotKind], largest_coded: int | None = None, *, is_gpu: bool = False
) -> int:
    """Return the bytes of a ring with these slots.

    Args:
        largest_coded: the bytes of the largest unit that travels coded; None: none does. A GPU has
            buffers from which units are decoded into the slots. On a CPU only the units in use, one
            of each kind, have memory for plain weights.
        is_gpu: whether a GPU decodes units.
    """
    plain = sum(kind.count * kind.nbytes for kind in kinds)
    if largest_coded is None or not kinds:
        return plain
    if is_gpu:
        return plain + CODED_STAGING * largest_coded
    buffers = num_coded_buffers(sum(kind.count for kind in kinds))
    return buffers * largest_coded + sum(kind.nbytes for kind in kinds)


def num_coded_buffers(num_slots: int) -> int:
    """Return how many staging buffers for coded units a ring of some slots has.

    There is one for each slot, but for that of a unit in use, which has been decoded.
    """
    return max(num_slots - 1, 1)
