"""The process of one stage: it imports the stage, waits for its turn, runs it and keeps its record.

It imports torch only when a process has been started for a stage.
"""

import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.first_gpu_run.record import Record, Results, Status, write_record
from benchmarks.first_gpu_run.stages import Stage

MARGIN = 3.0  # seconds before its limit in which a stage ends itself
REASON_LINES = 12  # of a traceback


@dataclass(frozen=True)
class Place:
    """Where stages run and write, and the size of the engine's model.

    Args:
        folder: for records and logs.
        kept: for checkpoints and caches, which later runs use again.
        layers: those of the 7 B model that the engine serves.
        gib: the device memory that the engine may use.
    """

    device: str
    folder: Path
    kept: Path
    layers: int = 8
    gib: float = 4.0

    def log(self, stage: str) -> Path:
        """Return the path of a stage's log."""
        return self.folder / "logs" / f"{stage}.log"


def run_process(stage: Stage, place: Place, turn: "Connection[Any, Any]") -> None:
    """Run a stage when its turn comes; this is the whole work of a process.

    Args:
        turn: receives the time, by `time.monotonic`, at which the stage must have ended; it is
            closed if the stage must not run.
    """
    os.setsid()  # the supervisor ends the whole session, with processes that the stage has started
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides
    _redirect(place.log(stage.name))
    faulthandler.enable()
    failure = ""
    try:
        work = import_module(stage.module).run
    except Exception:  # a module that cannot be imported fails its stage, with its reason
        failure = _last_traceback()
    try:
        end = float(turn.recv())
    except EOFError:
        return
    if failure:
        write_record(place.folder, Record(stage.name, "failed", failure))
    else:
        run_stage(stage, place, end, work)


def run_stage(stage: Stage, place: Place, end: float, work: Callable[[Any, Results], None]) -> None:
    """Run a stage in this process and write its record, also while it runs.

    Args:
        end: when it must have ended, by `time.monotonic`.
    """
    import torch

    from benchmarks.first_gpu_run.lab import CannotRun, Lab, OutOfTime
    from engine.compiled.compiler import switched_off

    began = time.monotonic()
    # Where a stage hangs is in its log before the supervisor ends it.
    faulthandler.dump_traceback_later(max(end - began - 1, 0.1))

    def save(status: Status = "running", reason: str = "") -> None:
        taken = round(time.monotonic() - began, 2)
        write_record(place.folder, Record(stage.name, status, reason, taken, results))

    results = Results(save)
    save()
    try:
        torch.manual_seed(0)
        lab = Lab(
            place.device,
            kept=place.kept,
            folder=place.folder,
            layers=place.layers,
            cap_bytes=int(place.gib * 2**30),
            part=stage.part,
            deadline=end - MARGIN,
        )
        if not lab.is_dry:
            torch.cuda.set_device(lab.device)
        # A dry run takes the operations that a GPU has, and saves the time of compiling others.
        with torch.inference_mode(), switched_off() if lab.is_dry else nullcontext():
            work(lab, results)
            lab.synchronize()
    except CannotRun as reason:
        save("skipped", str(reason))
    except OutOfTime:
        save("out of time", "it ended itself: the rest of its figures is missing")
    except Exception:  # whatever a stage raises is its result, and other stages go on
        save("failed", _last_traceback())
    else:
        save("done")
    finally:
        faulthandler.cancel_dump_traceback_later()


def _redirect(path: Path) -> None:
    """Let this process write all its output to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())


def _last_traceback() -> str:
    text = traceback.format_exc()
    print(text, file=sys.stderr, flush=True)
    return "\n".join(text.splitlines()[-REASON_LINES:])
