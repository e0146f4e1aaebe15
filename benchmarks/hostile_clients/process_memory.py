"""Read the memory of a server's processes from /proc.

The workers of the text process share most of their pages with it, so a page counts in proportion to
the processes that share it (PSS). For the front end and the engine, which share only libraries,
resident memory (RSS) is read from `statm`, which costs the server nothing; reading PSS walks the
page tables under the lock that the server's page faults need.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
EVERY_SECONDS = 0.05


@dataclass(frozen=True)
class Memory:
    """The bytes of memory of a server's processes."""

    front_end: int  # with its child processes except the engine
    engine: int


def read_resident_bytes(pid: int) -> int:
    """Return the resident bytes of a process, 0 if it does not exist."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):  # the process has ended or is ending
        return 0


def read_proportional_bytes(pid: int) -> int:
    """Return the bytes of a process in which shared pages count in part, 0 if it does not exist."""
    return _read_kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")


def read_anonymous_bytes(pid: int) -> int:
    """Return the resident bytes of a process that belong to no file, 0 if it does not exist."""
    return _read_kilobytes(Path(f"/proc/{pid}/status"), "RssAnon:")


def _read_kilobytes(file: Path, name: str) -> int:
    try:
        lines = file.read_text().splitlines()
    except OSError:  # the process has ended or is ending
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def list_descendants(pid: int) -> list[int]:
    """Return the ids of all descendants of a process, whichever thread started them."""
    found: list[int] = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            own = [int(word) for word in tasks.read_text().split()]
        except OSError:  # the thread has ended
            continue
        for child in own:
            found += [child, *list_descendants(child)]
    return found


class ServerMemory:
    """A reader of a server's memory that separates the engine from the other processes.

    The engine is taken to be the largest child process. This is right just after the model has been
    loaded, so this object must be made then. The engine is looked for again when it has ended.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._engine = self._largest_child()

    def read(self) -> Memory:
        """Return the memory that the server's processes use now."""
        others = list_descendants(self._pid)
        if self._engine not in others:
            self._engine = self._largest_child()
        text = sum(read_proportional_bytes(pid) for pid in others if pid != self._engine)
        return Memory(read_resident_bytes(self._pid) + text, read_resident_bytes(self._engine))

    def _largest_child(self) -> int:
        return max(list_descendants(self._pid), key=read_resident_bytes, default=0)


class PeakMemory:
    """A sampler of a server's memory, which runs in a thread during a `with` block.

    Args:
        limit: bytes of the front end beyond which `stop` is called, to save the machine.
    """

    def __init__(self, memory: ServerMemory, limit: int, stop: Callable[[], None]) -> None:
        self._memory, self._limit, self._stop = memory, limit, stop
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.before = memory.read()
        self.peak = self.before
        self.is_over_limit = False

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(EVERY_SECONDS):
            now = self._memory.read()
            self.peak = Memory(
                max(self.peak.front_end, now.front_end), max(self.peak.engine, now.engine)
            )
            if now.front_end > self._limit and not self.is_over_limit:
                self.is_over_limit = True
                self._stop()
