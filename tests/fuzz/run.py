"""One case in a forked process: what it answered, how long it took, how much memory."""

import os
import resource
import select
import shutil
import tempfile
import time
import traceback
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from signal import SIGKILL, SIGXCPU

from tests.engine.checkpoints import FAMILIES
from tests.fuzz.act import NAMES_A_FILE, act, quicken
from tests.fuzz.cases import base, make_case

CPU_SECONDS = 10  # of a case: a hang where other work shares the machine is no hang
WALL_SECONDS = 90.0
MOST_MEMORY = 1 << 30  # bytes above what the process that forks has
HARD_LIMIT = 6 << 30  # of addresses, to protect the machine


@dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    seed: int
    spoiled: str
    act: str
    verdict: str  # "answered", "refused"; else what is wrong
    said: str
    seconds: float  # of CPU time
    mebibytes: int


def prepare() -> None:
    """Import and make everything that all cases need."""
    quicken()
    for family in FAMILIES:
        base(family)
    for module in ("engine.streaming.packed_cache", "server.cli.commands", "server.cli.plan_table"):
        import_module(module)


def run_case(seed: int) -> Outcome:
    """Run a case in a process of its own."""
    place = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        spoiled, what, folder = make_case(seed, place)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reader)
            _child(writer, what, folder)
        os.close(writer)
        said = _read(reader, pid)
        _, status, usage = os.wait4(pid, 0)
        signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        seconds = usage.ru_utime + usage.ru_stime
        extra = (usage.ru_maxrss - before) * 1024
        verdict = _verdict(said, signal, extra)
        return Outcome(seed, spoiled, what, verdict, said[1:1500], round(seconds, 2), extra >> 20)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _child(writer: int, what: str, folder: Path) -> None:
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
        resource.setrlimit(resource.RLIMIT_AS, (HARD_LIMIT, HARD_LIMIT))
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        try:
            error = act(what, folder)
            said = "R" + error if error else "A"
        except BaseException:  # the very thing that is looked for
            said = "X" + traceback.format_exc()[-1400:]
        os.write(writer, said[:8000].encode(errors="replace"))
    finally:
        os._exit(0)


def _read(reader: int, pid: int) -> str:
    """Return what the child says; "H" if it does not in time, and then end it."""
    until, said = time.monotonic() + WALL_SECONDS, b""
    while True:
        ready, _, _ = select.select([reader], [], [], max(until - time.monotonic(), 0))
        if not ready:
            os.kill(pid, SIGKILL)
            said = b"H"
            break
        part = os.read(reader, 65536)
        if not part:
            break
        said += part
    os.close(reader)
    return said.decode(errors="replace")


def _verdict(said: str, signal: int | None, extra: int) -> str:
    if said.startswith("H") or signal == SIGXCPU:
        return "hang"
    if signal is not None or not said:
        return f"died ({signal})"
    if said.startswith("X") or "Traceback (most recent call last)" in said:
        return "traceback"
    if extra > MOST_MEMORY:
        return "memory"
    if said.startswith("R"):
        if not NAMES_A_FILE.search(said):
            return "names no file"
        if any(not c.isprintable() and c not in "\n\r" for c in said):
            return "not escaped"
        return "refused"
    return "answered"
