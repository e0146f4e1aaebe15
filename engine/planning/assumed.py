"""Assumed speeds of a machine, used where `understudy plan` cannot measure them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from engine.planning.footprint import LARGEST_PASS, Demand
from engine.planning.memory import Memory
from engine.planning.plan import Plan
from engine.spec import TILE
from engine.timing import StepTimes
from engine.weights.coding.units import CELL_BITS, EXPONENT_BITS

LINK_GBPS = 25.0  # from pinned RAM to a card, PCIe 4.0 x16
DISK_GBPS = 3.0  # direct reads from an NVMe disk
LAUNCH_SECONDS = 2e-5  # of a layer's kernels in a draft step
ROUTING_SECONDS = 6e-5  # of some thirty small kernels that give rows to experts, beside those
DEVICE_RUNTIME = 600 << 20  # bytes of CUDA's context and its libraries
STREAM_WORKSPACE = 32 << 20  # bytes that cuBLAS keeps for each stream on a newer card
HOST_RUNTIME = 900 << 20  # bytes of the engine process on a CUDA machine, without weights
RAM = 64 << 30  # bytes
DEVICE_SHARE = 0.97  # of a card's memory; the driver holds the rest
# Of a card's memory bandwidth that decoding uses: it takes some hundred instructions a weight.
DECODING_SHARE = 0.5


@dataclass(frozen=True)
class DeviceSpeed:
    """The assumed speed of a device."""

    gbps: float  # of its own memory
    tflops: float  # of dense products in bfloat16, sustained
    expanding_gbps: float  # of dense weights that are expanded from packed ones


# Expanding reads and writes the memory of a card some fifteen times for each value.
CARD = DeviceSpeed(gbps=500.0, tflops=40.0, expanding_gbps=30.0)
CPU = DeviceSpeed(gbps=15.0, tflops=0.4, expanding_gbps=3.0)  # a CPU of few cores


@dataclass(frozen=True)
class Machine:
    """A machine that a plan is made for.

    Its times are empty where none were measured; `complete_times` fills them in.
    """

    memory: Memory
    ram_gbps: float  # from RAM to the device, 1e9 bytes a second
    disk_gbps: float
    device_memory: int = 0  # bytes of the whole card, or of the RAM that is used as the device's
    # Seconds of a pass by its number of rows, if it never waits for weights.
    passes: StepTimes = field(default_factory=StepTimes)
    # Seconds of a draft step by rows; measured only for low-bit copies of the target's layers.
    draft: StepTimes = field(default_factory=StepTimes)
    # Seconds in which packed weights expand to one dense byte, by the packing's suffix.
    expanding: Mapping[str, float] = field(default_factory=dict)
    # Bytes of plain weights that the device decodes in a second, 1e9: of weights that are coded by
    # 4-bit copies (True), and of others (False). Empty if it decodes none.
    decoding_gbps: Mapping[bool, float] = field(default_factory=dict)
    disk_source: str = "assumed"  # of `disk_gbps`
    device_gbps: float | None = None  # of the device's own memory; None: that of `CARD`

    @property
    def device_speed(self) -> DeviceSpeed:
        """Return the assumed speed of the device."""
        if not self.memory.has_own_memory:
            return CPU
        return CARD if self.device_gbps is None else replace(CARD, gbps=self.device_gbps)


def complete_times(machine: Machine, demand: Demand, plan: Plan) -> Machine:
    """Return the machine with all times that a forecast needs, assumed where none is measured."""
    passes, draft = machine.passes, machine.draft
    if passes.expect(1) is None:
        passes = pass_times(demand, machine.device_speed)
    if draft.expect(1) is None or not demand.is_self_drafted:
        draft = draft_times(demand, plan, machine.device_speed)
    assumed = 1 / (machine.device_speed.expanding_gbps * 1e9)
    expanding = {suffix: machine.expanding.get(suffix, assumed) for suffix in demand.expansions}
    return replace(machine, passes=passes, draft=draft, expanding=expanding)


def decoding_gbps(speed: DeviceSpeed, group: int) -> dict[bool, float]:
    """Return the assumed speeds of a card's decoder, as `Machine.decoding_gbps` has them.

    For each weight, it reads the coded bits, and the 4-bit code and its share of scale and zero if
    there is a copy, and writes two bytes.

    Args:
        group: the weights of a copy that share scale and zero.
    """
    moved = {True: CELL_BITS / 8 + 4 / 8 + 4 / group + 2, False: EXPONENT_BITS / 8 + 2}
    return {has_copy: DECODING_SHARE * speed.gbps * 2 / own for has_copy, own in moved.items()}


def pass_times(demand: Demand, speed: DeviceSpeed) -> StepTimes:
    """Return the assumed times of a pass by rows.

    Each tile of rows reads all weights once and multiplies with them; the slower of both counts.
    Of a mixture of experts, only those that were chosen count.
    """
    read = demand.dense_bytes / (speed.gbps * 1e9)
    flops = 2 * TILE * demand.dense_bytes / demand.item_bytes
    tile = max(read, flops / (speed.tflops * 1e12))
    share = demand.experts.share if demand.experts is not None else 0.0
    times = StepTimes()
    rows = TILE if demand.experts is None else 1
    while rows <= LARGEST_PASS:
        times.observe(rows, tile * demand.products(rows, share))
        rows *= 2
    return times


def draft_times(demand: Demand, plan: Plan, speed: DeviceSpeed) -> StepTimes:
    """Return the assumed times of one draft step by rows.

    Up to a tile of rows, a step takes the time to read the draft's weights and launch its kernels.
    Of experts it reads those that its rows choose.
    """
    # A draft that is made of the target's own layers reads the units that it shares too.
    copied = demand.experts.units if demand.experts is not None else frozenset()
    shared = sum(
        nbytes
        for unit, (tier, nbytes) in enumerate(zip(plan.tiers, demand.unit_bytes, strict=True))
        if tier == "resident" and unit not in copied and demand.shares_resident
    )
    nbytes = plan.draft_bytes + shared
    share = demand.draft.expert_bytes / nbytes if nbytes else 0.0
    mixed = sum(not copied.isdisjoint(layer.units) for layer in demand.layers)
    launches = len(demand.layers) * LAUNCH_SECONDS + mixed * ROUTING_SECONDS
    times = StepTimes()
    rows = 1
    while rows <= 2 * TILE:
        read = nbytes * demand.products(rows, share) / (speed.gbps * 1e9)
        times.observe(rows, read + -(-rows // TILE) * launches)
        rows *= 2
    return times
