"""How much memory there is to take, cgroup limits included."""

import os
from collections.abc import Iterator
from pathlib import Path

from engine.errors import ModelError
from engine.malloc import give_back_freed
from engine.planning.footprint import size_text
from engine.planning.plan import Memory, Plan
from engine.streaming.device import Device

DEVICE_SHARE = 0.95  # of the free device memory: what fragments is lost
RAM_SHARE = 0.9  # of the free RAM: other programs grow too
CPU_DEVICE_SHARE = 0.8  # of the free RAM, where it is the device: the page cache serves as well

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def available_memory(device: Device) -> Memory:
    """Return the bytes that may be taken now on the device and in RAM, and what is taken."""
    give_back_freed()
    ram = int(free_ram() * RAM_SHARE)
    runtime = resident_bytes()
    own = device.own_memory()
    if own is None:
        return Memory(int(free_ram() * CPU_DEVICE_SHARE), ram, False, 0, runtime)
    return Memory(int(own.free * DEVICE_SHARE), ram, True, own.runtime, runtime)


def check_free(plan: Plan) -> None:
    """Raise `ModelError` when the RAM that was there at planning is not there any more.

    It is called before large allocations: a refusal can be read, an out-of-memory kill cannot.
    """
    give_back_freed()  # of planning itself: probes, and what methods read
    needed = plan.host_bytes - plan.memory.host_runtime
    if not plan.memory.has_own_memory:
        needed += plan.device_bytes
    free = free_ram()
    if needed > free:
        raise ModelError(
            f"{size_text(needed)} of RAM are planned, but only {size_text(free)} are free by now: "
            "another program took the rest. End it, or lower memory.device or memory.ram."
        )


def resident_bytes() -> int:
    """Return the RAM that this process holds, the pages of its libraries among it."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def free_ram() -> int:
    """Return the RAM that this process could take now, within its memory cgroups."""
    return min([_free_ram(), *_free_in_cgroups()])


def _free_ram() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise ModelError("/proc/meminfo does not tell the available memory; set memory.ram")


def _free_in_cgroups() -> Iterator[int]:
    """Yield what this process's memory cgroup and each above it leave; page cache is free."""
    for line in OWN_CGROUPS.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            yield from _free_up_from(CGROUPS / "memory", path, "memory.limit_in_bytes", "total_rss")
        elif not controllers:  # version 2
            yield from _free_up_from(CGROUPS, path, "memory.max", "anon")


def _free_up_from(mount: Path, path: str, limit: str, anonymous: str) -> Iterator[int]:
    """Yield what the groups from `path` up to the mount leave.

    `path` may be the host's name of a group that a container sees as the mount itself.
    """
    group = mount / path.lstrip("/")
    for folder in [group, *group.parents]:
        if (folder / limit).exists() and (text := (folder / limit).read_text().strip()) != "max":
            lines = (folder / "memory.stat").read_text().splitlines()
            used = dict(line.split() for line in lines)[anonymous]
            yield int(text) - int(used)
        if folder == mount:
            return
