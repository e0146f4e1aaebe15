"""The memory that a plan may use on this machine, within the limits of cgroups."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from engine.cgroups import free_in_cgroups
from engine.compiled.compiler import bytes_to_compile
from engine.errors import ModelError
from engine.malloc import give_back_freed
from engine.planning.footprint import size_text
from engine.planning.memory import Memory
from engine.planning.plan import Plan
from engine.streaming.device import Device

DEVICE_SHARE = 0.95  # of the free device memory: the rest is for fragmentation
RAM_SHARE = 0.9  # of the free RAM: the rest is for other programs
LOADING_SHARE = (
    0.97  # of the free RAM while a model is loaded: the rest is for what planning misses
)
CPU_DEVICE_SHARE = 0.8  # of the free RAM where it is the device: the page cache needs some too


def available_memory(device: Device, *, compiles: bool = False) -> Memory:
    """Return the memory that a plan may use now on the device and in RAM.

    What measurements have freed counts as free: the allocators give it back first.

    Args:
        compiles: whether code will be compiled for the CPU.
    """
    give_back_freed()
    device.give_back_freed()
    code = bytes_to_compile() if compiles else 0
    free = max(free_ram() - code, 0)
    ram, loading = int(free * RAM_SHARE), int(free * LOADING_SHARE)
    runtime = resident_bytes()
    own = device.own_memory()
    if own is None:
        device_bytes = int(free * CPU_DEVICE_SHARE)
        return Memory(
            device_bytes,
            ram,
            has_own_memory=False,
            host_runtime=runtime,
            loading=loading,
            code=code,
        )
    return Memory(
        int(own.free * DEVICE_SHARE),
        ram,
        has_own_memory=True,
        device_runtime=own.runtime,
        stream_workspace=own.stream_workspace,
        host_runtime=runtime,
        code=code,
    )


@contextmanager
def name_shortage(device: Device, doing: str, plan: Plan | None = None) -> Iterator[None]:
    """Enter a block that uses device memory. Raise `ModelError` with the sizes where it runs out.

    Args:
        doing: what is done, for the message.
        plan: what is planned to be on the device.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).partition("\n")[0]
        own = device.own_memory()
        free = "" if own is None else f", {size_text(own.free)} are free now"
        planned = "" if plan is None else f", {size_text(plan.device_bytes)} are planned ({plan})"
        raise ModelError(
            f"memory.device: {device} ran out of memory while {doing} ({reason}){planned}{free}. "
            "End other programs that use the device, or lower memory.device"
        ) from error


def check_free(plan: Plan) -> None:
    """Raise `ModelError` if the RAM that was free at planning is not free any more.

    It is called before large allocations, because an out-of-memory kill would leave no message.
    """
    give_back_freed()  # memory of planning itself: of probes, and of what methods read
    needed = plan.host_bytes - plan.memory.host_runtime
    if not plan.memory.has_own_memory:
        needed += plan.device_bytes
    free = free_ram()
    if needed > free:
        raise ModelError(
            f"{size_text(needed)} of RAM are planned, but only {size_text(free)} are free by now: "
            "another program uses the rest. End it, or lower memory.device or memory.ram."
        )


def resident_bytes() -> int:
    """Return the bytes of RAM that this process holds, the pages of its libraries included."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def free_ram() -> int:
    """Return the bytes of RAM that this process could take now, within its memory cgroups."""
    return min([_free_ram(), *free_in_cgroups()])


def _free_ram() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise ModelError("/proc/meminfo has no MemAvailable: use Linux 3.14 or newer")
