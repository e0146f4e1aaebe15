"""Long prompts: bytes over the link and time to the first token, and what a running stream feels.

    python -m benchmarks.prefill [--json]

`compute` is the time of the same prompt where the link is never waited for; the link is set so
that W/B is the compute of the prompt `--balanced` tokens long, where the two are hardest to
overlap. Behind it: each prompt alone; then a stream of one token a pass, its usual gap between
emissions, and the longest gap while the longest prompt is admitted beside it. Last, how many
prompt tokens the second turn of a chat computes.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch

from benchmarks.command import parser, show
from benchmarks.random_model import Shape, make_checkpoint
from benchmarks.report_format import Bar, Figures, Plot, Table
from benchmarks.runs import (
    GREEDY,
    MODELS,
    UNLIMITED_GBPS,
    Run,
    Session,
    drive,
    forget,
    machine,
    ram_spec,
    request,
    session,
    step,
)
from engine.spec import DraftSpec, ModelSpec

LENGTHS = (100, 500, 2000, 8000, 16_000)
BALANCED = 2000
LONG = Shape(  # small: strict attention over 16,000 tokens is most of the time on a CPU
    layers=4,
    hidden=256,
    intermediate=1408,
    heads=1,
    kv_heads=1,
    head_dim=64,
    vocabulary=4096,
    context=17_408,
)
LONG_ROUNDS = 3  # of prompts above the balanced one, alone: they have no bar
USUAL_PASSES = 8  # of the stream, before the prompt comes
MOST_BYTES, MOST_TIME, LONGEST_GAP = 1.2, 1.15, 1.25
FIRST_TURN, SECOND_TURN = 150, 30  # prompt tokens, new in the turn; no multiples of a page
ANSWER = 21


@dataclass(frozen=True)
class Prefill:
    """One prompt, alone."""

    seconds: float  # to its first token
    bytes: int  # over the link, until the ring is again as full as it was before
    passes: int


@dataclass(frozen=True)
class Gap:
    """One admission beside a running stream."""

    usual_s: float  # median time between two emissions of the stream alone
    longest_s: float  # while the prompt was admitted
    admission_s: float
    passes: int


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    arguments.add_argument("--balanced", type=int, default=BALANCED)
    options = arguments.parse_args()
    figures = measure(
        options.model or make_checkpoint(MODELS / "long", LONG).folder,
        options.lengths,
        balanced=options.balanced,
        rounds=options.rounds,
    )
    show(figures, options)


def measure(folder: Path, lengths: Sequence[int], *, balanced: int, rounds: int) -> Figures:
    """Free and limited link in turn, round by round."""
    wanted = sorted({*lengths, balanced})
    with session(_spec(folder, UNLIMITED_GBPS)) as free:
        prefill(free, balanced)  # buffers come into being
        balance = statistics.median(prefill(free, balanced).seconds for _ in range(3))
        gbps = free.streamed_bytes / balance / 1e9
        alone: dict[int, list[Prefill]] = {length: [] for length in wanted}
        compute: dict[int, list[float]] = {length: [] for length in wanted}
        with session(_spec(folder, gbps)) as limited:
            prefill(limited, wanted[0])
            for number in range(rounds):
                for length in wanted:
                    if length <= balanced or number < LONG_ROUNDS:
                        compute[length].append(prefill(free, length).seconds)
                        alone[length].append(prefill(limited, length))
            gaps = [gap(limited, wanted[-1]) for _ in range(rounds)]
            streamed = limited.streamed_bytes
    turn = second_turn(folder)
    return _figures(folder, gbps, streamed, compute, alone, gaps, turn, balanced)


def prefill(served: Session, length: int) -> Prefill:
    """A prompt's first token, and what it cost. The ring is full before and after, as always."""
    before = _settled(served)
    run = drive(served, [request("prompt", prompt(length), replace(GREEDY, max_tokens=1))])
    return Prefill(run.seconds, _settled(served) - before, len(run.passes))


def _settled(served: Session) -> int:
    """Bytes that have travelled, once no more do: the ring is full."""
    gbps = served.loaded.stream.stats.ram.gbps
    unit_s = served.streamed_bytes / (gbps or 1.0) / 1e9 / len(served.loaded.plan.tiers)
    seen, now = -1, served.link_bytes
    while now != seen:
        time.sleep(2 * unit_s + 0.01)
        seen, now = now, served.link_bytes
    return now


def gap(served: Session, length: int) -> Gap:
    """A prompt is admitted beside a stream; prompt and stream are dropped at its first token."""
    drive(served, [request("stream", prompt(64), GREEDY)], passes=2)
    usual = drive(served, passes=USUAL_PASSES)
    served.engine.add(request("prompt", prompt(length), replace(GREEDY, max_tokens=1)))
    run = Run(began=usual.times_of("stream")[-1])
    while "prompt" not in run.answered:
        step(served, run)
    forget(served, ["stream"])
    return Gap(
        usual_s=statistics.median(_gaps([usual.began, *usual.times_of("stream")])),
        longest_s=max(_gaps([run.began, *run.times_of("stream")])),
        admission_s=run.emissions[-1].at - run.began,
        passes=len(run.passes),
    )


def second_turn(folder: Path) -> dict[str, int]:
    """A chat's second turn with the prefix cache on: what is new in it, and what was computed."""
    spec = replace(_spec(folder, UNLIMITED_GBPS), prefix_cache=True)
    with session(spec) as served:
        params = replace(GREEDY, max_tokens=ANSWER)
        first = prompt(FIRST_TURN)
        answer = drive(served, [request("turn 1", first, params)]).tokens_of("turn 1")
        again = [*first, *answer, *prompt(SECOND_TURN)]
        run = drive(served, [request("turn 2", again, params)])
        stats = run.finished["turn 2"]
    return {
        "prompt": len(again),
        "new": SECOND_TURN,
        "computed": stats.prompt_tokens - stats.cached_tokens,
    }


def prompt(length: int) -> list[int]:
    """Token ids without a meaning; the same for the same length."""
    generator = torch.Generator().manual_seed(length)
    return [int(token) for token in torch.randint(16, 4000, (length,), generator=generator)]


def _gaps(times: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times)]


def _spec(folder: Path, gbps: float) -> ModelSpec:
    return ram_spec(folder, DraftSpec("none"), gbps=gbps, max_sequences=2)


def _figures(
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
    beside = ["prompt tokens", "usual gap ms", "longest gap ms", "ratio", "admission s", "passes"]
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
            Table("Beside a running stream of one token a pass, medians", beside, [admitted]),
            Table("The second turn of a chat", list(turn), [list(turn.values())]),
        ],
        bars=[
            Bar(f"{balanced} tokens: bytes / W", travelled[balanced], "<=", MOST_BYTES),
            Bar(f"{balanced} tokens: time / max(W/B, compute)", overlap[balanced], "<=", MOST_TIME),
            Bar(
                f"longest gap of a stream, {longest} tokens admitted", ratio, "<=", LONGEST_GAP, "x"
            ),
            Bar("second turn: prompt tokens computed", turn["computed"], "<=", turn["new"] + 1),
        ],
        plots=[Plot("prefill", "prompt tokens", "ratio", lines, log_x=True)],
        machine=machine(),
    )


if __name__ == "__main__":
    main()
