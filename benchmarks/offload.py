"""Compare our engine with other engines on a model that does not fit into memory.

    python -m benchmarks.offload --folder build/benchmarks/offload [--json]

The demo's target, grown to 1.5 B parameters (bfloat16, the same function), is on disk. Each engine
runs in its own process with the same limits: memory of 60 % of the checkpoint, and a bandwidth for
reads from disk. The files are evicted from the page cache first. The engines run in turn in each
round; figures are medians over the rounds. The second table has no limit on reads; in the third all
weights are resident. This needs root and the environment of the other engines (`make bench-peers`).
The files stay in the folder and are used again.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.grow import LARGE, SMALL, grow
from benchmarks.memory_group import MemoryGroup, NoMemoryGroup, memory_group
from benchmarks.offload_report import Round, Trial, make_figures
from benchmarks.peers.engines import (
    OURS,
    PEERS,
    Files,
    Length,
    RoundProcesses,
    Setting,
    Start,
    num_recorded,
)
from benchmarks.peers.job import Job, Outcome
from benchmarks.random_model import Checkpoint, Shape, forget_pages
from benchmarks.recording import read_recordings

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "configs" / "demo"
MEMORY_SHARE = 0.6
READ_GBPS = 1.0
PROBE_S = 2.0
LOG_LINES = 8  # lines of a failed engine's log that are shown


class RunFailed(Exception):
    """A process failed or did not answer in time; the message says why."""


@dataclass(frozen=True)
class Progress:
    """A progress report on standard error: what runs, and the estimated time left."""

    total: int  # processes to run
    began: float = field(default_factory=time.monotonic)

    def show(self, done: int, what: str) -> None:
        """Print the name of the next process, after `done` processes have ended."""
        seconds = time.monotonic() - self.began
        left = f", about {(self.total - done) * seconds / done / 60:.0f} min left" if done else ""
        print(f"[{done}/{self.total}{left}] {what}", file=sys.stderr, flush=True)


def main() -> int:
    args = _make_parser().parse_args()
    files = Files(args.folder)
    args.folder.mkdir(parents=True, exist_ok=True)
    try:
        checkpoint = prepare(files, args)
        rounds = list(measure(files, checkpoint, args))
    except (NoMemoryGroup, RunFailed) as error:
        print(f"offload: {error}", file=sys.stderr)
        return 1
    recordings = read_recordings(files.recordings)
    result = make_figures(rounds, checkpoint, recordings, _length(args))
    print(json.dumps(result.to_json()) if args.json else f"{result.title}\n\n{result}")
    return 0


def prepare(files: Files, args: argparse.Namespace) -> Checkpoint:
    """Make the missing files: checkpoints, recordings, llama.cpp's files."""
    shape = Shape(**{**vars(LARGE), "layers": args.layers})
    checkpoint = grow(SOURCE / "target", files.target, shape)
    grow(SOURCE / "draft", files.draft, SMALL)
    tokens = num_recorded(_length(args))
    recorded = read_recordings(files.recordings) if files.recordings.exists() else []
    is_older = recorded and files.recordings.stat().st_mtime < _get_made_time(checkpoint)
    if not recorded or is_older or len(recorded[0].answer) < tokens:
        command = [sys.executable, "-m", "benchmarks.recording", str(files.target)]
        _run_step([*command, str(files.recordings), "--tokens", str(tokens)])
    if any(engine.startswith("llama.cpp") for engine in args.engines):
        for path in files.gguf.values():
            if path.exists() and path.stat().st_mtime < _get_made_time(checkpoint):
                path.unlink()
        outputs = {name: str(path) for name, path in files.gguf.items()}
        job = files.folder / "gguf.job.json"
        Job(str(files.target), (), (), outputs).write(job)
        _run_step([args.peers_python, "-m", "benchmarks.peers.gguf_file", str(job)])
    return checkpoint


def measure(files: Files, checkpoint: Checkpoint, args: argparse.Namespace) -> Iterator[Round]:
    """Yield the rounds of each setting; a round runs all engines in turn."""
    limit = int(checkpoint.nbytes * args.memory_share)
    settings = {
        "limited": Setting("limited", limit, args.read_gbps),
        "unlimited reads": Setting("unlimited reads", limit, None),
        "resident": Setting("resident", None, None),
    }
    recordings = read_recordings(files.recordings)
    plan = [(name, number) for name in args.settings for number in range(args.runs)]
    progress, done = Progress(len(plan) * len(args.engines)), 0
    for name, number in plan:
        setting = settings[name]
        contest = RoundProcesses(
            files,
            setting,
            recordings,
            _length(args),
            args.peers_python,
            args.spare_mb << 20,
            number,
        )
        probe = run(contest.probe(PROBE_S), setting, files, args.timeout)
        trials = []
        for engine in args.engines:
            progress.show(done, f"{name}, round {number + 1}: {engine}")
            try:
                trials.append(run(contest.start(engine), setting, files, args.timeout))
            except RunFailed as error:
                print(f"offload: {engine}: {error}", file=sys.stderr)
            done += 1
        gbps = float(probe.outcome.figures["gbps"])
        yield Round(setting, gbps, tuple(trials), os.getloadavg()[0])


def run(start: Start, setting: Setting, files: Files, timeout: float) -> Trial:
    """Run one process within the setting's limits. Raises `RunFailed`."""
    job = files.folder / f"{start.module}.job.json"
    start.job.write(job)
    limited = setting.limit_bytes is not None
    if limited:
        forget_pages(files.folder)
    with memory_group("understudy-offload") if limited else nullcontext() as group:
        if group is not None:
            _limit(group, setting, files)
        output = _run_process(start, job, group, timeout)
        peak = group.peak_anonymous_bytes if group is not None else 0
    return Trial(start.engine, Outcome.parse(output), peak)


def _limit(group: MemoryGroup, setting: Setting, files: Files) -> None:
    assert setting.limit_bytes is not None, "the setting has limits"
    group.limit(setting.limit_bytes)
    if setting.read_gbps is not None:
        group.limit_reads(files.folder, int(setting.read_gbps * 1e9))


def _run_process(start: Start, job: Path, group: MemoryGroup | None, timeout: float) -> str:
    """Run the process and return what it printed. Raises `RunFailed`."""
    environment = {**os.environ, **start.environment}
    log = job.with_suffix(".log")
    with log.open("wb") as lines:
        command = start.command(job)
        options = {"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE, "stderr": lines}
        process = (
            group.start(command, **options)
            if group is not None
            else subprocess.Popen(command, **options)  # type: ignore[call-overload]  # by name
        )
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise RunFailed(f"no answer within {timeout:.0f} s") from error
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        kills = group.num_oom_kills if group is not None else 0
        last = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        raise RunFailed("\n".join([f"exit code {process.returncode}, {kills} OOM kills", *last]))
    return str(output.decode())


def _run_step(command: Sequence[str]) -> None:
    """Run a step of the preparation. Raises `RunFailed`."""
    print("offload:", " ".join(command), file=sys.stderr, flush=True)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunFailed(
            f"{' '.join(command)}:\n" + "\n".join(done.stderr.splitlines()[-LOG_LINES:])
        )


def _get_made_time(checkpoint: Checkpoint) -> float:
    return (checkpoint.folder / "config.json").stat().st_mtime


def _length(args: argparse.Namespace) -> Length:
    return Length(**json.loads(args.length)) if args.length else Length()


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.offload", description=(__doc__ or "").split("\n")[0]
    )
    settings = ("limited", "unlimited reads", "resident")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "benchmarks" / "offload")
    parser.add_argument(
        "--peers-python", default=".venv-peers/bin/python", help="of the other engines"
    )
    parser.add_argument("--engines", nargs="+", default=[*OURS, *PEERS], choices=[*OURS, *PEERS])
    parser.add_argument("--settings", nargs="+", default=settings, choices=settings)
    parser.add_argument("--runs", type=int, default=5, help="rounds of each setting")
    parser.add_argument(
        "--layers", type=int, default=LARGE.layers, help="layers of 45 M parameters each"
    )
    parser.add_argument("--memory-share", type=float, default=MEMORY_SHARE)
    parser.add_argument("--read-gbps", type=float, default=READ_GBPS)
    parser.add_argument(
        "--spare-mb", type=int, default=450, help="MiB of the limit kept free of weights"
    )
    parser.add_argument("--length", help='tokens and passes, as JSON: {"plain": 2, "replayed": 2}')
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one process")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
