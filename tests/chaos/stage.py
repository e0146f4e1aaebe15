"""A server that can be broken: its folders, its models, and the means to break it."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.hostile_clients.process_memory import list_descendants
from benchmarks.hostile_clients.served_demo import ServedDemo
from benchmarks.memory_group import MemoryGroup, NoMemoryGroup, memory_group
from tests.chaos.processes import ENGINES_VARIABLE, Processes, find_processes, is_alive
from tests.chaos.shim import NoCompiler, Shim
from tests.demo_server import COMPILED, ROOT

CLIENT_TIMEOUT_S = 10.0  # so that clients that stall are dropped within an act
IDLE_UNLOAD_S = 15.0
KV_DISK_BYTES = 32 << 20  # of idle KV; little, so that some of it is removed all the time
MODELS = ("disk", "disk-copies", "demo")  # one of them is loaded at the start
OTHERS = ("demo-plain", "demo-specexec", *MODELS)
# The demo's target, read from the disk in every pass.
DISK_MODELS = {
    "disk": "draft: {method: ngram}",
    "disk-copies": "draft: {method: subspec, depth: 16, width: 4, branch: 4, calibrate: false}",
}
# In which the processes of a front end that was killed must end. They notice nothing while they
# import their libraries, which takes long on a busy machine.
ORPHAN_S = 60.0


class DidNotStart(Exception):
    """The front end could not be started again; the message has the end of its log."""


@dataclass
class Stage:
    """A running server, and what breaks it.

    Args:
        disk: the folder with everything that the server reads and writes.
        shim: None: there is no compiler.
        group: None: this machine or this user has no cgroups.
        skipped: what cannot be done here, with the reason.
    """

    demo: ServedDemo
    disk: Path
    logs: Path
    shim: Shim | None
    group: MemoryGroup | None
    skipped: tuple[str, ...]

    @property
    def processes(self) -> Processes:
        """The processes of the server now."""
        return find_processes(self.demo.address.pid)

    @property
    def is_running(self) -> bool:
        """Whether the front end has not ended."""
        return is_alive(self.demo.address.pid)

    def start_again(self, left: list[int]) -> list[int]:
        """Start a server whose front end has ended. Raises `DidNotStart`.

        Args:
            left: its other processes.

        Return those of them that had to be killed, because they did not end by themselves.
        """
        alive = _wait_for_end(left)
        try:
            self.demo.ensure_running()
        except ChildProcessError as error:
            raise DidNotStart(str(error)) from error
        return alive

    def descendants(self) -> list[int]:
        """Return the ids of all processes that the front end has started."""
        return list_descendants(self.demo.address.pid)


@contextmanager
def staged(folder: Path, model: str, seed: int) -> Iterator[Stage]:
    """Serve a model, with means to break the server, during a `with` block."""
    disk, logs, tools = folder / "disk", folder / "logs", folder / "tools"
    for own in (disk, logs, tools):
        own.mkdir()
    environment = _make_disk(disk)
    skipped: list[str] = []
    with ExitStack() as stack:
        shim = group = None
        try:
            shim = Shim(tools, disk, seed)
            environment |= shim.environment
        except NoCompiler as error:
            skipped.append(f"faults of disk and clock: {error}")
        try:
            group = stack.enter_context(memory_group("understudy-chaos"))
        except NoMemoryGroup as error:
            skipped.append(f"shortness of memory: {error}")
        os.environ.pop(ENGINES_VARIABLE, None)  # it shows which process is the engine
        demo = ServedDemo(logs, CLIENT_TIMEOUT_S, model=model, environment=environment, group=group)
        stack.callback(demo.kill)
        yield Stage(demo, disk, logs, shim, group, tuple(skipped))
        if shim is not None:
            shim.strike({})
        demo.stop()


def _make_disk(disk: Path) -> dict[str, str]:
    """Fill the folder of everything that a server reads and writes; return its environment."""
    shutil.copytree(ROOT / "configs", disk / "configs")
    models = disk / "configs" / "models"
    text = (models / "demo-plain.yaml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith(("draft:", "stream:"))]
    for name, draft in DISK_MODELS.items():
        own = [*lines, draft, "stream: {tier: disk}"]
        (models / f"{name}.yaml").write_text("\n".join(own) + "\n")
    for file in models.glob("*.yaml"):
        limits = f"idle_unload: {IDLE_UNLOAD_S:g}\nmemory: {{kv_disk: {KV_DISK_BYTES}}}\n"
        file.write_text(file.read_text() + limits)
    for name in ("cache", "tmp", "state", "config"):
        (disk / name).mkdir()
    COMPILED.mkdir(parents=True, exist_ok=True)
    (disk / "cache" / COMPILED.name).symlink_to(COMPILED)
    return {
        "UNDERSTUDY_CONFIG": str(disk / "configs"),
        "UNDERSTUDY_CACHE": str(disk / "cache"),
        "XDG_STATE_HOME": str(disk / "state"),
        "XDG_CONFIG_HOME": str(disk / "config"),
        "TMPDIR": str(disk / "tmp"),
        "OMP_NUM_THREADS": "1",
    }


def _wait_for_end(pids: list[int]) -> list[int]:
    """Wait until processes have ended. Kill those that have not in time, and return them."""
    until = time.monotonic() + ORPHAN_S
    while (alive := [pid for pid in pids if is_alive(pid)]) and time.monotonic() < until:
        time.sleep(0.1)
    for pid in alive:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return alive
