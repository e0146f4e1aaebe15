"""What the machine has: devices and memory, cgroup limits included."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from engine.errors import ModelError
from engine.malloc import give_back_freed
from engine.planning.footprint import size_text
from engine.planning.plan import Memory, Plan

DEVICE_SHARE = 0.95  # of the free device memory: what fragments is lost
RAM_SHARE = 0.9  # of the free RAM: other programs grow too
CPU_DEVICE_SHARE = 0.8  # of the free RAM, where it is the device: the page cache serves as well

LARGEST_CONTEXT = 1 << 30  # bytes that CUDA itself takes of a device; more is others'

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def choose_device(name: str | None) -> torch.device:
    """The device of this name, or the first GPU, or the CPU. Raises `ModelError`."""
    if name is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"device: {name!r} is no device; use auto, cpu or cuda:0") from error
    if device.type not in ("cpu", "cuda"):
        raise ModelError(f"device: {name!r} is not supported; use auto, cpu or cuda:0")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"device: {name!r} is not there ({torch.cuda.device_count()} GPUs seen by this torch). "
            "Use auto or cpu, or install a CUDA build of torch."
        )
    return device


def available_memory(device: torch.device) -> Memory:
    """Bytes that may be taken on the device and in RAM now, and what is taken already."""
    give_back_freed()
    ram = int(free_ram() * RAM_SHARE)
    runtime = resident_bytes()
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        own = total - free - torch.cuda.memory_reserved(device)  # and what others hold
        taken = min(own, LARGEST_CONTEXT)
        return Memory(int(free * DEVICE_SHARE), ram, True, taken, runtime)
    return Memory(int(free_ram() * CPU_DEVICE_SHARE), ram, False, 0, runtime)


def check_free(plan: Plan) -> None:
    """Raise `ModelError` when the RAM that was there at planning is not there any more.

    Asked before large allocations: a refusal can be read, an out-of-memory kill cannot.
    """
    give_back_freed()  # of planning itself: probes, and what methods read
    needed = plan.host_bytes - plan.memory.host_runtime - plan.embedding_bytes
    if not plan.memory.is_cuda:
        needed += plan.device_bytes
    free = free_ram()
    if needed > free:
        raise ModelError(
            f"{size_text(needed)} of RAM are planned, but only {size_text(free)} are free by now: "
            "another program took the rest. End it, or lower memory.device or memory.ram."
        )


def resident_bytes() -> int:
    """RAM that this process holds, the pages of its libraries among it."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def free_ram() -> int:
    """RAM that this process could take now, its memory cgroups included."""
    return min([_free_ram(), *_free_in_cgroups()])


def _free_ram() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise ModelError("/proc/meminfo does not tell the available memory; set memory.ram")


def _free_in_cgroups() -> Iterator[int]:
    """What this process's memory cgroup and each above it leave; page cache counts as free."""
    for line in OWN_CGROUPS.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            yield from _free_up_from(CGROUPS / "memory", path, "memory.limit_in_bytes", "total_rss")
        elif not controllers:  # version 2
            yield from _free_up_from(CGROUPS, path, "memory.max", "anon")


def _free_up_from(mount: Path, path: str, limit: str, anonymous: str) -> Iterator[int]:
    """`path` may be the host's name of a group that a container sees as the mount itself."""
    group = mount / path.lstrip("/")
    for folder in [group, *group.parents]:
        if (folder / limit).exists() and (text := (folder / limit).read_text().strip()) != "max":
            lines = (folder / "memory.stat").read_text().splitlines()
            used = dict(line.split() for line in lines)[anonymous]
            yield int(text) - int(used)
        if folder == mount:
            return
