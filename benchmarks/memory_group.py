"""A small machine inside a large one: a cgroup that bounds memory, and reads from the disk.

Linux, needs root; cgroups of version 1 and 2.
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
SAMPLE_S = 0.05  # between two looks at the anonymous memory
LEAVE_S = 20.0  # for the processes of a group to be gone


class NoMemoryGroup(Exception):
    """This machine does not let us make a memory cgroup; the message says why."""


@dataclass(frozen=True)
class _Files:
    """What one version of cgroups calls its files."""

    parent: Path
    limit: str
    no_swap: tuple[str, str | None]  # file and value; None: the limit itself
    peak: str
    anonymous: str  # key in memory.stat
    events: str  # holds "oom_kill N"
    reads_parent: Path  # where groups bound reads
    reads: str  # file of lines like "8:0 <reads_format>"
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
    """One group. Page cache counts towards its limit, and is given up when memory is short."""

    def __init__(self, files: _Files, name: str) -> None:
        self._files = files
        self.path = files.parent / name
        self._reads_path = files.reads_parent / name  # the same in version 2
        self._peak_anonymous = 0
        self._ended = Event()

    def limit(self, nbytes: int) -> None:
        """Allow the group so many bytes, and no swap."""
        name, value = self._files.no_swap
        (self.path / self._files.limit).write_text(str(nbytes))
        if (self.path / name).exists():  # a kernel without swap accounting has none
            (self.path / name).write_text(value or str(nbytes))

    def limit_reads(self, folder: Path, bytes_per_second: int) -> None:
        """Let the group read so much from the disk that holds `folder`; files in the page cache
        are free. Raises `NoMemoryGroup`."""
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
        """Start a process that is in the group, like all its children, from its first byte on."""
        paths = {self.path} | ({self._reads_path} if self._reads_path.exists() else set())
        join = "".join(f"echo $$ > {shlex.quote(str(path / 'cgroup.procs'))} && " for path in paths)
        return Popen(["/bin/sh", "-c", f'{join}exec "$0" "$@"', *command], **options)

    @property
    def peak_bytes(self) -> int:
        """The most the group held at once, page cache included."""
        path = self.path / self._files.peak
        return int(path.read_text()) if path.exists() else 0  # version 2 before Linux 5.19

    @property
    def peak_anonymous_bytes(self) -> int:
        """The most that its processes held and could not give up, by sampling."""
        return self._peak_anonymous

    @property
    def num_oom_kills(self) -> int:
        return self._table(self._files.events).get("oom_kill", 0)

    @property
    def disk_bytes(self) -> int:
        """What the processes that live now have read from storage, not from the page cache."""
        total = 0
        for pid in self._pids():
            with suppress(FileNotFoundError, ProcessLookupError):
                lines = Path(f"/proc/{pid}/io").read_text().splitlines()
                total += sum(int(x.split()[1]) for x in lines if x.startswith("read_bytes:"))
        return total

    def watch(self) -> None:
        """Sample the anonymous memory until the group is ended."""
        while not self._ended.wait(SAMPLE_S):
            now = self._table("memory.stat").get(self._files.anonymous, 0)
            self._peak_anonymous = max(self._peak_anonymous, now)

    def end(self) -> None:
        """End what is left in the group, and its watch."""
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
        """Nobody may be in the group, nor watch it."""
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
    """A new group without a limit yet; its processes are ended at the end.

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
    """The whole disk that holds a folder, as "major:minor". Raises `NoMemoryGroup`."""
    number = folder.stat().st_dev
    device = BLOCK_DEVICES / f"{os.major(number)}:{os.minor(number)}"
    if not device.exists():
        raise NoMemoryGroup(f"{folder}: is on no block device of its own, its reads have no limit")
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
