"""Plans for a loaded model whose memory has become less or more: which layers move, and where to.

Layers leave the device for RAM, or for the disk where RAM has no room, and come back. Where that is
not enough and the device computes in RAM, there are fewer KV pages. States, the head and the
buffers of a pass stay as they were planned at load. Layers move in a fixed
order, so that two plans differ only in the layers that one of them has more of, and each number of
resident layers is spread over the depth of the model, as in a plan that is made at load.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from engine.kv.page_pool import PAGE
from engine.planning.footprint import Demand
from engine.planning.plan import DEFAULT_SLOTS, DISK_STAGING, SHORTEST_CONTEXT, Plan
from engine.spec import ModelSpec, Tier
from engine.streaming.slots import ring_bytes, ring_slots

_OF_DEVICE = {"device", "total"}  # what resident layers may take too much of
_OF_RAM = {"ram", "total"}


def planned_bytes(plan: Plan) -> tuple[int, int]:
    """Return the bytes that a plan adds on the device and in host memory.

    What driver, libraries and compiled code take whatever is planned is not counted.
    """
    host = plan.host_bytes - plan.memory.host_runtime - plan.memory.code
    return plan.device_bytes - plan.memory.device_runtime, host


@dataclass(frozen=True)
class Room:
    """The most bytes that a plan may take."""

    device: int  # without the device's runtime
    ram: int  # of host memory, without the runtime of the process and what is on the device
    total: int | None = None  # of both, where the device computes in RAM; None: it does not

    def shortage(self, plan: Plan) -> dict[str, int]:
        """Return the bytes that a plan takes too many, by "device", "ram" and "total"."""
        device, host = planned_bytes(plan)
        over = {"device": device - self.device, "ram": host - self.ram}
        if self.total is not None:
            over["total"] = device + host - self.total
        return {kind: nbytes for kind, nbytes in over.items() if nbytes > 0}


class Replanner:
    """A maker of plans for one loaded model.

    Args:
        spec: the model's specification.
        demand: the sizes for which it was planned.
        loaded: the plan by which it was loaded.
    """

    def __init__(self, spec: ModelSpec, demand: Demand, loaded: Plan) -> None:
        self._demand = demand
        self._loaded = loaded = replace(loaded, making_bytes=0)
        own = loaded.memory.has_own_memory
        has_ram_tier = own or spec.stream.simulate_gbps is not None
        self._has_ram = spec.stream.tier == "ram" or (has_ram_tier and spec.stream.tier != "disk")
        self._slots = loaded.slots or min(DEFAULT_SLOTS, len(loaded.tiers))
        # Copies of a draft that consists of the target's own units have never been made.
        self._has_copies = not demand.shares_resident or loaded.draft_bytes > 0
        order = _spread_order(len(demand.layers))
        self._order = [n for n in order if self._is_in(n, "resident")]  # the last leaves first
        self._ram_order = [*(n for n in order if self._is_in(n, "ram")), *self._order]

    @property
    def loaded(self) -> Plan:
        """The plan by which the model was loaded."""
        return self._loaded

    @property
    def link_bytes(self) -> Sequence[int]:
        """The bytes of each unit as it travels."""
        return self._demand.link_bytes

    def placed_bytes(self, plan: Plan) -> list[int]:
        """Return the bytes of each unit where it is kept."""
        return self._demand.placed_bytes(plan.tiers)

    def next_plan(self, now: Plan, hold: Room, take: Room) -> Plan:
        """Return the plan to change to, or `now` if nothing should move.

        Units leave only when `now` does not fit `hold` any more, and then until the plan fits
        `take`, which is less; up to that much, units come back. So figures that vary a little
        move nothing.

        Args:
            now: the plan in force.
            hold: what units that are in memory may take.
            take: what they may take after a move.
        """
        best = self.fit(take)
        if hold.shortage(now):
            return best
        counts = [
            (p.tiers.count("resident"), -p.tiers.count("disk"), p.num_pages) for p in (best, now)
        ]
        has_more = all(ours >= theirs for ours, theirs in zip(*counts, strict=True))
        return best if has_more and counts[0] != counts[1] else now

    def fit(self, room: Room) -> Plan:
        """Return the plan with the most resident layers that fit, and then the most in RAM.

        Layers are where they were at the load, or in memory that is slower. Where too little is
        left of a kind of memory, no layers are in it, and then there are fewer KV pages.
        """
        count, waiting = len(self._order), 0
        while count and room.shortage(self._with_tiers(self._tiers(count, 0))).keys() & _OF_DEVICE:
            count -= 1
        if self._has_ram:
            waiting = len(self._ram_order) + 1
        while room.shortage(self._with_tiers(self._tiers(count, waiting))).keys() & _OF_RAM:
            if not waiting:
                break
            waiting -= 1
        plan = self._with_tiers(self._tiers(count, waiting))
        over = room.shortage(plan)
        return self._with_pages(plan, max(over.get(kind, 0) for kind in _OF_DEVICE))

    def with_tiers(self, tiers: Sequence[Tier], num_pages: int) -> Plan:
        """Return a plan that describes these tiers of the units and this number of KV pages."""
        plan = self._with_tiers(tuple(tiers))
        page = self._demand.host_page_bytes
        lost = (plan.num_pages - num_pages) * page
        return replace(plan, num_pages=num_pages, kv_bytes=plan.kv_bytes - lost)

    def _with_pages(self, plan: Plan, over: int) -> Plan:
        """Return a plan with so few KV pages that `over` bytes less are taken, if possible.

        Only where the device computes in RAM, memory of single pages can be given back.
        """
        if plan.memory.has_own_memory or not over:
            return plan
        left = plan.num_pages - -(-over // self._demand.host_page_bytes)
        least = min(SHORTEST_CONTEXT // PAGE, plan.num_pages)
        return self.with_tiers(plan.tiers, max(left, least))

    def _is_in(self, number: int, tier: Tier) -> bool:
        return all(self._loaded.tiers[unit] == tier for unit in self._units([number]))

    def _units(self, numbers: Iterable[int]) -> list[int]:
        return [unit for number in numbers for unit in self._demand.layers[number].units]

    def _tiers(self, resident: int, waiting: int) -> tuple[Tier, ...]:
        """Return the tier of each unit with `resident` layers on the device and `waiting` in RAM.

        The head counts as the first of those in RAM, if it was there.
        """
        kept, head = self._order[:resident], len(self._loaded.tiers) - 1
        away = [number for number in self._ram_order if number not in kept]
        tiers: list[Tier] = ["disk"] * (head + 1)
        for unit in self._units(kept):
            tiers[unit] = "resident"
        if self._loaded.tiers[head] == "resident":
            tiers[head] = "resident"
        elif waiting and self._loaded.tiers[head] == "ram":
            tiers[head] = "ram"
        for unit in self._units(away[: max(waiting - 1, 0)]):
            tiers[unit] = "ram"
        return tuple(tiers)

    def _with_tiers(self, tiers: tuple[Tier, ...]) -> Plan:
        demand, loaded, sizes = self._demand, self._loaded, self._demand.unit_bytes
        resident = {unit for unit, tier in enumerate(tiers) if tier == "resident"}
        streamed = set(range(len(tiers))) - resident
        ring = ring_slots(sizes, demand.layers, streamed, self._slots).values() if streamed else ()
        own = loaded.memory.has_own_memory
        draft = loaded.draft_bytes
        if demand.is_self_drafted and self._has_copies:
            spared = sum(sizes[unit] - demand.net_bytes(unit) for unit in resident)
            draft = demand.draft.weight_bytes - spared
        staging = DISK_STAGING if own and "disk" in tiers else 0
        return replace(
            loaded,
            tiers=tiers,
            slots=self._slots if streamed else 0,
            ring_slots=sum(kind.count for kind in ring),
            resident_bytes=sum(sizes[unit] for unit in resident),
            ring_bytes=ring_bytes(ring, demand.largest_coded(resident), is_gpu=own),
            draft_bytes=draft,
            ram_unit_bytes=demand.travelling_bytes(u for u, t in enumerate(tiers) if t == "ram"),
            staging_bytes=max(loaded.staging_bytes, staging),
        )


def _spread_order(count: int) -> list[int]:
    """Return the numbers below `count` in an order whose every beginning is spread evenly.

    It is that of their binary digits in reverse (van der Corput).
    """
    width = max(count - 1, 1).bit_length()
    return sorted(range(count), key=lambda number: int(f"{number:0{width}b}"[::-1], 2))
