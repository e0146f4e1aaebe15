"""A stage that ends as its part says, for the tests of the GPU run's supervisor."""

import os
import signal
import time
from pathlib import Path

from benchmarks.first_gpu_run.lab import CannotRun, Lab
from benchmarks.first_gpu_run.record import Results, read_record


def run(lab: Lab, out: Results) -> None:
    """Record a figure, then end well or badly; another figure is recorded at a good end."""
    out["first"] = 1
    print("this is the log of", lab.part, flush=True)
    kind, _, other = lab.part.partition(" until ")
    match kind:
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hangs":
            _start_child(lab.folder / "child")
            time.sleep(600)
        case "raises":
            raise ValueError("the shape is wrong")
        case "cannot":
            raise CannotRun("there is no such device")
        case "slow":
            while True:
                lab.check()
        case "runs":  # until another stage has begun
            while read_record(lab.folder, other) is None:
                lab.check()
    out["last"] = time.monotonic()


def _start_child(path: Path) -> None:
    """Start a process that would outlive the stage, and write its id."""
    child = os.fork()
    if child == 0:
        time.sleep(600)
        os._exit(0)
    path.write_text(str(child))
