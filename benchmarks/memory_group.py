"""A cgroup that limits the memory of processes and their reads from disk.

This needs Linux and root. Versions 1 and 2 of cgroups are supported.
"""

import os
import shlex
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from threading import Event, Thread
from typing import Any

ROOT = Path("/sys/fs/cgroup")
BLOCK_DEVICES = Path("/sys/dev/block")
SAMPLE_S = 0.05  # between two samples of the anonymous memory
LEAVE_S = 20.0  # in which the processes of a group may end by themselves


class NoMemoryGroup(Exception):
    """The cgroup cannot be made or limited on this machine; the message says why."""


@dataclass(frozen=True)
class _Files:
    """The file names of one version of cgroups."""

    parent: Path
    limit: str
    no_swap: tuple[str, str | None]  # file and value; None: the memory limit
    peak: str
    anonymous: str  # key in memory.stat
    events: str  # has a line "oom_kill N"
    reads_parent: Path  # the folder of the groups that limit reads
    reads: str  # file with lines like "8:0 <reads_format>"
    reads_format: str


_V1 = _Files(
    parent=ROOT / "memory",
    limit="memory.limit_in_bytes",
    no_swap=("memory.memsw.limit_in_bytes", None),
    peak="memory.max_usage_in_bytes",
    anonymous="rss",
    events="memory.oom_control",
    reads_parent=ROOT / "blkio",
    reads="blkio.throttle.read_bps_device",
    reads_format="{}",
)
_V2 = _Files(
    parent=ROOT,
    limit="memory.max",
    no_swap=("memory.swap.max", "0"),
    peak="memory.peak",
    anonymous="anon",
    events="memory.events",
    reads_parent=ROOT,
    reads="io.max",
    reads_format="rbps={}",
)


class MemoryGroup:
    """One cgroup. Page cache counts towards its limit, and is reclaimed when memory is short."""

    def __init__(self, files: _Files, name: str) -> None:
        self._files = files
        self.path = files.parent / name
        self._reads_path = files.reads_parent / name  # equals `path` in version 2
        self._peak_anonymous = 0
        self._ended = Event()

    def limit(self, nbytes: int) -> None:
        """Limit the group to `nbytes` bytes of memory and no swap."""
        name, value = self._files.no_swap
        (self.path / self._files.limit).write_text(str(nbytes))
        if (self.path / name).exists():  # a kernel without swap accounting has none
            (self.path / name).write_text(value or str(nbytes))

    def lift_limit(self) -> None:
        """Let the group use all memory again. The swap first: it may not be below the memory."""
        name, value = self._files.no_swap
        if (self.path / name).exists():
            (self.path / name).write_text("max" if value else "-1")
        (self.path / self._files.limit).write_text("max" if value else "-1")

    @property
    def anonymous_bytes(self) -> int:
        """Return the memory of the group that is not page cache, in bytes."""
        return self._table("memory.stat").get(self._files.anonymous, 0)

    def limit_reads(self, folder: Path, bytes_per_second: int) -> None:
        """Limit the group's reads from the disk that holds `folder`.

        Reads from the page cache are not limited. Raises `NoMemoryGroup`.
        """
        line = f"{_disk(folder)} {self._files.reads_format.format(bytes_per_second)}"
        try:
            self._reads_path.mkdir(exist_ok=True)
            (self._reads_path / self._files.reads).write_text(line)
        except OSError as error:
            raise NoMemoryGroup(
                f"{self._reads_path / self._files.reads}: reads cannot be limited "
                f"({error.strerror}). Version 1 needs the blkio controller, version 2 +io in "
                f"{ROOT / 'cgroup.subtree_control'}"
            ) from error

    def start(self, command: Sequence[str], **options: Any) -> "Popen[bytes]":
        """Start a process that belongs to the group from the start, as do its children."""
        paths = {self.path} | ({self._reads_path} if self._reads_path.exists() else set())
        join = "".join(f"echo $$ > {shlex.quote(str(path / 'cgroup.procs'))} && " for path in paths)
        return Popen(["/bin/sh", "-c", f'{join}exec "$0" "$@"', *command], **options)

    @property
    def peak_bytes(self) -> int:
        """Return the peak memory of the group in bytes, page cache included; 0 if unknown."""
        path = self.path / self._files.peak
        return (
            int(path.read_text()) if path.exists() else 0
        )  # missing before Linux 5.19 (version 2)

    @property
    def peak_anonymous_bytes(self) -> int:
        """Return the largest sample of the memory that is not page cache, in bytes."""
        return self._peak_anonymous

    @property
    def num_oom_kills(self) -> int:
        """Return how many processes of the group the kernel's OOM killer ended."""
        return self._table(self._files.events).get("oom_kill", 0)

    @property
    def disk_bytes(self) -> int:
        """Return the bytes that the running processes have read from disk, without page cache."""
        total = 0
        for pid in self._pids():
            with suppress(FileNotFoundError, ProcessLookupError):
                lines = Path(f"/proc/{pid}/io").read_text().splitlines()
                total += sum(int(x.split()[1]) for x in lines if x.startswith("read_bytes:"))
        return total

    def watch(self) -> None:
        """Sample the anonymous memory until `end` is called."""
        while not self._ended.wait(SAMPLE_S):
            now = self._table("memory.stat").get(self._files.anonymous, 0)
            self._peak_anonymous = max(self._peak_anonymous, now)

    def end(self) -> None:
        """Wait for the processes of the group, kill those that stay, and stop the sampling."""
        self._ended.set()
        deadline = time.monotonic() + LEAVE_S
        while self._pids() and time.monotonic() < deadline:
            time.sleep(SAMPLE_S)
        for pid in self._pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while self._pids():
            time.sleep(SAMPLE_S)

    def remove(self) -> None:
        """Remove the group, in which no process may be left."""
        self.path.rmdir()
        if self._reads_path.exists():
            self._reads_path.rmdir()

    def _pids(self) -> list[int]:
        return [int(line) for line in (self.path / "cgroup.procs").read_text().split()]

    def _table(self, name: str) -> dict[str, int]:
        lines = (self.path / name).read_text().splitlines()
        return {key: int(value) for key, value in (line.split()[:2] for line in lines)}


@contextmanager
def memory_group(name: str) -> Iterator[MemoryGroup]:
    """Make a group without limits for a `with` block, which ends its processes.

    Raises `NoMemoryGroup`.
    """
    group = MemoryGroup(_version(), f"{name}-{os.getpid()}")
    try:
        group.path.mkdir()
    except OSError as error:
        raise NoMemoryGroup(
            f"{group.path}: cannot be made ({error.strerror}). Run as root, on a machine or in a "
            "container whose /sys/fs/cgroup may be written"
        ) from error
    watcher = Thread(target=group.watch, name="memory group", daemon=True)
    watcher.start()
    try:
        yield group
    finally:
        group.end()
        watcher.join()
        group.remove()


def _disk(folder: Path) -> str:
    """Return the disk that holds a folder, as "major:minor". Raises `NoMemoryGroup`."""
    number = folder.stat().st_dev
    device = BLOCK_DEVICES / f"{os.major(number)}:{os.minor(number)}"
    if not device.exists():
        raise NoMemoryGroup(f"{folder}: is not on a block device, so its reads cannot be limited")
    if (device / "partition").exists():
        device = device.resolve().parent
    return (device / "dev").read_text().strip()


def _version() -> _Files:
    if (_V1.parent / _V1.limit).exists():
        return _V1
    controllers = ROOT / "cgroup.subtree_control"
    if controllers.exists() and "memory" in controllers.read_text().split():
        return _V2
    raise NoMemoryGroup(
        f"{ROOT}: no memory controller for new groups. With cgroups version 2, write +memory to "
        f"{controllers} as root"
    )
