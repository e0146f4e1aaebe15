"""How close a cycle comes to its limit, and how busy the link is.

    python -m benchmarks.link [--json]

One user, greedy, trees of up to `--rows` rows (under strict numerics, every product of a pass has
64 rows, however few the draft is sure of), on a real engine behind a pretended link. A cycle is one
step of the engine: draft, pass, verification. Its limit is max(W/B, compute) + draft not hidden.
W/B is set to four times the compute, which is measured with everything resident; the draft's depth
so that drafting takes half of W/B. First the same trees with and without drafting ahead, in turn, a
round for each of some starter prompts, whose text the draft mostly knows; then shallow trees, whose
draft is a small part.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.report_format import Bar, Figures, Table
from benchmarks.runs import (
    GREEDY,
    MID,
    Session,
    chat_prompts,
    drive,
    forget,
    grown,
    machine,
    ram_spec,
    request,
    session,
)
from engine.spec import DraftSpec, ModelSpec, StreamSpec

COMPUTE_SHARE = 0.25  # of W/B
DRAFT_SHARE = 0.5  # of W/B
SHALLOW_SHARE = 0.1
PROBED_DEPTH = 9  # of the draft whose step is timed
LEARNING_PASSES = 4  # for what the engine learns of the machine, and the ring's steady state
CYCLE_AT_MOST = 1.05
DUTY_AT_LEAST = 95.0
AHEAD_AT_LEAST = 1.2


@dataclass(frozen=True)
class Link:
    """The pretended link and the figures that it was chosen by."""

    gbps: float  # B, 1e9 bytes a second
    streamed_bytes: int  # W
    compute_s: float  # of a pass over one tree, everything resident
    step_s: float  # of the draft

    @property
    def seconds(self) -> float:
        """W/B."""
        return self.streamed_bytes / self.gbps / 1e9

    def depth(self, share: float) -> int:
        """Draft steps that take this share of W/B."""
        return max(1, round(share * self.seconds / self.step_s))


@dataclass(frozen=True)
class Cycles:
    """Some cycles in steady state: means in seconds a cycle."""

    cycle_s: float
    draft_s: float  # before the pass: not hidden
    ahead_s: float  # drafted while weights travelled
    stall_s: float  # the pass waited for weights
    pass_s: float
    busy_s: float  # of the link
    tokens: float
    rows: float

    def limit(self, link: Link) -> float:
        """Seconds that a cycle takes at least, with this draft."""
        return max(link.seconds, link.compute_s) + self.draft_s

    def over_limit(self, link: Link) -> float:
        return self.cycle_s / self.limit(link)

    @property
    def duty(self) -> float:
        """Share of the time in which the link was busy, percent."""
        return 100 * self.busy_s / self.cycle_s

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.cycle_s


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    arguments.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    arguments.add_argument("--model", type=Path, help="its folder (default: the demo's, grown)")
    arguments.add_argument("--rows", type=int, default=64, help="of the tree")
    arguments.add_argument("--slots", type=int, help="of the ring (default: as planned)")
    arguments.add_argument("--cycles", type=int, default=30)
    arguments.add_argument("--rounds", type=int, default=5)
    options = arguments.parse_args()
    figures = measure(
        options.model or grown("mid", MID),
        options.rows,
        slots=options.slots,
        cycles=options.cycles,
        rounds=options.rounds,
    )
    print(json.dumps(figures.to_json()) if options.json else figures)


def measure(folder: Path, rows: int, *, slots: int | None, cycles: int, rounds: int) -> Figures:
    """All cases in turn, one prompt a round; trees of at most so many rows, their depths chosen."""
    prompts = chat_prompts("starters")[:rounds]
    assert len(prompts) == rounds, f"there are {len(prompts)} starter prompts"
    link = calibrate(folder, rows, prompts[0], cycles)
    deep = _half_of_the_link(folder, link, rows, prompts[0], slots)
    specs = {
        "shallow draft": fixed_tree(rows, link.depth(SHALLOW_SHARE)),
        "without drafting ahead": deep,
        "with drafting ahead": replace(deep, ahead=True),
    }
    found: dict[str, list[Cycles]] = {name: [] for name in specs}
    with ExitStack() as stack:
        sessions = {
            name: stack.enter_context(session(_spec(folder, own, link.gbps, slots)))
            for name, own in specs.items()
        }
        for prompt in prompts:
            for name, served in sessions.items():
                found[name].append(observe(served, prompt, cycles))
    depths = {name: own.depth or 0 for name, own in specs.items()}
    return _figures(folder, link, depths, found)


def _half_of_the_link(
    folder: Path, link: Link, rows: int, prompt: list[int], slots: int | None
) -> DraftSpec:
    """The tree whose draft takes half of W/B: a step beside a busy link takes longer than alone."""
    guess = link.depth(DRAFT_SHARE)
    with session(_spec(folder, fixed_tree(rows, guess), link.gbps, slots)) as served:
        draft_s = observe(served, prompt, PROBED_DEPTH).draft_s
    return fixed_tree(rows, max(1, round(guess * DRAFT_SHARE * link.seconds / draft_s)))


def fixed_tree(rows: int, depth: int) -> DraftSpec:
    """A draft of always so many steps and at most so many rows, as evenly wide as can be."""
    width = -(-(rows - 1) // depth)
    return DraftSpec(
        "subspec", depth=depth, width=width, branch=width, budget=rows, tuned=False, ahead=False
    )


def calibrate(folder: Path, rows: int, prompt: list[int], cycles: int) -> Link:
    """Measure compute and a draft step where nothing travels, and choose the link."""
    resident = replace(
        _spec(folder, fixed_tree(rows, PROBED_DEPTH), None, None),
        stream=StreamSpec(tier="resident"),
    )
    with session(resident) as probed:
        seen = observe(probed, prompt, cycles)
    with session(_spec(folder, DraftSpec("none"), None, None)) as travelling:
        streamed = travelling.streamed_bytes
    return Link(
        gbps=streamed / (seen.pass_s / COMPUTE_SHARE) / 1e9,
        streamed_bytes=streamed,
        compute_s=seen.pass_s,
        step_s=seen.draft_s / PROBED_DEPTH,
    )


def observe(served: Session, prompt: list[int], cycles: int) -> Cycles:
    """So many cycles of one request in steady state; then it is dropped."""
    drive(served, [request("user", prompt, GREEDY)], passes=1 + LEARNING_PASSES)
    stream = served.loaded.stream
    stream.reset_stats()
    run = drive(served, passes=cycles)
    busy = stream.stats.busy_seconds
    forget(served, ["user"])
    count = len(run.passes)
    assert count > 0, "the answer ended before the first cycle"
    return Cycles(
        cycle_s=run.seconds / count,
        draft_s=sum(stats.draft_ms for stats in run.passes) / count / 1e3,
        ahead_s=sum(stats.ahead_ms for stats in run.passes) / count / 1e3,
        stall_s=sum(stats.copy_stall_ms for stats in run.passes) / count / 1e3,
        pass_s=sum(stats.pass_ms for stats in run.passes) / count / 1e3,
        busy_s=busy / count,
        tokens=run.num_tokens / count,
        rows=sum(stats.rows for stats in run.passes) / count,
    )


def _spec(folder: Path, draft: DraftSpec, gbps: float | None, slots: int | None) -> ModelSpec:
    spec = ram_spec(folder, draft, gbps=gbps, max_sequences=1)
    return replace(spec, stream=replace(spec.stream, slots=slots))


def _figures(
    folder: Path, link: Link, depths: dict[str, int], found: dict[str, list[Cycles]]
) -> Figures:
    columns = ["case", "depth", "rows", "cycle ms", "limit ms", "over limit", "draft ms"]
    columns += ["ahead ms", "pass ms", "waited ms", "link duty %", "A", "tokens/s"]
    without, ahead = found["without drafting ahead"], found["with drafting ahead"]
    pairs = zip(ahead, without, strict=True)  # measured in turn: compared round by round
    gain = statistics.median(a.tokens_per_second / b.tokens_per_second for a, b in pairs)
    values = {
        "model": folder.name,
        "W_GB": link.streamed_bytes / 1e9,
        "B_GB_a_second": link.gbps,
        "W_over_B_ms": link.seconds * 1e3,
        "compute_ms": link.compute_s * 1e3,
        "draft_step_ms": link.step_s * 1e3,
        "draft_over_W_over_B": _median([own.draft_s for own in without]) / link.seconds,
        "rounds": len(without),
    }
    return Figures(
        name="link",
        title="Cycle time and link duty, one user",
        values=values,
        tables=[
            Table(
                "Medians of the rounds; each round a mean of its cycles",
                columns,
                [_row(name, depths[name], own, link) for name, own in found.items()],
            )
        ],
        bars=[
            Bar(
                f"cycle over its limit, {name}",
                _median([cycles.over_limit(link) for cycles in found[name]]),
                "<=",
                CYCLE_AT_MOST,
            )
            for name in ("shallow draft", "without drafting ahead")
        ]
        + [
            Bar(
                "link duty with drafting ahead",
                _median([cycles.duty for cycles in ahead]),
                ">=",
                DUTY_AT_LEAST,
                "%",
            ),
            Bar("tokens/s, drafting ahead against without", gain, ">=", AHEAD_AT_LEAST),
        ],
        machine=machine(),
    )


def _row(name: str, depth: int, rounds: Sequence[Cycles], link: Link) -> list[str | int | float]:
    figures = (
        [cycles.rows for cycles in rounds],
        [cycles.cycle_s * 1e3 for cycles in rounds],
        [cycles.limit(link) * 1e3 for cycles in rounds],
        [cycles.over_limit(link) for cycles in rounds],
        [cycles.draft_s * 1e3 for cycles in rounds],
        [cycles.ahead_s * 1e3 for cycles in rounds],
        [cycles.pass_s * 1e3 for cycles in rounds],
        [cycles.stall_s * 1e3 for cycles in rounds],
        [cycles.duty for cycles in rounds],
        [cycles.tokens for cycles in rounds],
        [cycles.tokens_per_second for cycles in rounds],
    )
    return [name, depth, *map(_median, figures)]


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


if __name__ == "__main__":
    main()
