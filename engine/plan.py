"""What lives where: residents, ring, KV pages, draft, within the memory there is.

Order of claims on the device: what nothing runs without (activations, ring, the draft), then KV
pages, then resident units, spread evenly through the depth so that the ring never starves.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass

from engine.attention import SCORES
from engine.errors import ModelError
from engine.kv_cache import PAGE
from engine.layout import LayerUnits
from engine.spec import ModelSpec, Tier

DEFAULT_SEQUENCES = 8
DEFAULT_SLOTS = 3  # one in use, one ready, one on its way
FEWEST_SLOTS = 2  # one in use, one on its way
LARGEST_PASS = 8192  # rows; a longer prompt takes more passes
KV_SHARE = 0.25  # of the device limit, at most, unless everything fits
SHORTEST_CONTEXT = 256  # tokens of KV below which serving makes no sense


@dataclass(frozen=True)
class Demand:
    """What the model and its draft would like to take; sizes in bytes."""

    unit_bytes: Sequence[int]  # those of the layers, then the head
    layers: Sequence[LayerUnits]  # which units are each layer's
    expanded_bytes: int  # 4-bit targets: one unit's dense weights; else 0
    other_device_bytes: int  # tensors outside layers and head that live on the device
    hidden_size: int
    widest: int  # the widest activation of a layer, per row
    num_heads: int
    vocab_size: int
    item_bytes: int  # of one activation
    kv_bytes_per_token: int  # target and draft together
    draft_weight_bytes: int
    scratch_rows: int
    context_length: int


@dataclass(frozen=True)
class Memory:
    """What there is, in bytes."""

    device: int
    ram: int
    is_cuda: bool


@dataclass(frozen=True)
class Plan:
    """The decision."""

    tiers: tuple[Tier, ...]
    slots: int
    num_pages: int
    max_sequences: int
    max_rows: int
    resident_bytes: int
    ring_bytes: int
    kv_bytes: int
    draft_bytes: int

    def __str__(self) -> str:
        resident = sum(tier == "resident" for tier in self.tiers)
        away = sorted({tier for tier in self.tiers if tier != "resident"})
        parts = [f"{resident} of {len(self.tiers)} units resident"]
        if resident:
            parts[0] += f" ({_size(self.resident_bytes)})"
        if away:
            parts.append(f"{len(self.tiers) - resident} streamed from {', '.join(away)}")
            parts.append(f"ring of {self.slots} slots ({_size(self.ring_bytes)})")
        parts.append(f"KV of {self.num_pages * PAGE} tokens ({_size(self.kv_bytes)})")
        if self.draft_bytes:
            parts.append(f"draft {_size(self.draft_bytes)}")
        return ", ".join(parts)


def make_plan(spec: ModelSpec, demand: Demand, memory: Memory) -> Plan:
    """Decide. Raises `ModelError` that says what is missing when it cannot fit."""
    max_sequences = spec.max_sequences or DEFAULT_SEQUENCES
    limit = spec.memory.device if spec.memory.device is not None else memory.device
    fixed = _activation_bytes(demand, _pass_rows(demand, max_sequences)) + demand.other_device_bytes
    fixed += demand.expanded_bytes + demand.draft_weight_bytes
    wanted_pages = _wanted_pages(demand, max_sequences)
    page_bytes = demand.kv_bytes_per_token * PAGE
    units = list(demand.unit_bytes)

    streams = spec.stream.tier not in (None, "resident") or spec.stream.resident is not None
    everything = fixed + sum(units) + page_bytes * wanted_pages
    if spec.stream.tier == "resident" or (not streams and everything <= limit):
        return _plan(spec, demand, memory, limit, fixed, set(range(len(units))), 0, max_sequences)

    slots = spec.stream.slots or _slots(units, limit - fixed - page_bytes * _fewest_pages(demand))
    resident = _large_head(units, slots)
    ring = _ring_bytes(units, resident, slots)
    pages = min(wanted_pages, max(int(limit * KV_SHARE) // page_bytes, _fewest_pages(demand)))
    left = limit - fixed - ring - sum(units[i] for i in resident) - pages * page_bytes
    if spec.stream.resident is not None:
        resident |= _spread(demand.layers, min(spec.stream.resident, len(demand.layers)))
    elif spec.stream.tier is None:  # else the user asked for all of it to stream
        resident |= _residents(demand, left)
    return _plan(spec, demand, memory, limit, fixed, resident, slots, max_sequences)


def _plan(
    spec: ModelSpec,
    demand: Demand,
    memory: Memory,
    limit: int,
    fixed: int,
    resident: set[int],
    slots: int,
    max_sequences: int,
) -> Plan:
    """Give what is left to KV pages, and check that all of it fits."""
    units = demand.unit_bytes
    resident_bytes = sum(units[i] for i in resident)
    streamed = [i for i in range(len(units)) if i not in resident]
    ring = _ring_bytes(units, resident, slots)
    page_bytes = demand.kv_bytes_per_token * PAGE
    left = limit - fixed - ring - resident_bytes
    pages = min(_wanted_pages(demand, max_sequences), left // page_bytes)
    if pages < _fewest_pages(demand):
        missing = _fewest_pages(demand) * page_bytes - left
        raise ModelError(
            f"memory.device: {_size(limit)} is {_size(missing)} too little. Needed: "
            f"activations {_size(fixed - demand.draft_weight_bytes)}, "
            f"draft {_size(demand.draft_weight_bytes)}, ring of {slots} slots {_size(ring)}, "
            f"resident units {_size(resident_bytes)}, KV of at least "
            f"{_fewest_pages(demand) * PAGE} tokens {_size(_fewest_pages(demand) * page_bytes)}. "
            "Raise memory.device, lower context_length or stream.slots, or choose a smaller draft."
        )
    away = _tier(spec, memory, sum(units[i] for i in streamed))
    tiers: list[Tier] = ["resident" if i in resident else away for i in range(len(units))]
    return Plan(
        tiers=tuple(tiers),
        slots=slots,
        num_pages=pages,
        max_sequences=max_sequences,
        max_rows=min(_pass_rows(demand, max_sequences), pages * PAGE),
        resident_bytes=resident_bytes,
        ring_bytes=ring,
        kv_bytes=pages * page_bytes,
        draft_bytes=demand.draft_weight_bytes,
    )


def _tier(spec: ModelSpec, memory: Memory, streamed_bytes: int) -> Tier:
    """Where units wait that do not stay on the device."""
    ram = spec.memory.ram if spec.memory.ram is not None else memory.ram
    if spec.stream.tier == "ram" and streamed_bytes > ram:
        raise ModelError(
            f"memory.ram: {_size(ram)} is {_size(streamed_bytes - ram)} too little for the "
            "streamed units. Raise it, or set stream.tier to disk."
        )
    if spec.stream.tier is not None and spec.stream.tier != "resident":
        return spec.stream.tier
    # Without a device of its own the RAM is the device: what does not fit there is on disk.
    fits_ram = streamed_bytes <= ram and (memory.is_cuda or spec.stream.simulate_gbps is not None)
    return "ram" if fits_ram else "disk"


def _pass_rows(demand: Demand, max_sequences: int) -> int:
    """Rows of a pass at most: the longest prompt at once, and the trees of all sequences."""
    rows = max(demand.context_length, max_sequences * demand.scratch_rows)
    return min(LARGEST_PASS, -(-rows // PAGE) * PAGE)


def _activation_bytes(demand: Demand, max_rows: int) -> int:
    """Hidden states of a pass, one tile inside a layer, one block of logits, attention scores."""
    # Rows whose experts come in slices wait with a copy of theirs and one of the result.
    copies = 4 if any(layer.slices for layer in demand.layers) else 2
    hidden = copies * max_rows * demand.hidden_size * demand.item_bytes
    tile = 512 * 4 * demand.widest * demand.item_bytes
    logits = 2 * 64 * demand.vocab_size * 8
    scores = min(SCORES, demand.num_heads * 64 * demand.context_length)
    return hidden + tile + logits + 3 * scores * 8


def _wanted_pages(demand: Demand, max_sequences: int) -> int:
    """Pages for the most sequences at full length, each with its scratch."""
    full = -(-(demand.context_length + demand.scratch_rows) // PAGE)
    return max(max_sequences * full, _fewest_pages(demand))


def _fewest_pages(demand: Demand) -> int:
    """One short sequence with its scratch, and one page to grow."""
    tokens = min(demand.context_length, SHORTEST_CONTEXT) + demand.scratch_rows
    return -(-tokens // PAGE) + 1


def _slots(units: Sequence[int], room: int) -> int:
    """As many ring slots as run best, or as fit `room` together with what they make resident."""
    best = min(DEFAULT_SLOTS, len(units))
    resident = _large_head(units, best)
    needed = _ring_bytes(units, resident, best) + sum(units[i] for i in resident)
    return best if needed <= room else min(FEWEST_SLOTS, len(units))


def _large_head(units: Sequence[int], slots: int) -> set[int]:
    """The head, where it is so much larger than the rest that every slot would grow for it.

    Resident, it takes no more of the device than that, and does not travel.
    """
    head, rest = units[-1], max(units[:-1])
    return {len(units) - 1} if head + slots * rest <= slots * head else set()


def _ring_bytes(units: Sequence[int], resident: Set[int], slots: int) -> int:
    return slots * max((units[i] for i in range(len(units)) if i not in resident), default=0)


def _residents(demand: Demand, left: int) -> set[int]:
    """The units of as many layers as fit, spread evenly."""
    layer = max(sum(demand.unit_bytes[i] for i in layer.units) for layer in demand.layers)
    return _spread(demand.layers, min(max(left, 0) // layer, len(demand.layers)))


def _spread(layers: Sequence[LayerUnits], count: int) -> set[int]:
    """The units of `count` layers, as evenly apart as can be."""
    chosen = [layers[(2 * i + 1) * len(layers) // (2 * count)] for i in range(count)]
    return {unit for layer in chosen for unit in layer.units}


def _size(num_bytes: int) -> str:
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes / 1024:.1f} KiB"
