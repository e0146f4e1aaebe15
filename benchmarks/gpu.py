"""Measure a model that does not fit the GPU: pass, draft step, tokens/s, strict numerics.

    python -m benchmarks.gpu [--shape qwen2.5-7b] [--json]

The demo's target is grown into the shape (`benchmarks.grow`), so that its drafts are accepted like
those of a trained model. The process may use at most `--cap-gib` of the device's memory. The times
are compared with what the machine can do, which is measured first: large copies from pinned RAM,
and reads of the device's own memory. The serial schedule is SubSpec's as published, with the same
kernels: depth 48, width 6, no drafting ahead, no tuning. The benchmark needs torch, transformers
and safetensors. `--device cpu --layers 2 --shape tiny` is a dry run without a GPU.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.grow import grow
from benchmarks.random_model import Shape
from benchmarks.report_format import Bar, Figures, Table
from benchmarks.runs import (
    DEMO,
    GREEDY,
    MODELS,
    Run,
    Session,
    abort_requests,
    describe_machine,
    drive,
    load_chat_prompts,
    make_request,
    session,
)
from engine.process.child import child_environment
from engine.spec import DraftSpec, MemorySpec, ModelSpec, Numerics, StreamSpec, TargetSpec

SHAPES = {
    "qwen2.5-7b": Shape(
        layers=28,
        hidden=3584,
        intermediate=18_944,
        heads=28,
        kv_heads=4,
        vocabulary=152_064,
        family="qwen2",
    ),
    "qwen2.5-32b": Shape(
        layers=64,
        hidden=5120,
        intermediate=27_648,
        heads=40,
        kv_heads=8,
        vocabulary=152_064,
        family="qwen2",
    ),
    "tiny": Shape(
        layers=8, hidden=320, intermediate=704, heads=5, kv_heads=5, head_dim=64, vocabulary=4160
    ),
}
PLANNED = 0.95  # share of the cap given to the plan; the allocator's rounding needs the rest
COPY_BYTES = 256 << 20
READ_BYTES = 1 << 30
SIMULATED_GBPS = 0.5  # the simulated link of a dry run
MOST_PASS, MOST_STEP, LEAST_GAIN = 1.05, 1.5, 1.5
NONE = DraftSpec("none")
SERIAL = DraftSpec("subspec", depth=48, width=6, ahead=False, tuned=False)
OURS = DraftSpec("subspec", depth=48, width=6)


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    shape: str
    device: str
    cap_gib: float
    layers: int | None
    passes: int
    rounds: int
    folder: Path


@dataclass(frozen=True)
class Pace:
    """The speed of one user in the steady state; medians over the passes."""

    tokens_per_second: float
    tokens_per_pass: float
    draft_ms: float
    pass_ms: float


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    arguments.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    arguments.add_argument("--shape", choices=sorted(SHAPES), default="qwen2.5-7b")
    arguments.add_argument("--device", default="cuda:0")
    arguments.add_argument("--cap-gib", type=float, default=8.0, help="GiB of device memory to use")
    arguments.add_argument("--layers", type=int, help="number of layers, in place of the shape's")
    arguments.add_argument("--passes", type=int, default=8, help="passes of each measurement")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument(
        "--folder", type=Path, default=MODELS, help="where the checkpoint is made"
    )
    given = vars(arguments.parse_args())
    as_json = given.pop("json")
    with child_environment():  # the allocator of the server's engine
        figures = measure(Options(**given))
    print(json.dumps(figures.to_json()) if as_json else figures)


def measure(options: Options) -> Figures:
    """Run all settings in turn, twice; one engine at a time, because two would exceed the cap."""
    folder = grow_checkpoint(options)
    cap_memory(options)
    link, memory = measure_link_bandwidth(options.device), measure_memory_bandwidth(options.device)
    _release_memory(options.device)
    paces: dict[str, list[Pace]] = {}
    streamed = draft_bytes = 0
    for _ in range(2):
        for name, draft, numerics in _list_settings():
            with session(_make_spec(folder, options, draft, numerics)) as served:
                own = paces.setdefault(name, [])
                own += [
                    measure_pace(served, options.passes) for _ in range(-(-options.rounds // 2))
                ]
                if name == "no draft, strict":
                    streamed = served.streamed_bytes
                elif name == "serial SubSpec":
                    draft_bytes = served.loaded.plan.draft_bytes + served.loaded.plan.resident_bytes
            _release_memory(options.device)
    bandwidth = link if options.device != "cpu" else SIMULATED_GBPS * 1e9
    return _make_figures(options, paces, streamed, draft_bytes, bandwidth, memory)


def _list_settings() -> Iterator[tuple[str, DraftSpec, Numerics]]:
    yield "no draft, strict", NONE, "strict"
    yield "no draft, fast", NONE, "fast"
    yield "serial SubSpec", SERIAL, "fast"
    yield "ours, fast", OURS, "fast"
    yield "ours, strict", OURS, "strict"


def grow_checkpoint(options: Options) -> Path:
    """Return the folder of the demo's target grown into the shape; it is made once."""
    shape = SHAPES[options.shape]
    if options.layers is not None:
        shape = replace(shape, layers=max(options.layers, _demo_layers()))
    return grow(DEMO / "target", options.folder / options.shape, shape).folder


def _demo_layers() -> int:
    layers: int = json.loads((DEMO / "target" / "config.json").read_text())["num_hidden_layers"]
    return layers


def cap_memory(options: Options) -> None:
    """Limit the device memory of this process to the cap."""
    if options.device != "cpu":
        total = torch.cuda.get_device_properties(options.device).total_memory
        share = min(1.0, options.cap_gib * 2**30 / total)
        torch.cuda.set_per_process_memory_fraction(share, torch.device(options.device))


def measure_pace(served: Session, passes: int) -> Pace:
    """Measure `passes` passes of one stream, after the prompt's pass and two more."""
    prompt = load_chat_prompts("held_out")[0]
    drive(served, [make_request("stream", prompt, GREEDY)], passes=3)
    run: Run = drive(served, passes=passes)
    abort_requests(served, ["stream"])
    return Pace(
        tokens_per_second=run.tokens_per_second,
        tokens_per_pass=run.num_tokens / len(run.passes),
        draft_ms=statistics.median(stats.draft_ms for stats in run.passes),
        pass_ms=statistics.median(stats.pass_ms for stats in run.passes),
    )


def measure_link_bandwidth(device: str) -> float:
    """Return the bytes per second of large copies from pinned RAM to the device."""
    with torch.inference_mode():
        source = torch.zeros(COPY_BYTES, dtype=torch.uint8)
        if device != "cpu":
            source = source.pin_memory()
        target = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
        seconds = _median_seconds(lambda: target.copy_(source, non_blocking=True), device)
    return COPY_BYTES / seconds


def measure_memory_bandwidth(device: str) -> float:
    """Return the bytes per second that a copy within device memory moves (reads and writes)."""
    nbytes = READ_BYTES if device != "cpu" else COPY_BYTES
    with torch.inference_mode():
        source = torch.zeros(nbytes // 2, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        seconds = _median_seconds(lambda: target.copy_(source), device)
    return nbytes / seconds


def _median_seconds(work: Callable[[], object], device: str, times: int = 10) -> float:
    taken = []
    for _ in range(times + 2):
        _synchronize(device)
        began = time.perf_counter()
        work()
        _synchronize(device)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[2:])


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def _release_memory(device: str) -> None:
    """Return freed memory to the device, so that the next engine starts with all of the cap."""
    if device != "cpu":
        torch.cuda.empty_cache()


def _make_spec(folder: Path, options: Options, draft: DraftSpec, numerics: Numerics) -> ModelSpec:
    simulated = SIMULATED_GBPS if options.device == "cpu" else None
    return ModelSpec(
        id=f"{options.shape}-{options.layers or 'all'}",
        target=TargetSpec(str(folder)),
        draft=draft,
        device=options.device,
        memory=MemorySpec(device=int(PLANNED * options.cap_gib * 2**30)),
        stream=StreamSpec(tier="ram", simulate_gbps=simulated),
        numerics=numerics,
        context_length=1024,
        max_sequences=1,
        prefix_cache=False,
    )


def _make_figures(
    options: Options,
    paces: dict[str, list[Pace]],
    streamed: int,
    draft_bytes: int,
    link: float,
    memory: float,
) -> Figures:
    median = {name: _medians(own) for name, own in paces.items()}
    whole_pass = median["no draft, strict"].pass_ms / 1e3 / (streamed / link)
    fast_pass = median["no draft, fast"].pass_ms / 1e3 / (streamed / link)
    step_s = median["serial SubSpec"].draft_ms / 1e3 / (SERIAL.depth or 1)
    step = step_s / (draft_bytes / memory)
    serial = median["serial SubSpec"].tokens_per_second
    columns = ["setting", "tokens/s", "against serial SubSpec", "A", "draft ms", "pass ms"]
    rows = [
        [name, p.tokens_per_second, p.tokens_per_second / serial, *_cells(p)]
        for name, p in median.items()
    ]
    ours = median["ours, fast"].tokens_per_second
    strict = median["ours, strict"].tokens_per_second
    return Figures(
        name="gpu",
        title=f"{options.shape} on {options.device} within {options.cap_gib:g} GiB",
        values={
            "w_bytes": streamed,
            "link_gbps": link / 1e9,
            "w_over_b_ms": streamed / link * 1e3,
            "device_memory_gbps": memory / 1e9,
            "draft_bytes_read_per_step": draft_bytes,
            "draft_step_ms": step_s * 1e3,
            "strict_loss_of_tokens_per_second": 1 - strict / ours,
            "rounds": len(paces["ours, fast"]),
        },
        tables=[Table("One user, medians of the rounds", columns, rows)],
        bars=[
            Bar("pass time / (W / measured bandwidth), strict", whole_pass, "<=", MOST_PASS),
            Bar("pass time / (W / measured bandwidth), fast", fast_pass, "<=", MOST_PASS),
            Bar("draft step / time to read its bytes", step, "<=", MOST_STEP),
            Bar("tokens/s against serial SubSpec", ours / serial, ">=", LEAST_GAIN),
        ],
        machine=describe_machine(),
    )


def _cells(pace: Pace) -> list[float]:
    return [pace.tokens_per_pass, pace.draft_ms, pace.pass_ms]


def _medians(paces: list[Pace]) -> Pace:
    names = ("tokens_per_second", "tokens_per_pass", "draft_ms", "pass_ms")
    return Pace(*(statistics.median(getattr(pace, name) for pace in paces) for name in names))


if __name__ == "__main__":
    main()
