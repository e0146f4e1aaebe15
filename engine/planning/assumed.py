"""Speeds of a machine that is not here: what `understudy plan` takes for granted, and says so."""

from dataclasses import dataclass

from engine.planning.footprint import LARGEST_PASS, Demand
from engine.planning.forecast import Speeds
from engine.planning.plan import Plan
from engine.spec import TILE
from engine.timing import StepTimes

LINK_GBPS = 25.0  # pinned RAM to a card, PCIe 4.0 x16
DISK_GBPS = 3.0  # an NVMe disk, direct reads
DEVICE_GBPS = 500.0  # the card's own memory
DEVICE_TFLOPS = 40.0  # dense products in bfloat16, sustained
HOST_DEVICE_GBPS = 15.0  # the same two of a CPU of few cores
HOST_DEVICE_TFLOPS = 0.4
LAUNCH_SECONDS = 2e-5  # of a layer's kernels in a draft step
DEVICE_RUNTIME = 600 << 20  # CUDA's context, its libraries and their workspaces
HOST_RUNTIME = 900 << 20  # the engine's process on a CUDA machine
RAM = 64 << 30
DEVICE_SHARE = 0.97  # of a card's memory: the driver's own part is not the user's


@dataclass(frozen=True)
class Rates:
    """Speed of a device."""

    gbps: float
    tflops: float


def rates(has_own_memory: bool) -> Rates:
    """Those of a card, or of a CPU."""
    if has_own_memory:
        return Rates(DEVICE_GBPS, DEVICE_TFLOPS)
    return Rates(HOST_DEVICE_GBPS, HOST_DEVICE_TFLOPS)


@dataclass(frozen=True)
class Times:
    """What was measured; None: assumed."""

    passes: StepTimes | None = None  # by rows, weights being there
    draft: StepTimes | None = None  # one step of low-bit copies of the target's layers, by rows


def complete(
    times: Times, demand: Demand, plan: Plan, *, ram_gbps: float, disk_gbps: float
) -> Speeds:
    """The speeds that a forecast needs: measured ones, assumed where there are none."""
    own = rates(plan.memory.has_own_memory)
    draft = times.draft if demand.is_self_drafted else None
    if draft is None:
        # Resident units serve a draft of the target's own layers too.
        shared = plan.resident_bytes if demand.is_self_drafted else 0
        draft = draft_times(plan.draft_bytes + shared, len(demand.layers), own)
    return Speeds(ram_gbps, disk_gbps, times.passes or pass_times(demand, own), draft)


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
