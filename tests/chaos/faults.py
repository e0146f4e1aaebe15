"""How each step of the schedule is carried out, and undone."""

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import httpx

from tests.chaos.processes import is_alive, is_stopped
from tests.chaos.schedule import KINDS, Step
from tests.chaos.stage import OTHERS, DidNotStart, Stage
from tests.chaos.witnesses import Window
from tests.kills.deaths import MEMORY_WAYS, WAYS

ENOUGH_S = 8.0  # in which an engine without memory fails if it needs any
STARTS = 3  # of a front end on a sound disk, before it is a failure that it does not start
LOAD_S = 150.0  # for an answer to a load or an unload
MB = 1_000_000
DISK_FAULTS: dict[str, tuple[Sequence[str], Sequence[float]]] = {  # with their chances
    "disk: reads fail": (["read_error"], (0.05, 0.3, 1.0)),
    "disk: reads are short": (["read_short"], (0.1, 0.9)),
    "disk: files end early": (["read_end"], (0.05, 0.3)),
    "disk: bits flip": (["read_flip"], (0.01, 0.1)),
    "disk: reads stall": (["read_stall"], (0.02, 0.2)),
    "disk: full": (["write_error", "name_error"], (1.0,)),
    "disk: writes are short": (["write_short"], (0.5,)),
    "disk: writes stall": (["write_stall"], (0.2,)),
    "disk: opening fails": (["open_error"], (0.05, 0.5)),
    "disk: syncing fails": (["sync_error"], (0.5,)),
    "disk: mapping fails": (["map_error"], (0.5,)),
}
JUMPS_S = (-3600.0, 3600.0, -86_400.0 * 400, 86_400.0 * 400, 1.5, -1.5)


class Faults:
    """What is broken now, and the record of what was.

    Args:
        model: the model that witnesses ask for while no step says another one.
    """

    def __init__(self, stage: Stage, model: str) -> None:
        self.windows: list[Window] = []
        self.failures: list[str] = []
        self.skipped: list[str] = []
        self.model = model
        self._default = model
        self._stage = stage
        self._starting = asyncio.Lock()
        self._expected_end = 0  # steps that are running and may end the front end
        self._num_strikes = 0  # steps that are running and break the disk

    async def run(self, steps: Sequence[Step], began: float) -> None:
        """Carry out all steps of an act, each at its time."""
        async with asyncio.TaskGroup() as group:
            for step in steps:
                group.create_task(self._run(step, began + step.at))

    async def watch(self) -> None:
        """Start a front end again that ended without a step.

        That is a failure on a sound disk. On a broken one, a server that cannot load its first
        model ends.
        """
        while True:
            await asyncio.sleep(0.5)
            if not self._stage.is_running and not self._expected_end:
                if not self._num_strikes:
                    self.failures.append("the front end ended without a step that ends it")
                now = time.monotonic()
                await self._start_again([])
                self.windows.append(Window(-1, "front end: SIGKILL", now, time.monotonic(), True))

    async def _run(self, step: Step, at: float) -> None:
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        began, place = time.monotonic(), len(self.windows)
        self.windows.append(Window(step.number, step.kind, began, None))
        ends = KINDS[step.kind].ends_front_end
        self._expected_end += ends
        has_ended = False
        try:
            left = self._stage.descendants() if ends else []
            await self._carry_out(step)
            has_ended = ends and not self._stage.is_running
            if has_ended:
                await self._start_again(left)
        except (ProcessLookupError, FileNotFoundError):
            pass  # what it was to break has just ended
        finally:
            self._expected_end -= ends
            self.windows[place] = Window(step.number, step.kind, began, time.monotonic(), has_ended)

    async def _start_again(self, left: list[int]) -> None:
        async with self._starting:
            starts = STARTS
            while starts:
                starts -= not self._num_strikes  # a server may refuse to start on a broken disk
                try:
                    orphans = await asyncio.to_thread(self._stage.start_again, left)
                except DidNotStart as error:
                    if "Traceback" in str(error) or not starts:
                        self.failures.append(f"the server does not start again: {error}"[-3000:])
                    continue
                if orphans:
                    self.failures.append(f"{len(orphans)} processes outlived their front end")
                return

    async def _carry_out(self, step: Step) -> None:
        rng = Random(step.seed)
        who, what = step.kind.split(": ")
        processes = self._stage.processes
        pid = {"engine": processes.engine, "text": processes.text}.get(who, processes.front_end)
        if who == "disk":
            await self._strike(step, rng)
        elif who == "clock":
            await self._jump(step, rng)
        elif who == "cache":
            _DAMAGES[what](self._stage.disk / "cache", rng)
        elif who == "models":
            await self._models(what, step, rng)
        elif who == "server":
            await self._shorten_memory(step, rng)
        elif pid is None:
            self.skipped.append(f"{step.kind}: there is none")
        elif what in ("stopped", "stopped for good"):
            await _stop(pid, step.seconds)
        elif what == "no descriptors":
            await _take_descriptors(pid, step.seconds, rng.randrange(4))
        else:
            await _end(pid, what)

    async def _strike(self, step: Step, rng: Random) -> None:
        if self._stage.shim is None:
            return
        faults, chances = DISK_FAULTS[step.kind]
        if any(fault.startswith(("write", "sync")) for fault in faults):
            _flip(self._stage.disk / "cache", rng)  # so that something is written: the repair
        self._stage.shim.strike(dict.fromkeys(faults, rng.choice(chances)), rng.uniform(0.05, 3.0))
        self._num_strikes += 1
        await asyncio.sleep(step.seconds)
        self._stage.shim.strike({})
        self._num_strikes -= 1

    async def _jump(self, step: Step, rng: Random) -> None:
        if self._stage.shim is None:
            return
        self._stage.shim.shift_clock(rng.choice(JUMPS_S))
        await asyncio.sleep(step.seconds)
        if rng.random() < 0.5:
            self._stage.shim.shift_clock(0.0)

    async def _models(self, what: str, step: Step, rng: Random) -> None:
        if what == "another one":
            self.model = rng.choice([own for own in OTHERS if own != self._default])
            await asyncio.sleep(step.seconds)
            self.model = self._default
            return
        url = f"http://127.0.0.1:{self._stage.demo.address.port}/v1/models/{self._default}/{what}"
        body = {"grace": rng.choice([0, 2, 5])} if what == "unload" else {}
        with contextlib.suppress(httpx.TransportError):
            async with httpx.AsyncClient(timeout=LOAD_S) as client:
                await client.post(url, json=body)

    async def _shorten_memory(self, step: Step, rng: Random) -> None:
        group = self._stage.group
        if group is None:
            return
        for _ in range(20):
            try:
                group.limit(group.anonymous_bytes + rng.choice([4, 16, 64]) * MB)
                break
            except OSError:  # it takes memory while the kernel frees some
                await asyncio.sleep(0.1)
        await asyncio.sleep(step.seconds)
        group.lift_limit()


async def _stop(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(seconds)
    if is_stopped(pid):
        os.kill(pid, signal.SIGCONT)


async def _take_descriptors(pid: int, seconds: float, left: int) -> None:
    """Let a process open only `left` more files than it has."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    most = max(map(int, os.listdir(f"/proc/{pid}/fd"))) + 1 + left
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(most, hard), hard))
    await asyncio.sleep(seconds)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


async def _end(pid: int, way: str) -> None:
    """End a process in one of the ways of `make kill-engine`, and wait for its end."""
    ending = asyncio.create_task(asyncio.to_thread(WAYS[way], pid))
    until = time.monotonic() + ENOUGH_S
    while is_alive(pid) and time.monotonic() < until:
        await asyncio.sleep(0.05)
    if way in MEMORY_WAYS and is_alive(pid):
        os.kill(pid, signal.SIGKILL)
    await ending


def _units(cache: Path) -> list[Path]:
    return sorted(cache.glob("*/*.unit"))


def _flip(cache: Path, rng: Random) -> None:
    if units := _units(cache):
        with rng.choice(units).open("r+b") as file:
            place = rng.randrange(os.fstat(file.fileno()).st_size)
            file.seek(place)
            old = file.read(1)[0]
            file.seek(place)
            file.write(bytes([old ^ 1 << rng.randrange(8)]))


def _cut(cache: Path, rng: Random) -> None:
    if units := _units(cache):
        path = rng.choice(units)
        os.truncate(path, rng.randrange(path.stat().st_size))


def _remove(cache: Path, rng: Random) -> None:
    if units := _units(cache):
        rng.choice(units).unlink()


def _remove_entry(cache: Path, rng: Random) -> None:
    if units := _units(cache):
        shutil.rmtree(rng.choice(units).parent, ignore_errors=True)


_DAMAGES: dict[str, Callable[[Path, Random], None]] = {
    "a bit is flipped": _flip,
    "a file is cut": _cut,
    "a file is removed": _remove,
    "an entry is removed": _remove_entry,
}
