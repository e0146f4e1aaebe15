"""The plan: where units, KV pages and the draft are kept, within the available memory.

Device memory goes first to what every plan needs (activations, the ring, the draft), then to KV
pages, then to resident units, spread evenly through the depth so that the link is never idle for
long. Host memory holds the units of the ram tier and, in a part of the rest, idle KV pages.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace

from engine.kv.page_pool import PAGE
from engine.planning.footprint import (
    DRAFT_STREAMS,
    Demand,
    activation_bytes,
    graph_bytes,
    pass_rows,
    size_text,
)
from engine.planning.making import made_bytes, must_make
from engine.planning.memory import Memory, device_limit
from engine.planning.refusal import MORE_DEVICE, DoesNotFit, Limit, once, too_little
from engine.planning.states import count_states, describe_states
from engine.spec import ModelSpec, Tier
from engine.streaming.disk import PIECE_BYTES, READERS, num_staging_buffers
from engine.streaming.page_store import STAGING_BYTES
from engine.streaming.slots import SlotKind, ring_bytes, ring_slots
from engine.weights.layout import LayerUnits
from engine.weights.packing import TEMPORARY_BYTES

DEFAULT_SLOTS = 3  # one for the units in use, one filled, one being filled
FEWEST_SLOTS = 2  # one for the units in use, one being filled
KV_SHARE = 0.125  # of the device limit for KV pages at most, unless all weights fit too
HOST_KV_SHARE = 0.25  # of the RAM that weights leave, for idle pages
HOST_CONTEXTS = 2  # idle pages for at most this many full contexts of each sequence
DISK_STAGING = READERS * 2 * PIECE_BYTES  # each thread fills one buffer while another is copied
SEQUENCE_PAGES = 2  # of a sequence at least: one for its tokens, one for a small tree
SHORTEST_CONTEXT = 256  # tokens: with less KV than that, a model is not served


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The places and sizes of weights, KV pages, draft and buffers. Sizes are in bytes."""

    tiers: tuple[Tier, ...]
    slots: int  # one for the units in use, and one for each unit that is copied ahead of them
    ring_slots: int  # all of the ring: the parts of a layer are in use together
    num_pages: int
    max_sequences: int
    max_rows: int
    resident_bytes: int
    ring_bytes: int
    kv_bytes: int
    draft_bytes: int
    activation_bytes: int
    other_bytes: int  # norms; one unit's expanded weights; workspaces of libraries; graphs
    num_states: int = 0  # of recurrent layers: sequences that have one at the same time
    stored_states: int = 0  # further ones, of stored prefixes
    num_nodes: int = 0  # drafted rows of all sequences, of which recurrent layers keep something
    state_bytes: int = 0
    host_pages: int = 0  # idle KV pages in host memory
    host_kv_bytes: int = 0
    ram_unit_bytes: int = 0  # units of the ram tier
    staging_bytes: int = 0  # pinned buffers between disk and device
    embedding_bytes: int  # in the page cache: its rows are read from the checkpoint
    # Taken for a while during loading, beyond the rest: to make what the cache lacks, or to read.
    making_bytes: int
    memory: Memory  # of the machine that the plan is made for

    @property
    def device_bytes(self) -> int:
        """Return the most bytes that the device holds, its runtime included."""
        taken = self.resident_bytes + self.ring_bytes + self.kv_bytes + self.draft_bytes
        taken += self.state_bytes + self.activation_bytes + self.other_bytes
        return taken + self.memory.device_runtime

    @property
    def host_bytes(self) -> int:
        """Return the most bytes that the process holds in host memory, its runtime included.

        If the device has no memory of its own, `device_bytes` come on top.
        """
        taken = self.ram_unit_bytes + self.staging_bytes + self.host_kv_bytes
        return taken + self.making_bytes + self.memory.host_runtime + self.memory.code

    def __str__(self) -> str:
        """Return the plan as one line for the log."""
        resident = self.tiers.count("resident")
        away = sorted({tier for tier in self.tiers if tier != "resident"})
        parts = [f"{resident} of {len(self.tiers)} units resident"]
        if resident:
            parts[0] += f" ({size_text(self.resident_bytes)})"
        if away:
            parts.append(f"{len(self.tiers) - resident} streamed from {', '.join(away)}")
            parts.append(f"ring of {self.ring_slots} slots ({size_text(self.ring_bytes)})")
        parts.append(f"KV of {self.num_pages * PAGE} tokens ({size_text(self.kv_bytes)})")
        if self.num_states:
            states = describe_states(self.num_states + self.stored_states, self.num_nodes)
            parts.append(f"{states} ({size_text(self.state_bytes)})")
        if self.host_pages:
            idle = self.host_pages * PAGE
            parts.append(f"idle KV of {idle} tokens ({size_text(self.host_kv_bytes)})")
        if self.draft_bytes:
            parts.append(f"draft {size_text(self.draft_bytes)}")
        return ", ".join(parts)


def make_plan(spec: ModelSpec, demand: Demand, memory: Memory) -> Plan:
    """Return the plan for a model. Raises `DoesNotFit` that says how much memory is missing.

    If the specification gives a number of KV pages, the plan has just as many unless they do not
    fit: the limits of the answers that go on follow from it.
    """
    planner = _Planner(spec, demand, memory)
    if spec.kv_pages is not None:
        with suppress(DoesNotFit):
            plan = planner.decide(spec.kv_pages)
            if plan.num_pages == spec.kv_pages:
                return plan
    for most_pages in planner.page_limits():
        with suppress(DoesNotFit):
            plan = planner.decide(most_pages)
            enough = min(demand.context_length, most_pages * PAGE)
            if set(plan.tiers) == {"resident"} or plan.num_pages * PAGE >= enough:
                return plan
    return planner.decide(planner.fewest_pages)


class _Planner:
    """A planner for one model and its draft within one machine's memory."""

    def __init__(self, spec: ModelSpec, demand: Demand, memory: Memory) -> None:
        self.spec = spec
        self.demand = demand
        self.memory = memory
        self.units = demand.unit_bytes
        self.limit = device_limit(spec, memory)
        self.states = count_states(spec, demand, self.limit)
        self.max_sequences = self.states.max_sequences
        # For one short sequence with its scratch, and one page to grow.
        shortest = min(demand.context_length, SHORTEST_CONTEXT) + demand.sequence_rows
        self.fewest_pages = -(-shortest // PAGE) + 1
        # For the most sequences at full length, each with its scratch.
        full = -(-(demand.context_length + demand.sequence_rows) // PAGE)
        self.wanted_pages = max(self.max_sequences * full, self.fewest_pages)

    def page_limits(self) -> Iterator[int]:
        """Yield limits of the KV pages to try, in descending order.

        Attention over a long context takes memory too, and no sequence becomes longer than the KV
        pages hold: so a lower limit leaves more for weights.
        """
        yield self.wanted_pages
        pages = int(self.limit * KV_SHARE) // self.demand.page_bytes
        while pages > self.fewest_pages:
            yield pages
            pages //= 2

    def decide(self, most_pages: int) -> Plan:
        """Return the plan with at most `most_pages` KV pages.

        KV pages get the device memory that units, ring and draft leave. Raises `DoesNotFit`.
        """
        demand, memory = self.demand, self.memory
        wanted_pages = min(self.wanted_pages, most_pages)
        rows = min(pass_rows(demand, self.max_sequences), most_pages * PAGE)
        longest, own = wanted_pages * PAGE, memory.has_own_memory
        trees = self.max_sequences * demand.draft.scratch_rows
        activations = activation_bytes(demand, rows, longest, has_own_memory=own, tree_rows=trees)
        other = self._other_bytes(wanted_pages)
        taken = activations + other + self.states.nbytes
        limit, making = self.limit, 0
        while True:
            resident, slots = self._residents(limit - taken, wanted_pages)
            ring, making = self._ring_bytes(resident, slots), made_bytes(demand, resident)
            if own:
                break
            # The ring and the activations get their memory when all is made.
            making = max(making - activations - ring, 0)
            held = (memory.loading or memory.ram) - making
            if limit <= held:
                break
            limit = held  # which may leave fewer units resident, and another ring
        resident_bytes, draft = self._bytes(resident), demand.draft_bytes(resident)
        left = limit - taken - draft - ring - resident_bytes
        pages = min(wanted_pages, left // demand.page_bytes)
        most = self.spec.max_sequences or min(self.max_sequences, max(pages // SEQUENCE_PAGES, 1))
        on_device = Plan(
            tiers=tuple("resident" if i in resident else "disk" for i in range(len(self.units))),
            slots=slots,
            ring_slots=sum(kind.count for kind in self._ring(resident, slots)),
            num_pages=pages,
            max_sequences=most,
            max_rows=min(pass_rows(demand, most), pages * PAGE),
            resident_bytes=resident_bytes,
            ring_bytes=ring,
            kv_bytes=pages * demand.page_bytes,
            num_states=self.states.running,
            stored_states=self.states.stored,
            num_nodes=self.states.nodes,
            state_bytes=self.states.nbytes,
            draft_bytes=draft,
            activation_bytes=activations,
            other_bytes=other,
            embedding_bytes=demand.embedding_bytes,
            making_bytes=making,
            memory=memory,
        )
        if pages < self.fewest_pages:
            raise self._refusal(on_device, limit, left)
        return self._with_host(on_device)

    def _other_bytes(self, wanted_pages: int) -> int:
        """Return the device bytes beside weights, draft, KV pages and activations."""
        demand, memory = self.demand, self.memory
        other = demand.other_device_bytes + demand.expanded_bytes + memory.stream_workspace
        if not memory.has_own_memory:
            return other
        other += TEMPORARY_BYTES if demand.expansions else 0
        other += max(STAGING_BYTES, demand.host_page_bytes)  # for idle KV on its way to the host
        if demand.has_draft_model:
            other += DRAFT_STREAMS * memory.stream_workspace
            other += graph_bytes(demand, wanted_pages * PAGE)
        return other

    def _residents(self, left: int, wanted_pages: int) -> tuple[set[int], int]:
        """Return the resident units and the number of ring slots for the others.

        `left` is the number of device bytes for units, ring, draft and KV together.
        """
        demand, stream, layers = self.demand, self.spec.stream, self.demand.layers
        all_units = set(range(len(self.units)))
        streams = stream.tier not in (None, "resident") or stream.resident is not None
        everything = self._bytes(all_units) + demand.draft_bytes(all_units)
        fits = everything + wanted_pages * demand.page_bytes <= left
        if stream.tier == "resident" or (not streams and fits):
            return all_units, 0
        least = demand.draft.weight_bytes + self.fewest_pages * demand.page_bytes
        slots = stream.slots or self._slots(left - least)
        resident = self._large_head(slots)
        if stream.resident is not None:
            return resident | _spread(layers, min(stream.resident, len(layers))), slots
        if stream.tier is not None:  # the user asked for all of it to stream
            return resident, slots
        share = max(int(self.limit * KV_SHARE) // demand.page_bytes, self.fewest_pages)
        share = self.spec.kv_pages or share
        left -= min(wanted_pages, share) * demand.page_bytes + demand.draft_bytes(resident)
        left -= self._ring_bytes(resident, slots) + self._bytes(resident)
        largest = max(sum(demand.net_bytes(i) for i in layer.units) for layer in layers)
        count = min(max(left, 0) // max(largest, 1), len(layers))
        return resident | _spread(layers, count), slots

    def _slots(self, room: int) -> int:
        """Return the default number of ring slots, or the fewest if it does not fit `room` bytes.

        The head is counted too if it becomes resident with that number (see `_large_head`).
        """
        best = min(DEFAULT_SLOTS, len(self.units))
        resident = self._large_head(best)
        needed = self._ring_bytes(resident, best)
        needed += sum(self.demand.net_bytes(i) for i in resident)
        return best if needed <= room else min(FEWEST_SLOTS, len(self.units))

    def _large_head(self, slots: int) -> set[int]:
        """Return the head's unit if keeping it resident takes no more device memory, else no unit.

        If the head is streamed, the slots of the layers' first units must be as large as the head.
        """
        head = len(self.units) - 1
        streamed, without = self._ring_bytes(set(), slots), self._ring_bytes({head}, slots)
        return {head} if self.units[head] + without <= streamed else set()

    def _ring(self, resident: Set[int], slots: int) -> Collection[SlotKind]:
        streamed = set(range(len(self.units))) - resident
        return ring_slots(self.units, self.demand.layers, streamed, slots).values()

    def _ring_bytes(self, resident: Set[int], slots: int) -> int:
        coded, is_gpu = self.demand.largest_coded(resident), self.memory.has_own_memory
        return ring_bytes(self._ring(resident, slots), coded, is_gpu=is_gpu)

    def _bytes(self, units: Iterable[int]) -> int:
        return sum(self.units[i] for i in units)

    def _refusal(self, plan: Plan, most: int, left: int) -> DoesNotFit:
        """Return the error for a plan that leaves only `left` of `most` device bytes to KV."""
        asked, runtime = self.spec.memory.device, self.memory.device_runtime
        making = plan.making_bytes if most < self.limit else 0  # of the same RAM
        kv = self.fewest_pages * self.demand.page_bytes
        states = describe_states(plan.num_states + plan.stored_states, plan.num_nodes)
        needed = {
            "runtime": runtime,
            "what is made or read while loading": making,
            "activations": plan.activation_bytes + plan.other_bytes,
            "draft": plan.draft_bytes,
            f"ring of {plan.ring_slots} slots": plan.ring_bytes,
            "resident units": plan.resident_bytes,
            f"KV of at least {self.fewest_pages * PAGE} tokens": kv,
            f"{states} of recurrent layers": plan.state_bytes,
        }
        problem = too_little(most + making + runtime, kv - left, needed)
        fewer = " (fewer with a lower max_sequences)" if plan.num_states else ""
        is_set = asked is not None and self.limit in (asked, asked - runtime)
        limit = Limit("memory.device", is_set, is_ram=not self.memory.has_own_memory)
        resident = {unit for unit, tier in enumerate(plan.tiers) if tier == "resident"}
        made = once(must_make(self.demand, resident)) if making else ""
        return DoesNotFit(limit, f"{problem}{fewer}. {MORE_DEVICE}{made}")

    def _with_host(self, plan: Plan) -> Plan:
        """Return the plan with the contents of host memory. Raises `DoesNotFit`."""
        memory, limit = self.memory, self.spec.memory.ram
        room = memory.ram if limit is None else min(limit, memory.ram)
        if not memory.has_own_memory:  # the device's share and the host's are one memory
            room = min(room, memory.ram - plan.device_bytes)
        room = max(room, 0)
        # Pinned buffers for whole units that are read from the checkpoint.
        loaded = [self.units[i] for i, tier in enumerate(plan.tiers) if tier == "resident"]
        largest = max(loaded, default=0) if memory.has_own_memory else 0
        loading = largest * num_staging_buffers(largest, len(loaded))
        tiers = self._tiers(plan.tiers, room, loading)
        units = self.demand.travelling_bytes(i for i, tier in enumerate(tiers) if tier == "ram")
        # Packed units of the disk tier are read in pieces; else only loading needs pinned buffers.
        staging = DISK_STAGING if memory.has_own_memory and "disk" in tiers else loading
        # Units are loaded after what is made before, when its memory is free again.
        pages = self._host_pages(plan.max_sequences, room - max(units, plan.making_bytes) - staging)
        return replace(
            plan,
            tiers=tiers,
            ram_unit_bytes=units,
            making_bytes=max(plan.making_bytes - units, 0),
            staging_bytes=staging,
            host_pages=pages,
            host_kv_bytes=pages * self.demand.host_page_bytes,
        )

    def _tiers(self, tiers: tuple[Tier, ...], room: int, loading: int) -> tuple[Tier, ...]:
        """Return the tier of each unit, with units that fit in RAM moved from disk to ram.

        Raises `DoesNotFit` where the specification asks for RAM and they do not fit.

        Args:
            tiers: the tiers with all streamed units on disk.
            room: bytes of host memory for units.
            loading: bytes of `room` that loading takes for a while.
        """
        asked = self.spec.stream.tier
        away = {i for i, tier in enumerate(tiers) if tier != "resident"}
        total = self.demand.travelling_bytes(away) + loading
        if asked == "ram" and total > room:
            problem = f"{size_text(room)} is {size_text(total - room)} too little for the streamed"
            raise DoesNotFit(
                Limit("memory.ram", self.spec.memory.ram is not None, is_ram=True),
                f"{problem} units. Raise it, or set stream.tier to disk in the model's file.",
            )
        # Where the device computes in RAM, all streamed units are on disk.
        has_ram_tier = self.memory.has_own_memory or self.spec.stream.simulate_gbps is not None
        if asked == "disk" or (asked != "ram" and not has_ram_tier):
            return tiers
        waiting = away if total <= room else self._most_that_fit(away, room - DISK_STAGING)
        return tuple("ram" if i in waiting else tier for i, tier in enumerate(tiers))

    def _most_that_fit(self, away: Set[int], room: int) -> set[int]:
        """Return the units of as many layers as fit, spread evenly among the streamed ones."""
        layers = [layer for layer in self.demand.layers if away >= set(layer.units)]
        spreads = (_spread(layers, count) for count in range(len(layers), 0, -1))
        return next((own for own in spreads if self.demand.travelling_bytes(own) <= room), set())

    def _host_pages(self, max_sequences: int, room: int) -> int:
        """Return the number of host pages for idle KV: a bounded share of `room` bytes.

        It is 0 where the device computes in RAM, unless `memory.ram` reserves RAM for them.
        """
        if not self.memory.has_own_memory and self.spec.memory.ram is None:
            return 0
        most = HOST_CONTEXTS * max_sequences * -(-self.demand.context_length // PAGE)
        return max(min(most, int(room * HOST_KV_SHARE) // self.demand.host_page_bytes), 0)


def _spread(layers: Sequence[LayerUnits], count: int) -> set[int]:
    """Return the units of `count` layers that are spread evenly over the depth of the model."""
    chosen = [layers[(2 * i + 1) * len(layers) // (2 * count)] for i in range(count)]
    return {unit for layer in chosen for unit in layer.units}
