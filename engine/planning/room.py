"""The memory that a loaded model may take now: of the machine, and within the limits that are set.

What the model could have is what is free now and what its process holds of the plan already. That
changes only when others take or free memory, or when a limit changes.
"""

from dataclasses import dataclass

from engine.moves import LimitMemory
from engine.planning.machine import (
    CPU_DEVICE_SHARE,
    DEVICE_SHARE,
    RAM_SHARE,
    free_ram,
    resident_bytes,
)
from engine.planning.plan import Plan
from engine.planning.replan import Room, planned_bytes
from engine.spec import MemorySpec
from engine.streaming.device import Device


@dataclass(frozen=True)
class Shares:
    """The shares of the available memory that a plan may take."""

    device: float  # of the device's own memory
    cpu_device: float  # of the RAM, for the device's part, where the device computes in RAM
    ram: float


TAKE = Shares(DEVICE_SHARE, CPU_DEVICE_SHARE, RAM_SHARE)  # as at load
# Up to these, nothing moves: so that it takes a twentieth of the memory or so to move units.
HOLD = Shares(0.99, 0.9, 0.97)


@dataclass(frozen=True)
class Available:
    """The bytes that the model could have, those that it holds included."""

    device: int | None  # of the device's own memory; None: it computes in RAM
    ram: int


def read_available(device: Device, plan: Plan) -> Available:
    """Return what the model could have now. It takes less than a millisecond.

    What its process holds beside what is planned is not available to the plan.
    """
    memory = plan.memory
    held, own = max(resident_bytes() - memory.host_runtime, 0), device.own_memory()
    on_device, on_host = planned_bytes(plan)
    planned = on_host if memory.has_own_memory else on_host + on_device
    # Code that will be compiled counts as taken, as long as it is not.
    ram = free_ram() + min(held, planned + memory.code) - memory.code
    if own is None:
        return Available(None, max(ram, 0))
    return Available(own.free + min(own.held, on_device), max(ram, 0))


def room_in(
    available: Available, spec: MemorySpec, limits: LimitMemory, shares: Shares, runtime: int
) -> Room:
    """Return the most bytes that a plan may take.

    Args:
        spec: the limits in the model's file.
        limits: those that were set since the model was loaded, which may be lower.
        runtime: of the device, which its limits include.
    """
    ram = int(available.ram * shares.ram)
    if available.device is None:
        device = int(available.ram * shares.cpu_device) if spec.device is None else ram
        total = ram
    else:
        device, total = int(available.device * shares.device), None
    of_device = [own - runtime for own in (spec.device, limits.device) if own is not None]
    of_ram = [own for own in (spec.ram, limits.ram) if own is not None]
    return Room(min([device, *of_device]), min([ram, *of_ram]), total)
