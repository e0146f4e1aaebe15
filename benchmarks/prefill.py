"""Measure long prompts: bytes over the link, time to the first token, delay of other streams.

    python -m benchmarks.prefill [--json]

`compute` is the time of the same prompt with a link of unlimited bandwidth. The bandwidth of the
limited link is chosen so that W/B equals the compute of the prompt of `--balanced` tokens, for
which the two are hardest to overlap. With this link, each prompt runs alone. Then a stream of one
token per pass runs: its usual gap between emissions is compared with the longest gap while the
longest prompt is prefilled at the same time. At last, the prompt tokens that the second turn of a
chat computes are counted.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch

from benchmarks.command import make_parser, print_figures
from benchmarks.random_model import Shape, make_checkpoint
from benchmarks.report_format import Bar, Figures, Plot, Table
from benchmarks.runs import (
    GREEDY,
    MODELS,
    UNLIMITED_GBPS,
    Run,
    Session,
    abort_requests,
    describe_machine,
    drive,
    make_request,
    ram_spec,
    session,
    step,
)
from engine.spec import DraftSpec, ModelSpec

LENGTHS = (100, 500, 2000, 8000, 16_000)
BALANCED = 2000
LONG = Shape(  # small, because strict attention over 16,000 tokens takes most of the time on a CPU
    layers=4,
    hidden=256,
    intermediate=1408,
    heads=1,
    kv_heads=1,
    head_dim=64,
    vocabulary=4096,
    context=17_408,
)
LONG_ROUNDS = 2  # for prompts longer than the balanced one, which have no bar
USUAL_PASSES = 8  # passes of the stream before the prompt is added
MOST_BYTES, MOST_TIME, LONGEST_GAP = 1.2, 1.15, 1.25
FIRST_TURN, SECOND_TURN = 150, 30  # new prompt tokens of each turn, no multiples of a page
ANSWER = 21


@dataclass(frozen=True)
class Prefill:
    """The cost of one prompt that runs alone."""

    seconds: float  # to the first token
    bytes: int  # over the link, until the ring is as full as before
    passes: int


@dataclass(frozen=True)
class Gap:
    """The gaps of a running stream while a prompt is prefilled."""

    usual_s: float  # median time between two emissions of the stream alone
    longest_s: float  # longest time between two emissions during the prefill
    admission_s: float  # from the last emission before the prompt to its first token
    passes: int


def main() -> None:
    arguments = make_parser(__doc__)
    arguments.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    arguments.add_argument("--balanced", type=int, default=BALANCED)
    options = arguments.parse_args()
    figures = measure(
        options.model or make_checkpoint(MODELS / "long", LONG).folder,
        options.lengths,
        balanced=options.balanced,
        rounds=options.rounds,
    )
    print_figures(figures, options)


def measure(folder: Path, lengths: Sequence[int], *, balanced: int, rounds: int) -> Figures:
    """Measure the unlimited and the limited link in turn; return the figures."""
    wanted = sorted({*lengths, balanced})
    with session(_make_spec(folder, UNLIMITED_GBPS)) as free:
        measure_prefill(free, balanced)  # allocates the buffers
        balance = statistics.median(measure_prefill(free, balanced).seconds for _ in range(3))
        gbps = free.streamed_bytes / balance / 1e9
        alone: dict[int, list[Prefill]] = {length: [] for length in wanted}
        compute: dict[int, list[float]] = {length: [] for length in wanted}
        with session(_make_spec(folder, gbps)) as limited:
            measure_prefill(limited, wanted[0])
            for number in range(rounds):
                for length in wanted:
                    if length <= balanced or number < LONG_ROUNDS:
                        compute[length].append(measure_prefill(free, length).seconds)
                        alone[length].append(measure_prefill(limited, length))
            gaps = [measure_gap(limited, wanted[-1]) for _ in range(rounds)]
            streamed = limited.streamed_bytes
    turn = measure_second_turn(folder)
    return _make_figures(folder, gbps, streamed, compute, alone, gaps, turn, balanced)


def measure_prefill(served: Session, length: int) -> Prefill:
    """Run a prompt to its first token; the ring is full before and after the measurement."""
    before = _await_full_ring(served)
    run = drive(
        served, [make_request("prompt", make_prompt(length), replace(GREEDY, max_tokens=1))]
    )
    return Prefill(run.seconds, _await_full_ring(served) - before, len(run.passes))


def _await_full_ring(served: Session) -> int:
    """Wait until the ring is full; return the bytes that have travelled so far."""
    gbps = served.loaded.stream.stats.ram.gbps
    unit_s = served.streamed_bytes / (gbps or 1.0) / 1e9 / len(served.loaded.plan.tiers)
    seen, now = -1, served.link_bytes
    while now != seen:
        time.sleep(2 * unit_s + 0.01)
        seen, now = now, served.link_bytes
    return now


def measure_gap(served: Session, length: int) -> Gap:
    """Add a prompt to a running stream; measure until the prompt's first token."""
    drive(served, [make_request("stream", make_prompt(64), GREEDY)], passes=2)
    usual = drive(served, passes=USUAL_PASSES)
    served.engine.add(make_request("prompt", make_prompt(length), replace(GREEDY, max_tokens=1)))
    run = Run(began=usual.times_of("stream")[-1])
    while "prompt" not in run.answered:
        step(served, run)
    abort_requests(served, ["stream"])
    return Gap(
        usual_s=statistics.median(_compute_gaps([usual.began, *usual.times_of("stream")])),
        longest_s=max(_compute_gaps([run.began, *run.times_of("stream")])),
        admission_s=run.emissions[-1].at - run.began,
        passes=len(run.passes),
    )


def measure_second_turn(folder: Path) -> dict[str, int]:
    """Run two turns of a chat with the prefix cache; return the second turn's prompt tokens."""
    spec = replace(_make_spec(folder, UNLIMITED_GBPS), prefix_cache=True)
    with session(spec) as served:
        params = replace(GREEDY, max_tokens=ANSWER)
        first = make_prompt(FIRST_TURN)
        answer = drive(served, [make_request("turn 1", first, params)]).tokens_of("turn 1")
        again = [*first, *answer, *make_prompt(SECOND_TURN)]
        run = drive(served, [make_request("turn 2", again, params)])
        stats = run.finished["turn 2"]
    return {
        "prompt": len(again),
        "new": SECOND_TURN,
        "computed": stats.prompt_tokens - stats.cached_tokens,
    }


def make_prompt(length: int) -> list[int]:
    """Return random token ids, always the same for the same length."""
    generator = torch.Generator().manual_seed(length)
    return [int(token) for token in torch.randint(16, 4000, (length,), generator=generator)]


def _compute_gaps(times: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times)]


def _make_spec(folder: Path, gbps: float) -> ModelSpec:
    return ram_spec(folder, DraftSpec("none"), gbps=gbps, max_sequences=2)


def _make_figures(
    folder: Path,
    gbps: float,
    streamed: int,
    compute: Mapping[int, Sequence[float]],
    alone: Mapping[int, Sequence[Prefill]],
    gaps: Sequence[Gap],
    turn: Mapping[str, int],
    balanced: int,
) -> Figures:
    seconds = streamed / gbps / 1e9  # W/B
    rows: list[list[int | float]] = []
    overlap: dict[int, float] = {}
    travelled: dict[int, float] = {}
    for length, runs in alone.items():
        needed = statistics.median(compute[length])
        taken = statistics.median(run.seconds for run in runs)
        travelled[length] = statistics.median(run.bytes for run in runs) / streamed
        overlap[length] = taken / max(seconds, needed)
        passes = int(statistics.median(run.passes for run in runs))
        rows.append([length, travelled[length], taken, seconds, needed, overlap[length], passes])
    usual = statistics.median(gap.usual_s for gap in gaps)
    ratio = statistics.median(gap.longest_s / gap.usual_s for gap in gaps)
    longest = max(alone)
    columns = ["prompt tokens", "bytes / W", "first token s", "W/B s", "compute s"]
    columns += ["time / max(W/B, compute)", "passes"]
    beside = ["prompt tokens", "usual gap ms", "longest gap ms", "ratio", "prefill s", "passes"]
    admitted = [longest, usual * 1e3, statistics.median(g.longest_s for g in gaps) * 1e3, ratio]
    admitted += [statistics.median(g.admission_s for g in gaps), gaps[-1].passes]
    lines = {
        name: [(float(length), ratio) for length, ratio in ratios.items()]
        for name, ratios in (("time / max(W/B, compute)", overlap), ("bytes / W", travelled))
    }
    return Figures(
        name="prefill",
        title="Long prompts",
        values={
            "model": folder.name,
            "link_gbps": gbps,
            "w_bytes": streamed,
            "rounds": len(alone[balanced]),
            "rounds_of_longer": len(alone[max(alone)]),
        },
        tables=[
            Table("A prompt alone, medians", columns, rows),
            Table("With a running stream of one token per pass, medians", beside, [admitted]),
            Table("The second turn of a chat", list(turn), [list(turn.values())]),
        ],
        bars=[
            Bar(f"{balanced} tokens: bytes / W", travelled[balanced], "<=", MOST_BYTES),
            Bar(f"{balanced} tokens: time / max(W/B, compute)", overlap[balanced], "<=", MOST_TIME),
            Bar(f"longest gap of a stream, {longest} prompt tokens", ratio, "<=", LONGEST_GAP, "x"),
            Bar("second turn: prompt tokens computed", turn["computed"], "<=", turn["new"] + 1),
        ],
        plots=[Plot("prefill", "prompt tokens", "ratio", lines, log_x=True)],
        machine=describe_machine(),
    )


if __name__ == "__main__":
    main()
