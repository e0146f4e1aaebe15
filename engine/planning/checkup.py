"""What `understudy doctor` finds out about this machine: its memory, device, disk and link."""

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

from engine import __version__
from engine.cache_files import cache_root, check_cache
from engine.errors import ModelError
from engine.planning.footprint import size_text
from engine.planning.link_probe import copy_gbps
from engine.planning.machine import free_ram
from engine.streaming.device import Device, choose_device
from engine.streaming.pinned import HostBuffer

LIBRARIES = ("torch", "transformers", "tokenizers", "numba", "llguidance", "huggingface_hub")
NVIDIA = Path("/proc/driver/nvidia/version")  # is there when the driver is loaded
CPU_INFO = Path("/proc/cpuinfo")
MEMORY_INFO = Path("/proc/meminfo")
PINNED_BYTES = 256 << 20  # the trial of pinning
FILE_BYTES = 128 << 20  # the file whose reading is timed
PIECE_BYTES = 8 << 20  # of one read
LEAST_RAM = 4 << 30  # bytes that are free: less holds only small models
LEAST_DISK = 10 << 30  # bytes that are free for packed weights
LEAST_DISK_GBPS = 1.0  # 1e9 bytes a second: slower disks make streamed weights very slow


@dataclass(frozen=True)
class Problem:
    """Something that would go wrong or be slow, and what to do about it."""

    what: str
    remedy: str
    is_fatal: bool = False  # whether no model can be served


@dataclass(frozen=True)
class Checkup:
    """The state of this machine. Sizes are in bytes, speeds in 1e9 bytes a second."""

    version: str
    system: str
    python: str
    libraries: dict[str, str]  # names and versions; "" for one that is not installed
    cpu: str
    num_cores: int
    ram: int
    free_ram: int
    driver: str  # of NVIDIA; "" if there is none
    torch_cuda: str  # the version of CUDA that torch was built for; "" for CPUs
    device: str  # the kind of the device that computes, and what decides its rounding
    device_memory: int | None  # that is free; None where the device computes in RAM
    is_pinned: bool | None  # whether memory can be pinned; None where it need not be
    link_gbps: float | None  # from RAM to the device; None where weights need not travel
    cache: str  # its folder
    free_disk: int | None  # in the cache's folder; None if it cannot be read
    disk_gbps: float | None  # reading a file there; None if none could be written
    problems: tuple[Problem, ...]


def check_machine() -> Checkup:
    """Measure this machine. It takes some seconds, 256 MiB of memory and a file of 128 MiB."""
    problems: list[Problem] = []
    device = _device(problems)
    is_pinned, link = _pin_and_copy(device, problems)
    disk = _disk_gbps(cache_root())
    own = device.own_memory()
    found = Checkup(
        version=__version__,
        system=platform.platform(),
        python=platform.python_version(),
        libraries={name: _version(name) for name in LIBRARIES},
        cpu=_field(CPU_INFO, "model name") or platform.machine(),
        num_cores=len(os.sched_getaffinity(0)),
        ram=int((_field(MEMORY_INFO, "MemTotal") or "0 kB").split()[0]) * 1024,
        free_ram=free_ram(),
        driver=_first_line(NVIDIA),
        torch_cuda=torch.version.cuda or "",
        device=f"{device}: {device.arithmetic}",
        device_memory=None if own is None else own.free,
        is_pinned=is_pinned,
        link_gbps=link,
        cache=str(cache_root()),
        free_disk=_free_disk(cache_root()),
        disk_gbps=disk,
        problems=(),
    )
    return replace(found, problems=(*problems, *find_problems(found)))


def find_problems(found: Checkup) -> Iterator[Problem]:
    """Yield what would go wrong with the figures of a machine. Pure but for the cache's check."""
    if found.driver and not found.torch_cuda:
        yield Problem(
            "there is an NVIDIA driver, but this PyTorch is for CPUs only",
            "install PyTorch with CUDA, for example with `make serve CONSTRAINTS=`",
        )
    if found.is_pinned is False:
        yield Problem(
            "the system refuses to pin memory, so copies to the device are slow",
            "raise the limit of locked memory (`ulimit -l`, `--ulimit memlock=-1` in Docker)",
        )
    if found.free_ram < LEAST_RAM:
        yield Problem(
            f"only {size_text(found.free_ram)} of RAM are free",
            "end other programs, or raise the memory limit of the container",
        )
    try:
        check_cache()
    except ModelError as error:
        yield Problem(str(error), "see UNDERSTUDY_CACHE in the documentation", is_fatal=True)
    if found.free_disk is not None and found.free_disk < LEAST_DISK:
        yield Problem(
            f"only {size_text(found.free_disk)} are free for the cache",
            "`understudy prune` empties it, and UNDERSTUDY_CACHE moves it to another disk",
        )
    if found.disk_gbps is None:
        yield Problem(
            f"nothing can be written to the cache {found.cache}",
            "models that do not fit the device cannot be packed; set UNDERSTUDY_CACHE",
        )
    elif found.disk_gbps < LEAST_DISK_GBPS:
        yield Problem(
            f"the cache's disk reads {found.disk_gbps:.2f} GB/s",
            "weights that do not fit the RAM are read from it in every pass: use an SSD",
        )
    if not found.libraries.get("numba"):
        yield Problem(
            "numba is not installed, so a CPU expands quantized weights slowly",
            "install numba",
        )


def _device(problems: list[Problem]) -> Device:
    try:
        return choose_device(None)
    except ModelError as error:
        problems.append(Problem(str(error), "see the documentation of `device`", is_fatal=True))
        return choose_device("cpu")


def _pin_and_copy(device: Device, problems: list[Problem]) -> tuple[bool | None, float | None]:
    """Return whether memory can be pinned, and the speed of the link; None without a link."""
    if not device.has_own_memory:
        return None, None
    try:
        buffer = HostBuffer(PINNED_BYTES, "the trial of pinning")
        is_pinned = buffer.pin(device.pin)
        buffer.unpin()
        return is_pinned, copy_gbps(device)
    except (ModelError, RuntimeError) as error:  # torch's errors of devices are RuntimeErrors
        problems.append(Problem(f"copying to {device} failed: {error}", "free some of its memory"))
        return None, None


def _disk_gbps(folder: Path) -> float | None:
    """Return the speed of reading a file in a folder, without the system's cache of files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            piece = os.urandom(PIECE_BYTES)  # some disks compress
            for _ in range(FILE_BYTES // PIECE_BYTES):
                file.write(piece)
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(0)
            start = time.perf_counter()
            while file.read(PIECE_BYTES):
                pass
            return FILE_BYTES / (time.perf_counter() - start) / 1e9
    except OSError:
        return None


def _free_disk(folder: Path) -> int | None:
    existing = next((path for path in (folder, *folder.parents) if path.is_dir()), None)
    with suppress(OSError):
        return None if existing is None else shutil.disk_usage(existing).free
    return None


def _version(library: str) -> str:
    try:
        return version(library) if find_spec(library) is not None else ""
    except PackageNotFoundError:
        return ""


def _field(path: Path, name: str) -> str:
    """Return the value of the first line `name: value` of a file; "" if there is none."""
    with suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return ""


def _first_line(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip()
    return ""
