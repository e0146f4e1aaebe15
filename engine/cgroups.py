"""The memory cgroups of this process: what is left in them, and whom the kernel has ended."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
OOM_SCORE = 300  # as if a process held 30 % of the memory more than it does


def free_in_cgroups() -> Iterator[int]:
    """Yield the bytes left in this process's memory cgroup and each above it.

    The page cache counts as free.
    """
    for group, version in _groups():
        limits = ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",)
        for limit in limits:  # above memory.high processes are slowed down
            path = group / limit
            if path.exists() and (text := path.read_text().strip()) != "max":
                # What cannot be given up.
                anonymous = _table(group / "memory.stat")["anon" if version == 2 else "total_rss"]
                yield int(text) - anonymous


def count_kills() -> int:
    """Return a number that grows when the kernel ends a process as a cgroup has no memory left.

    The cgroups are this process's own and those above it. The number stays the same where the
    system does not count.
    """
    count = 0
    for group, version in _groups():
        with suppress(OSError, ValueError):
            events = group / ("memory.events" if version == 2 else "memory.oom_control")
            count += _table(events).get("oom_kill", 0)
    return count


def let_die_first(pid: int) -> None:
    """Let the kernel end this process before others that are as large, if memory runs out.

    It is for an engine, which is started again with a plan that fits, and whose answers go on.
    Nothing happens where the system refuses, or where the process has ended.
    """
    score = Path(f"/proc/{pid}/oom_score_adj")
    with suppress(OSError):
        if int(score.read_text()) < OOM_SCORE:
            score.write_text(str(OOM_SCORE))


def _groups() -> Iterator[tuple[Path, int]]:
    """Yield the folder of this process's memory cgroup and of each above it, with its version."""
    for line in OWN_CGROUPS.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            yield from ((folder, 1) for folder in _up_from(CGROUPS / "memory", path))
        elif not controllers:
            yield from ((folder, 2) for folder in _up_from(CGROUPS, path))


def _up_from(mount: Path, path: str) -> Iterator[Path]:
    """Yield the folders from `path` up to the mount.

    `path` may be the host's name of a group that a container sees as the mount itself.
    """
    group = mount / path.lstrip("/")
    for folder in [group, *group.parents]:
        yield folder
        if folder == mount:
            return


def _table(path: Path) -> dict[str, int]:
    """Return the values of a file with a name and a number in each line."""
    return {name: int(value) for name, value in map(str.split, path.read_text().splitlines())}
