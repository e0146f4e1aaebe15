"""Ways in which an engine process ends, and the processes of a server."""

import contextlib
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

from benchmarks.memory_group import NoMemoryGroup, memory_group

EXHAUSTED_BYTES = 1 << 20  # of address space that are left to an engine
CHARGED_BYTES = 1 << 20  # of memory that the kernel gives to an engine before it ends it


def with_torch(server: int) -> list[int]:
    """Return the processes of a server that have loaded torch: text process and engine."""
    found = []
    for children in Path(f"/proc/{server}/task").glob("*/children"):
        for pid in children.read_text().split():
            with contextlib.suppress(OSError):  # it has just ended
                if "libtorch" in Path(f"/proc/{pid}/maps").read_text():
                    found.append(int(pid))
    return sorted(found)


def exhaust(pid: int) -> None:
    """Let the next allocations of a process fail."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + EXHAUSTED_BYTES
    resource.prlimit(pid, resource.RLIMIT_AS, (most, most))


def charge(pid: int) -> None:
    """Let the kernel end a process for lack of memory: it gets hardly any more from now on."""
    with contextlib.ExitStack() as stack:
        try:
            group = stack.enter_context(memory_group("understudy-kills"))
        except NoMemoryGroup:
            os.kill(pid, signal.SIGKILL)
            return
        group.limit(CHARGED_BYTES)
        (group.path / "cgroup.procs").write_text(str(pid))


def _sender(number: signal.Signals) -> Callable[[int], None]:
    return lambda pid: os.kill(pid, number)


WAYS: dict[str, Callable[[int], None]] = {
    "SIGKILL": _sender(signal.SIGKILL),
    "SIGABRT": _sender(signal.SIGABRT),
    "SIGSEGV": _sender(signal.SIGSEGV),
    "SIGSTOP": _sender(signal.SIGSTOP),  # the watchdog has to notice
    "no more address space": exhaust,
    "no more memory": charge,
}
MEMORY_WAYS = ("no more address space", "no more memory")  # an engine that needs none lives on
