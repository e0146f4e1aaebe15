"""Speeds of a machine that is not here: what `understudy plan` takes for granted, and says so."""

from dataclasses import dataclass, field, replace

from engine.planning.footprint import LARGEST_PASS, Demand
from engine.planning.plan import Memory, Plan
from engine.spec import TILE
from engine.timing import StepTimes

LINK_GBPS = 25.0  # pinned RAM to a card, PCIe 4.0 x16
DISK_GBPS = 3.0  # an NVMe disk, direct reads
LAUNCH_SECONDS = 2e-5  # of a layer's kernels in a draft step
DEVICE_RUNTIME = 600 << 20  # CUDA's context, its libraries and their workspaces
HOST_RUNTIME = 900 << 20  # the engine's process on a CUDA machine
RAM = 64 << 30
DEVICE_SHARE = 0.97  # of a card's memory: the driver's own part is not the user's


@dataclass(frozen=True)
class Rates:
    """Speed of a device."""

    gbps: float  # of its own memory
    tflops: float  # of dense products in bfloat16, sustained


CARD = Rates(gbps=500.0, tflops=40.0)
CPU = Rates(gbps=15.0, tflops=0.4)  # of few cores


@dataclass(frozen=True)
class Machine:
    """What a plan is made for. Times that are not known yet are empty: see `complete`."""

    memory: Memory
    ram_gbps: float  # from RAM to the device, 1e9 bytes a second
    disk_gbps: float
    device_memory: int = 0  # bytes of the whole card; of the RAM that stands for one
    passes: StepTimes = field(default_factory=StepTimes)  # of a pass by rows, weights being there
    # Of one draft step by rows; measured for low-bit copies of the target's layers only.
    draft: StepTimes = field(default_factory=StepTimes)

    @property
    def rates(self) -> Rates:
        """Return the assumed speed of the device."""
        return CARD if self.memory.has_own_memory else CPU


def complete(machine: Machine, demand: Demand, plan: Plan) -> Machine:
    """Return the machine with the times that a forecast needs: assumed where none is measured."""
    passes, draft = machine.passes, machine.draft
    if passes.expect(1) is None:
        passes = pass_times(demand, machine.rates)
    if draft.expect(1) is None or not demand.is_self_drafted:
        # Resident units serve a draft of the target's own layers too.
        shared = plan.resident_bytes if demand.is_self_drafted else 0
        draft = draft_times(plan.draft_bytes + shared, len(demand.layers), machine.rates)
    return replace(machine, passes=passes, draft=draft)


def pass_times(demand: Demand, own: Rates) -> StepTimes:
    """Of a pass by rows: every tile of rows reads all weights once and multiplies with them."""
    read = demand.dense_bytes / (own.gbps * 1e9)
    flops = 2 * TILE * demand.active_share * demand.dense_bytes / demand.item_bytes
    tile = max(read, flops / (own.tflops * 1e12))
    times = StepTimes()
    rows = TILE
    while rows <= LARGEST_PASS:
        times.observe(rows, tile * rows / TILE)
        rows *= 2
    return times


def draft_times(draft_bytes: int, num_layers: int, own: Rates) -> StepTimes:
    """Of one draft step by rows: up to a tile of them, the time to read the draft's weights."""
    seconds = draft_bytes / (own.gbps * 1e9) + num_layers * LAUNCH_SECONDS
    times = StepTimes()
    times.observe(1, seconds)
    times.observe(TILE, seconds)
    times.observe(2 * TILE, 2 * seconds)
    return times
