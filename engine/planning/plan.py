"""The plan: where units, KV pages and the draft are kept, within the memory there is.

The device's memory goes first to what everything needs (activations, ring, the draft), then to KV
pages, then to resident units, spread evenly through the depth so that the link is never idle for
long. Host memory holds the units that wait in RAM and, in a part of the rest, idle KV pages.
"""

from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace

from engine.errors import ModelError
from engine.kv.page_pool import PAGE
from engine.planning.footprint import Demand as Demand, activation_bytes, pass_rows, size_text
from engine.spec import ModelSpec, Tier
from engine.streaming.disk import PIECE_BYTES, READERS
from engine.streaming.page_store import STAGING_BYTES
from engine.weights.layout import LayerUnits

DEFAULT_SEQUENCES = 8
DEFAULT_SLOTS = 3  # one in use, one ready, one on its way
FEWEST_SLOTS = 2  # one in use, one on its way
KV_SHARE = 0.125  # of the device limit, at most, unless everything fits; idle KV has the host's
HOST_KV_SHARE = 0.25  # of the RAM that weights leave, for idle pages
HOST_CONTEXTS = 2  # of idle pages at most, for each sequence
DISK_STAGING = READERS * 2 * PIECE_BYTES  # each thread fills one buffer while one drains
SEQUENCE_PAGES = 2  # of a sequence at least: its tokens, and a tree that shrank for lack of pages
SHORTEST_CONTEXT = 256  # tokens of KV below which serving makes no sense


class DoesNotFit(ModelError):
    """The model cannot be served within the limits; the message says how much is missing."""


@dataclass(frozen=True)
class Memory:
    """The memory of a machine, in bytes; `device` is a part of `ram` unless it has its own."""

    device: int
    ram: int
    has_own_memory: bool  # the device's, beside the RAM
    device_runtime: int = 0  # what the driver and the libraries hold of the device; not in `device`
    host_runtime: int = 0  # the process before it holds any weights; not in `ram`


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The decision; sizes in bytes."""

    tiers: tuple[Tier, ...]
    slots: int
    num_pages: int
    max_sequences: int
    max_rows: int
    resident_bytes: int
    ring_bytes: int
    kv_bytes: int
    draft_bytes: int
    activation_bytes: int
    other_bytes: int  # norms; expanded 4-bit weights
    host_pages: int = 0  # KV pages in host memory, for what is idle
    host_kv_bytes: int = 0
    slab_bytes: int = 0  # units that wait in RAM
    staging_bytes: int = 0  # between disk and device
    embedding_bytes: int  # mapped from the checkpoint
    making_bytes: int  # more than the rest that loading takes for a while
    memory: Memory  # what it was made for

    @property
    def device_bytes(self) -> int:
        """Return what the device holds at most, its runtime included."""
        taken = self.resident_bytes + self.ring_bytes + self.kv_bytes + self.draft_bytes
        return taken + self.activation_bytes + self.other_bytes + self.memory.device_runtime

    @property
    def host_bytes(self) -> int:
        """Return what the process holds at most in host memory, its runtime included.

        If the device has no memory of its own, `device_bytes` come on top.
        """
        taken = self.slab_bytes + self.staging_bytes + self.host_kv_bytes + self.embedding_bytes
        return taken + self.making_bytes + self.memory.host_runtime

    def __str__(self) -> str:
        resident = self.tiers.count("resident")
        away = sorted({tier for tier in self.tiers if tier != "resident"})
        parts = [f"{resident} of {len(self.tiers)} units resident"]
        if resident:
            parts[0] += f" ({size_text(self.resident_bytes)})"
        if away:
            parts.append(f"{len(self.tiers) - resident} streamed from {', '.join(away)}")
            parts.append(f"ring of {self.slots} slots ({size_text(self.ring_bytes)})")
        parts.append(f"KV of {self.num_pages * PAGE} tokens ({size_text(self.kv_bytes)})")
        if self.host_pages:
            parts.append(
                f"idle KV of {self.host_pages * PAGE} tokens ({size_text(self.host_kv_bytes)})"
            )
        if self.draft_bytes:
            parts.append(f"draft {size_text(self.draft_bytes)}")
        return ", ".join(parts)


def make_plan(spec: ModelSpec, demand: Demand, memory: Memory) -> Plan:
    """Decide what is kept where. Raises `DoesNotFit` that says how much is missing."""
    for most_pages in _most_pages(spec, demand, memory):
        with suppress(DoesNotFit):
            plan = _decide(spec, demand, memory, most_pages)
            if set(plan.tiers) == {"resident"}:
                return plan
            if plan.num_pages * PAGE >= min(demand.context_length, most_pages * PAGE):
                return plan
    return _decide(spec, demand, memory, _fewest_pages(demand))


def _most_pages(spec: ModelSpec, demand: Demand, memory: Memory) -> Iterator[int]:
    """Yield limits of the KV pages to try, in descending order.

    Attention over a long context takes memory too, and no sequence will be longer than the KV there
    is: so a lower limit leaves more for weights.
    """
    yield _wanted_pages(demand, spec.max_sequences or DEFAULT_SEQUENCES)
    pages = int(device_limit(spec, memory) * KV_SHARE) // demand.page_bytes
    while pages > _fewest_pages(demand):
        yield pages
        pages //= 2


def _decide(spec: ModelSpec, demand: Demand, memory: Memory, most_pages: int) -> Plan:
    """Return the plan with at most `most_pages` KV pages."""
    max_sequences = spec.max_sequences or DEFAULT_SEQUENCES
    limit = device_limit(spec, memory)
    wanted_pages = min(_wanted_pages(demand, max_sequences), most_pages)
    rows = min(pass_rows(demand, max_sequences), most_pages * PAGE)
    fixed = _Fixed(
        activation_bytes(demand, rows, wanted_pages * PAGE),
        demand.other_device_bytes + demand.expanded_bytes + _copying_bytes(demand, memory),
    )
    page_bytes, units = demand.page_bytes, demand.unit_bytes
    all_units = set(range(len(units)))

    streams = spec.stream.tier not in (None, "resident") or spec.stream.resident is not None
    everything = fixed.total + sum(units) + demand.draft_bytes(all_units)
    fits = everything + page_bytes * wanted_pages <= limit
    if spec.stream.tier == "resident" or (not streams and fits):
        return _plan(spec, demand, memory, limit, fixed, all_units, 0, wanted_pages)

    room = limit - fixed.total - demand.draft_weight_bytes - page_bytes * _fewest_pages(demand)
    slots = spec.stream.slots or _slots(demand, room)
    resident = _large_head(units, slots)
    pages = min(wanted_pages, max(int(limit * KV_SHARE) // page_bytes, _fewest_pages(demand)))
    taken = _ring_bytes(units, resident, slots) + sum(units[i] for i in resident)
    taken += demand.draft_bytes(resident) + pages * page_bytes
    if spec.stream.resident is not None:
        resident |= _spread(demand.layers, min(spec.stream.resident, len(demand.layers)))
    elif spec.stream.tier is None:  # else the user asked for all of it to stream
        resident |= _residents(demand, limit - fixed.total - taken)
    return _plan(spec, demand, memory, limit, fixed, resident, slots, wanted_pages)


def device_limit(spec: ModelSpec, memory: Memory) -> int:
    """Return the bytes the plan may use of the device: what was asked for, if there is as much.

    In a device's own memory, the runtime's share is part of what was asked for. In RAM, more may be
    asked for than is taken by default.
    """
    if spec.memory.device is None:
        return memory.device
    if not memory.has_own_memory:
        return min(spec.memory.device, memory.ram)
    return min(spec.memory.device - memory.device_runtime, memory.device)


@dataclass(frozen=True)
class _Fixed:
    """What the device must hold, whichever units are resident; in bytes."""

    activations: int
    other: int

    @property
    def total(self) -> int:
        return self.activations + self.other


def _plan(
    spec: ModelSpec,
    demand: Demand,
    memory: Memory,
    limit: int,
    fixed: _Fixed,
    resident: set[int],
    slots: int,
    wanted_pages: int,
) -> Plan:
    """Give the rest of the device to KV pages, then plan the host's memory."""
    units = demand.unit_bytes
    resident_bytes = sum(units[i] for i in resident)
    ring = _ring_bytes(units, resident, slots)
    draft = demand.draft_bytes(resident)
    left = limit - fixed.total - draft - ring - resident_bytes
    pages = min(wanted_pages, left // demand.page_bytes)
    most = spec.max_sequences or DEFAULT_SEQUENCES
    if spec.max_sequences is None:
        most = min(most, max(pages // SEQUENCE_PAGES, 1))
    on_device = Plan(
        tiers=tuple("resident" if i in resident else "disk" for i in range(len(units))),
        slots=slots,
        num_pages=pages,
        max_sequences=most,
        max_rows=min(pass_rows(demand, most), pages * PAGE),
        resident_bytes=resident_bytes,
        ring_bytes=ring,
        kv_bytes=pages * demand.page_bytes,
        draft_bytes=draft,
        activation_bytes=fixed.activations,
        other_bytes=fixed.other,
        embedding_bytes=demand.embedding_bytes,
        making_bytes=_making_bytes(demand, memory, fixed.activations),
        memory=memory,
    )
    if pages < _fewest_pages(demand):
        raise DoesNotFit(_refusal(demand, limit, on_device, left))
    return _with_host(spec, demand, memory, on_device)


def _refusal(demand: Demand, limit: int, plan: Plan, left: int) -> str:
    """Say what the plan needs of the device, whose KV has only `left` bytes."""
    fewest = _fewest_pages(demand)
    missing = fewest * demand.page_bytes - left
    return (
        f"memory.device: {size_text(limit)} is {size_text(missing)} too little. Needed: "
        f"activations {size_text(plan.activation_bytes + plan.other_bytes)}, "
        f"draft {size_text(plan.draft_bytes)}, "
        f"ring of {plan.slots} slots {size_text(plan.ring_bytes)}, "
        f"resident units {size_text(plan.resident_bytes)}, KV of at least "
        f"{fewest * PAGE} tokens {size_text(fewest * demand.page_bytes)}. "
        "Raise memory.device, lower context_length or stream.slots, or choose a smaller draft."
    )


def _with_host(spec: ModelSpec, demand: Demand, memory: Memory, plan: Plan) -> Plan:
    """Return the plan with what host memory holds: streamed units, staging and idle pages."""
    room = memory.ram if spec.memory.ram is None else min(spec.memory.ram, memory.ram)
    if not memory.has_own_memory:  # the device's share and the host's are one memory
        room = min(room, memory.ram - plan.device_bytes)
        if room < 0:
            raise DoesNotFit(
                f"memory.device: {size_text(plan.device_bytes)} are planned, "
                f"{size_text(-room)} more than the RAM there is. Lower memory.device."
            )
    room = max(room - plan.making_bytes, 0)
    tiers = _tiers(spec, demand, memory, plan, room)
    units = demand.unit_bytes
    slabs = sum(units[i] for i, tier in enumerate(tiers) if tier == "ram")
    staging = _staging_bytes(units, tiers, memory)
    pages = _host_pages(spec, demand, memory, plan, room - slabs - staging)
    return replace(
        plan,
        tiers=tiers,
        slab_bytes=slabs,
        staging_bytes=staging,
        host_pages=pages,
        host_kv_bytes=pages * demand.host_page_bytes,
    )


def _tiers(
    spec: ModelSpec, demand: Demand, memory: Memory, plan: Plan, room: int
) -> tuple[Tier, ...]:
    """Return where each unit waits that does not stay on the device."""
    units = demand.unit_bytes
    away = [i for i, tier in enumerate(plan.tiers) if tier != "resident"]
    total = sum(units[i] for i in away) + _loading_bytes(units, plan.tiers, memory)
    if spec.stream.tier == "ram" and total > room:
        raise DoesNotFit(
            f"memory.ram: {size_text(room)} is {size_text(total - room)} too little for the "
            "streamed units. Raise it, or set stream.tier to disk."
        )
    asked = spec.stream.tier
    if asked == "disk" or (
        # Here the device computes in RAM: what does not fit there is on disk.
        asked != "ram" and not memory.has_own_memory and spec.stream.simulate_gbps is None
    ):
        return plan.tiers
    waiting = set(away)
    if total > room:
        waiting = _most_that_fit(demand, away, room - DISK_STAGING)
    return tuple("ram" if i in waiting else tier for i, tier in enumerate(plan.tiers))


def _most_that_fit(demand: Demand, away: Sequence[int], room: int) -> set[int]:
    """Return the units of as many layers as fit, spread evenly among the streamed ones."""
    units, travels = demand.unit_bytes, set(away)
    layers = [layer for layer in demand.layers if travels.issuperset(layer.units)]
    for count in range(len(layers), 0, -1):
        chosen = _spread(layers, count)
        if sum(units[i] for i in chosen) <= room:
            return chosen
    return set()


def _staging_bytes(units: Sequence[int], tiers: Sequence[Tier], memory: Memory) -> int:
    """Return the bytes of pinned buffers on the way to the device.

    They serve the disk tier, whose packed units come in pieces, else the loading of residents.
    """
    if memory.has_own_memory and "disk" in tiers:
        return DISK_STAGING
    return _loading_bytes(units, tiers, memory)


def _loading_bytes(units: Sequence[int], tiers: Sequence[Tier], memory: Memory) -> int:
    """Return the bytes of pinned buffers for whole units read from the checkpoint."""
    loaded = [units[i] for i, tier in enumerate(tiers) if tier == "resident"]
    return min(READERS, len(loaded)) * max(loaded, default=0) if memory.has_own_memory else 0


def _copying_bytes(demand: Demand, memory: Memory) -> int:
    """Return the device memory that idle KV pages pass through on their way to the host."""
    return max(STAGING_BYTES, demand.host_page_bytes) if memory.has_own_memory else 0


def _host_pages(spec: ModelSpec, demand: Demand, memory: Memory, plan: Plan, room: int) -> int:
    """Return the number of host pages for idle KV: a bounded share of `room`.

    Where the device computes in RAM there is nothing to gain, unless `memory.ram` reserves RAM.
    """
    if not memory.has_own_memory and spec.memory.ram is None:
        return 0
    most = HOST_CONTEXTS * plan.max_sequences * -(-demand.context_length // PAGE)
    return max(min(most, int(room * HOST_KV_SHARE) // demand.host_page_bytes), 0)


def _making_bytes(demand: Demand, memory: Memory, activations: int) -> int:
    """Return the host memory that making the draft needs beyond what serving takes later.

    By then no row of the embedding was touched and, where the device computes in RAM, no pass ran.
    """
    later = demand.embedding_bytes + (0 if memory.has_own_memory else activations)
    return max(demand.making_bytes - later, 0)


def _wanted_pages(demand: Demand, max_sequences: int) -> int:
    """Return the pages for the most sequences at full length, each with its scratch."""
    full = -(-(demand.context_length + demand.sequence_rows) // PAGE)
    return max(max_sequences * full, _fewest_pages(demand))


def _fewest_pages(demand: Demand) -> int:
    """Return the pages for one short sequence with its scratch, and one page to grow."""
    tokens = min(demand.context_length, SHORTEST_CONTEXT) + demand.sequence_rows
    return -(-tokens // PAGE) + 1


def _slots(demand: Demand, room: int) -> int:
    """Return the number of ring slots that is fastest, or fewer to fit `room`.

    What has to be resident because of them counts too.
    """
    units = demand.unit_bytes
    best = min(DEFAULT_SLOTS, len(units))
    resident = _large_head(units, best)
    needed = _ring_bytes(units, resident, best) + sum(demand.net_bytes(i) for i in resident)
    return best if needed <= room else min(FEWEST_SLOTS, len(units))


def _large_head(units: Sequence[int], slots: int) -> set[int]:
    """Return the head if it is so much larger than the other units that it should be resident.

    Every slot would have to be as large. Resident, it takes no more of the device than that.
    """
    head, rest = units[-1], max(units[:-1])
    return {len(units) - 1} if head + slots * rest <= slots * head else set()


def _ring_bytes(units: Sequence[int], resident: Set[int], slots: int) -> int:
    return slots * max((units[i] for i in range(len(units)) if i not in resident), default=0)


def _residents(demand: Demand, left: int) -> set[int]:
    """Return the units of as many layers as fit, spread evenly."""
    layer = max(sum(demand.net_bytes(i) for i in layer.units) for layer in demand.layers)
    return _spread(demand.layers, min(max(left, 0) // max(layer, 1), len(demand.layers)))


def _spread(layers: Sequence[LayerUnits], count: int) -> set[int]:
    """Return the units of `count` layers, as evenly apart as possible."""
    chosen = [layers[(2 * i + 1) * len(layers) // (2 * count)] for i in range(count)]
    return {unit for layer in chosen for unit in layer.units}
