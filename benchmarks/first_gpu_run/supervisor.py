"""Run the stages in processes, within a limit of time for each and for all. Imports no torch."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import connection, get_context
from multiprocessing.context import ForkServerContext, SpawnContext
from typing import Any

from benchmarks.first_gpu_run.record import Record, Status, read_record, write_record
from benchmarks.first_gpu_run.stage_process import Place, run_process
from benchmarks.first_gpu_run.stages import Stage

POLL = 0.2  # seconds
NEWS = 20.0  # seconds between two lines of progress, if nothing happens
GRACE = 4.0  # seconds beyond its limit after which a stage's processes are ended
LEAST = 8.0  # seconds: a stage is not begun with less time left
LOG_LINES = 8  # of a stage that died, in its reason


@dataclass
class _Running:
    """A process that was started for a stage, and from when on it is ended."""

    stage: Stage
    process: Any
    turn: Any
    began: float = 0.0
    limit: float = 0.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


class Supervisor:
    """The starter and watcher of the stages' processes.

    Args:
        seconds: the limit of the time of all stages together.
        patience: the factor on the limit of each stage.
        on_record: called when a stage has ended.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        place: Place,
        *,
        seconds: float,
        patience: float = 1.0,
        on_record: Callable[[], object] = lambda: None,
    ) -> None:
        self._place = place
        self._patience = patience
        self._on_record = on_record
        self._began = time.monotonic()
        self._ends = self._began + seconds
        self._pending = list(stages)
        self._running: list[_Running] = []
        self._prepared: dict[str, _Running] = {}  # processes that import while others measure
        self._context = _context(place.device, [stage.module for stage in stages])
        place.folder.mkdir(parents=True, exist_ok=True)

    def run(self) -> list[str]:
        """Run all stages, and return the names of those for which there was no time."""
        told = self._began
        try:
            while self._pending or self._running:
                self._start_what_can()
                if not self._running and self._left() < LEAST:
                    break
                sentinels = [running.process.sentinel for running in self._running]
                connection.wait(sentinels, timeout=POLL)
                self._collect()
                if time.monotonic() - told > NEWS:
                    told = time.monotonic()
                    names = ", ".join(f"{r.stage.name} {r.seconds:.0f} s" for r in self._running)
                    self._say(f"running: {names}")
        finally:
            for running in [*self._running, *self._prepared.values()]:
                self._end(running)
        left = [stage.name for stage in self._pending]
        if left:
            self._say(f"no time for: {', '.join(left)}")
        return left

    def _left(self) -> float:
        return self._ends - time.monotonic()

    def _start_what_can(self) -> None:
        for stage in list(self._pending):
            if self._left() < LEAST:
                return
            if stage.needs is not None and self._is_unfinished(stage.needs):
                continue
            if not self._fits_beside(stage):
                return  # no later stage may overtake it
            self._pending.remove(stage)
            running = self._prepared.pop(stage.name, None) or self._prepare(stage)
            running.began = time.monotonic()
            running.limit = min(stage.seconds * self._patience, self._left() - GRACE)
            write_record(self._place.folder, Record(stage.name, "running"))  # replaces an older one
            running.turn.send(running.began + running.limit)
            self._running.append(running)
            self._say(f"{stage.name}: {stage.about} (at most {running.limit:.0f} s)")
            self._prepare_next()

    def _is_unfinished(self, name: str) -> bool:
        unfinished = [*self._pending, *(running.stage for running in self._running)]
        return any(stage.name == name for stage in unfinished)

    def _fits_beside(self, stage: Stage) -> bool:
        lanes = {running.stage.lane for running in self._running}
        if stage.lane == "alone":
            return lanes <= {"host"}
        return stage.lane == "host" or "alone" not in lanes

    def _prepare_next(self) -> None:
        if self._pending and self._pending[0].name not in self._prepared:
            stage = self._pending[0]
            self._prepared[stage.name] = self._prepare(stage)

    def _prepare(self, stage: Stage) -> _Running:
        theirs, ours = self._context.Pipe(duplex=False)
        process = self._context.Process(target=run_process, args=(stage, self._place, theirs))
        process.start()
        theirs.close()
        return _Running(stage, process, ours)

    def _collect(self) -> None:
        for running in list(self._running):
            if running.process.is_alive() and running.seconds < running.limit + GRACE:
                continue
            was_alive = running.process.is_alive()
            self._end(running)
            self._running.remove(running)
            record = self._close_record(running, was_alive=was_alive)
            reason = f": {record.reason.splitlines()[-1]}" if record.reason else ""
            self._say(f"{record.stage}: {record.status} in {record.seconds:.0f} s{reason}")
            self._on_record()

    def _close_record(self, running: _Running, *, was_alive: bool) -> Record:
        """Return the record of a stage that has ended; write how, if it could not do so itself."""
        name = running.stage.name
        record = read_record(self._place.folder, name) or Record(name, "running")
        if record.status != "running":
            return record
        log = self._place.log(name)
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        status: Status
        if was_alive:
            status, reason = "out of time", f"it was ended after {running.seconds:.0f} s"
        else:
            status, reason = "failed", f"its process ended with code {running.process.exitcode}"
        reason = "\n".join([*lines[-LOG_LINES:], reason])
        record = replace(record, status=status, reason=reason, seconds=round(running.seconds, 2))
        write_record(self._place.folder, record)
        return record

    def _end(self, running: _Running) -> None:
        """End a stage's process and all that it has started, if they still run."""
        running.turn.close()
        process = running.process
        if running.began == 0.0:
            process.join(GRACE)  # it ends itself, because it never gets a turn
        process.kill()
        with suppress(ProcessLookupError):  # nothing of its session is left
            os.killpg(process.pid, signal.SIGKILL)
        process.join()

    def _say(self, line: str) -> None:
        now = time.monotonic() - self._began
        print(f"[{now:3.0f} s, {self._left():3.0f} s left] {line}", file=sys.stderr, flush=True)


def _context(device: str, modules: Sequence[str]) -> SpawnContext | ForkServerContext:
    """Return how processes are started.

    A process that uses CUDA must not be forked from one that may have started it. In a dry run a
    server imports all modules once: otherwise most of its time would be imports.
    """
    if device != "cpu":
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(sorted(set(modules)))
    return context
