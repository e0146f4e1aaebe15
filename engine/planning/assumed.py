"""Assumed speeds of a machine, used where `understudy plan` cannot measure them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from engine.planning.footprint import LARGEST_PASS, Demand
from engine.planning.plan import Memory, Plan
from engine.spec import TILE
from engine.timing import StepTimes

LINK_GBPS = 25.0  # from pinned RAM to a card, PCIe 4.0 x16
DISK_GBPS = 3.0  # direct reads from an NVMe disk
LAUNCH_SECONDS = 2e-5  # of a layer's kernels in a draft step
DEVICE_RUNTIME = 600 << 20  # bytes of CUDA's context and its libraries
STREAM_WORKSPACE = 32 << 20  # bytes that cuBLAS keeps for each stream on a newer card
HOST_RUNTIME = 900 << 20  # bytes of the engine process on a CUDA machine, without weights
RAM = 64 << 30  # bytes
DEVICE_SHARE = 0.97  # of a card's memory; the driver holds the rest


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
        # A draft that is made of the target's own layers reads the units that it shares too.
        shared = plan.resident_bytes if demand.shares_resident else 0
        draft = draft_times(plan.draft_bytes + shared, len(demand.layers), machine.device_speed)
    assumed = 1 / (machine.device_speed.expanding_gbps * 1e9)
    expanding = {suffix: machine.expanding.get(suffix, assumed) for suffix in demand.expansions}
    return replace(machine, passes=passes, draft=draft, expanding=expanding)


def pass_times(demand: Demand, speed: DeviceSpeed) -> StepTimes:
    """Return the assumed times of a pass by rows.

    Each tile of rows reads all weights once and multiplies with them; the slower of both counts.
    """
    read = demand.dense_bytes / (speed.gbps * 1e9)
    flops = 2 * TILE * demand.active_share * demand.dense_bytes / demand.item_bytes
    tile = max(read, flops / (speed.tflops * 1e12))
    times = StepTimes()
    rows = TILE
    while rows <= LARGEST_PASS:
        times.observe(rows, tile * rows / TILE)
        rows *= 2
    return times


def draft_times(draft_bytes: int, num_layers: int, speed: DeviceSpeed) -> StepTimes:
    """Return the assumed times of one draft step by rows.

    Up to a tile of rows, a step takes the time to read the draft's weights and launch its kernels.
    """
    seconds = draft_bytes / (speed.gbps * 1e9) + num_layers * LAUNCH_SECONDS
    times = StepTimes()
    times.observe(1, seconds)
    times.observe(TILE, seconds)
    times.observe(2 * TILE, 2 * seconds)
    return times
