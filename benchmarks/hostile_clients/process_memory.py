"""The resident memory (RSS) of a server's processes, read from /proc.

RSS counts pages of shared libraries in every process, so figures are compared with those of the
same processes before. It is read from `statm`, which costs the server nothing; reading PSS walks
the page tables under the lock that the server's own page faults need.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
EVERY_SECONDS = 0.02


@dataclass(frozen=True)
class Memory:
    """Resident bytes."""

    front_end: int  # with its child processes, the engine left out
    engine: int


def resident(pid: int) -> int:
    """Return the resident bytes of a process, 0 if there is none."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):  # it ended, or ends
        return 0


def children(pid: int) -> list[int]:
    """Return the child processes of a process, of whichever of its threads, and theirs."""
    found: list[int] = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            own = [int(word) for word in tasks.read_text().split()]
        except OSError:  # the thread has ended
            continue
        for child in own:
            found += [child, *children(child)]
    return found


class ServerMemory:
    """Tell the engine's memory from the rest of the server's.

    The engine's process is the largest child when the model has just been loaded, which is when
    this object must be made, and again when that process has ended.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._engine = self._largest_child()

    def read(self) -> Memory:
        sizes = {pid: resident(pid) for pid in children(self._pid)}
        if not sizes.get(self._engine):
            self._engine = self._largest_child()
        engine = sizes.pop(self._engine, 0)
        return Memory(resident(self._pid) + sum(sizes.values()), engine)

    def _largest_child(self) -> int:
        return max(children(self._pid), key=resident, default=0)


class PeakMemory:
    """Sample the memory of a server in a thread, within a `with` block.

    Args:
        limit: bytes of the front end at which `stop` is called, so that the machine survives.
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
