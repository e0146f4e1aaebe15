"""Compare the peak memory of an engine process with its plan.

    python -m benchmarks.plan_memory --folder /var/tmp/plan-memory --json

The benchmark makes a random llama checkpoint (1.5 B parameters, bfloat16). A new process for each
draft method loads it, runs a prompt of the largest number of tokens and then several sequences with
trees. Its peak resident memory (VmHWM) is compared with the sum of the plan's device and host
parts, which share one memory without a GPU, the runtime included. The exit code is 1 if one differs
by more than 5 %.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.random_model import Shape, make_checkpoint
from engine.malloc import keep_freed_memory
from engine.messages import Generate, SamplingParams
from engine.spec import DraftSpec, MemorySpec, ModelSpec, StreamSpec, TargetSpec

TOLERANCE = 0.05
METHODS = ("none", "subspec")
TIERS = ("disk", "ram")
MIB = 1 << 20


@dataclass(frozen=True)
class Report:
    """The figures of one process; sizes are in bytes."""

    method: str
    tier: str
    parameters: int
    planned: int
    peak: int  # VmHWM
    ratio: float
    parts: dict[str, int]  # of the plan
    after_load: int  # VmHWM after loading
    plan: str

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size / MIB:.0f}" for name, size in self.parts.items() if size)
        return (
            f"{self.method:8} {self.tier:5} peak {self.peak / MIB:7.0f} MiB, planned "
            f"{self.planned / MIB:7.0f} MiB, ratio {self.ratio:.3f}; after loading "
            f"{self.after_load / MIB:.0f}\n    ({parts})"
        )


def main() -> int:
    args = _make_parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="understudy-plan-memory-") as scratch:
        folder = args.folder or Path(scratch)
        os.environ["UNDERSTUDY_CACHE"] = str((folder / "packed").resolve())
        shape = Shape(layers=args.layers, context=args.context)
        checkpoint = make_checkpoint(folder / f"checkpoint-{args.layers}-{args.context}", shape)
        # The first run also makes the packed units and substitutes; the second run reads them.
        wanted = [(method, tier) for method in args.methods for tier in args.tiers]
        reports = [
            _run_in_process(checkpoint.folder, checkpoint.num_parameters, method, tier, args)
            for method, tier in wanted
            for _ in range(args.runs)
        ]
    if args.json:
        print(json.dumps([asdict(report) for report in reports], indent=2))
    else:
        print("\n".join(map(str, reports)))
    return int(any(abs(report.ratio - 1) > TOLERANCE for report in reports))


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plan_memory", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--folder", type=Path, help="where checkpoint and packed copies are made and kept"
    )
    parser.add_argument(
        "--layers", type=int, default=Shape().layers, help="layers of 45 M parameters each"
    )
    parser.add_argument(
        "--context", type=int, default=Shape().context, help="context length in tokens"
    )
    parser.add_argument("--device-bytes", type=int, default=None, help="memory.device of the model")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="draft methods")
    parser.add_argument("--tiers", nargs="+", default=TIERS, choices=("disk", "ram", "resident"))
    parser.add_argument("--users", type=int, default=4, help="number of sequences that run at once")
    parser.add_argument("--tokens", type=int, default=24, help="tokens of each answer")
    parser.add_argument("--runs", type=int, default=2, help="processes for each method and tier")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser


def _run_in_process(
    folder: Path, parameters: int, method: str, tier: str, args: argparse.Namespace
) -> Report:
    """Load and serve in a new process; return its figures."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_serve, folder, parameters, method, tier, args).result()


def _serve(
    folder: Path, parameters: int, method: str, tier: str, args: argparse.Namespace
) -> Report:
    keep_freed_memory()
    import torch

    from engine.runtime.engine import Engine
    from engine.runtime.load import load

    stream: dict[str, Any] = {"tier": tier}
    if tier == "ram":
        stream["simulate_gbps"] = 8.0
    spec = ModelSpec(
        id="plan-memory",
        target=TargetSpec(str(folder)),
        draft=DraftSpec(method, tuned=False),
        device="cpu",
        memory=MemorySpec(device=args.device_bytes),
        stream=StreamSpec(**stream),
        max_sequences=args.users,
    )
    with torch.inference_mode():
        loaded = load(spec, lambda step: None)
        engine = Engine(loaded)
    after_load = _read_status("VmHWM")
    plan = loaded.plan
    longest = loaded.limits.max_tokens - args.tokens - 1
    vocabulary = engine.info.vocab_size
    # A prompt as long as a pass can be, with tokens from all of the vocabulary; then several
    # sequences with trees at once.
    _run(engine, [[i * vocabulary // longest for i in range(longest)]], args.tokens)
    share = longest // args.users
    starts = range(args.users)
    prompts = [[(u * 7919 + i) % vocabulary for i in range(share)] for u in starts]
    _run(engine, prompts, args.tokens)
    peak = _read_status("VmHWM")
    engine.close()
    planned = plan.device_bytes + plan.host_bytes
    parts = {
        name: value
        for name, value in asdict(plan).items()
        if name.endswith("_bytes") and isinstance(value, int)
    }
    parts["runtime"] = plan.memory.host_runtime + plan.memory.code
    ratio = peak / planned
    return Report(method, tier, parameters, planned, peak, ratio, parts, after_load, str(plan))


def _run(engine: Any, prompts: list[list[int]], tokens: int) -> None:
    """Answer all prompts at once, sampled, with `tokens` tokens each."""
    for number, prompt in enumerate(prompts):
        params = SamplingParams(temperature=0.7, top_p=0.9, max_tokens=tokens, ignore_eos=True)
        engine.add(Generate(f"{number}", tuple(prompt), params))
    while engine.has_work():
        engine.step()


def _read_status(key: str) -> int:
    """Return the bytes in the line `key` of this process's status."""
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None, f"/proc/self/status has no line {key}"
    return int(found[1]) * 1024


if __name__ == "__main__":
    sys.exit(main())
