"""Run the stages that have no record yet, and print and write the summary.

    python -m benchmarks.first_gpu_run [--device cuda:0] [--only rows products] [--again failed]

The records are kept in build/first_gpu_run: a run that was interrupted goes on where it stopped.
`--device cpu` is a dry run with tiny shapes, whose times mean nothing. All of the 7 B model takes
longer: `--layers 28 --gib 8 --seconds 2400 --folder build/whole`. This file imports no torch.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path

from benchmarks.command import print_progress
from benchmarks.first_gpu_run.record import read_record
from benchmarks.first_gpu_run.stage_process import Place
from benchmarks.first_gpu_run.stages import STAGES, Stage
from benchmarks.first_gpu_run.summary import write_summary
from benchmarks.first_gpu_run.supervisor import Supervisor
from engine.process.child import child_environment

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "build" / "first_gpu_run"
SECONDS = 535.0  # nine minutes, less what ends the last stage
UNSUCCESSFUL = ("failed", "out of time")


def main() -> int:
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the stages too
    options = _parse()
    folder: Path = options.folder / options.device.partition(":")[0]
    kept = options.folder / "kept"
    place = Place(options.device, folder, kept, options.layers, options.gib)
    os.environ.update(_environment(place) | os.environ)
    wanted = _with_needed(options.only) if options.only else list(STAGES)
    pending = [stage for stage in wanted if _must_run(stage, place, options.again)]
    if left := len(wanted) - len(pending):
        print_progress(f"{left} stages have a record and are not run again (--again runs them)")
    if pending and (error := _check_device(options.device)):
        print(f"{options.device} cannot be used: {error}", file=sys.stderr)
        return 2
    supervisor = Supervisor(
        pending,
        place,
        seconds=options.seconds - (time.monotonic() - began),
        patience=max(1.0, options.seconds / SECONDS),
        on_record=lambda: write_summary(folder, options.device),  # also if this run is ended early
    )
    with child_environment():  # that of the server's engine
        without_time = supervisor.run()
    figures, path = write_summary(folder, options.device)
    print(json.dumps(figures.to_json()) if options.json else path.read_text(encoding="utf-8"))
    print_progress(f"wrote {path}")
    records = [read_record(folder, stage.name) for stage in wanted]
    failed = any(record is not None and record.status in UNSUCCESSFUL for record in records)
    return int(failed or bool(without_time))


def _parse() -> argparse.Namespace:
    names = [stage.name for stage in STAGES]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.first_gpu_run",
        description="Measure everything that a GPU has to tell, within nine minutes.",
        epilog="stages: " + "; ".join(f"{stage.name} ({stage.about})" for stage in STAGES),
    )
    parser.add_argument("--device", default="cuda:0", help="cpu: a dry run with tiny shapes")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="for records and checkpoints")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="for all stages; more also for each of them"
    )
    parser.add_argument(
        "--layers", type=int, default=Place.layers, help="of the engine's 7 B model"
    )
    parser.add_argument("--gib", type=float, default=Place.gib, help="of device memory for it")
    parser.add_argument("--only", nargs="+", choices=names, default=[], metavar="STAGE")
    parser.add_argument(
        "--again",
        nargs="+",
        choices=[*names, "failed", "all"],
        default=[],
        metavar="STAGE",
        help="stages to run although they have a record; failed: those that failed or ran out of "
        "time; all",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, not the summary")
    return parser.parse_args()


def _with_needed(names: Collection[str]) -> list[Stage]:
    """Return the stages with these names, and those that they need, in their order."""
    needed = {stage.needs for stage in STAGES if stage.name in names}
    return [stage for stage in STAGES if stage.name in names or stage.name in needed]


def _must_run(stage: Stage, place: Place, again: Collection[str]) -> bool:
    """Return whether a stage has no record, or runs although it has one."""
    record = read_record(place.folder, stage.name)
    if record is None or record.status == "running" or stage.name in again or "all" in again:
        return True
    return "failed" in again and record.status in UNSUCCESSFUL


def _environment(place: Place) -> dict[str, str]:
    """Return further variables of the stages' processes; the user's own values win."""
    return {
        "HF_HUB_OFFLINE": "1",
        "UNDERSTUDY_CACHE": str(place.kept / "cache"),
        "TRITON_CACHE_DIR": str(place.kept / "triton"),
    }


def _check_device(device: str) -> str:
    """Return why torch cannot use a device, in another process; "" if it can."""
    if device == "cpu":
        return ""
    code = f"import torch; torch.ones(1, device={device!r}).add_(1).item()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=90
        )
    except subprocess.TimeoutExpired:
        return "it does not answer within 90 seconds"
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no reason"])[-1]


if __name__ == "__main__":
    sys.exit(main())
