"""What the machine has: devices and memory, cgroup limits included."""

from collections.abc import Iterator
from pathlib import Path

import torch

from engine.errors import ModelError
from engine.plan import Memory

DEVICE_SHARE = 0.9  # of the free device memory: the rest is the runtime's own
RAM_SHARE = 0.8  # of the free RAM
CPU_DEVICE_SHARE = 0.7  # of the free RAM, where it is the device: temporaries come on top

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
    """Bytes that may be taken on the device and in RAM now."""
    ram = min([_free_ram(), *_free_in_cgroups()])
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return Memory(device=int(free * DEVICE_SHARE), ram=int(ram * RAM_SHARE), is_cuda=True)
    return Memory(device=int(ram * CPU_DEVICE_SHARE), ram=int(ram * RAM_SHARE), is_cuda=False)


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
