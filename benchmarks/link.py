"""Measure how close a cycle comes to its limit, and how busy the link is.

    python -m benchmarks.link [--json]

One user asks for greedy answers of a real engine with a simulated link. A cycle is one step of the
engine: draft, pass, verification. Its limit is max(W/B, compute) + the draft time that is not
hidden. The bandwidth is chosen so that W/B is four times the compute, which is measured with all
weights resident; the draft's depth is chosen so that drafting takes half of W/B.

The bars concern the mechanism, so they are measured on a text that the draft always predicts, in
trees of `--rows` rows (`benchmarks.known_text`), with and without drafting ahead in turn,
`--cycles` cycles each in every round. The second table has the same figures on starter prompts,
most of whose text the draft predicts. There, a pass that accepts only a part of its path discards
what was drafted below the rest. It also has self-tuned trees, as they are served.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.command import make_parser, print_figures
from benchmarks.known_text import counting_model, counting_prompt, fill_trees
from benchmarks.report_format import Bar, Figures, Table
from benchmarks.runs import (
    GREEDY,
    MID,
    MODELS,
    Session,
    abort_requests,
    describe_machine,
    drive,
    grow_demo,
    load_chat_prompts,
    make_request,
    ram_spec,
    session,
)
from engine.spec import DraftSpec, ModelSpec, StreamSpec

COMPUTE_SHARE = 0.25  # compute / (W/B)
DRAFT_SHARE = 0.5  # draft time / (W/B)
WIDTH = 4  # rows of a draft step
PROBED_DEPTH = 9  # depth of the draft whose step is timed
PROBED_CYCLES = 10
CORRECTIONS = 2  # of the depth: a step during a transfer takes longer than alone
LEARNING_PASSES = 4  # until the engine has measured this machine and the ring is steady
PROMPT_TOKENS = 32  # prompt of the counting text
CYCLE_AT_MOST = 1.05
DUTY_AT_LEAST = 95.0
AHEAD_AT_LEAST = 1.2
SERIAL, AHEAD = "without drafting ahead", "with drafting ahead"
TUNED = "self-tuned, with drafting ahead"


@dataclass(frozen=True)
class Text:
    """A model and the prompts that it continues."""

    folder: Path
    prompts: Sequence[list[int]]
    filler_rows: int | None = None  # rows of every tree, filled up with wrong tokens


@dataclass(frozen=True)
class Link:
    """The simulated link, and the measurements that its bandwidth was chosen from."""

    gbps: float  # B, 1e9 bytes a second
    streamed_bytes: int  # W
    compute_s: float  # of a pass over one tree, everything resident
    step_s: float  # of the draft

    @property
    def seconds(self) -> float:
        """Return W/B, the seconds that the weights of one pass travel."""
        return self.streamed_bytes / self.gbps / 1e9

    def depth(self, share: float) -> int:
        """Return the number of draft steps that take `share` of W/B."""
        return max(1, round(share * self.seconds / self.step_s))


@dataclass(frozen=True)
class Cycles:
    """Means over cycles in the steady state; times are seconds per cycle."""

    cycle_s: float
    draft_s: float  # drafting before the pass, which is not hidden
    ahead_s: float  # drafting during the transfer of weights
    stall_s: float  # the pass waited for weights
    pass_s: float
    busy_s: float  # the link was busy
    tokens: float
    rows: float

    def limit(self, link: Link) -> float:
        """Return the least seconds that a cycle with this draft can take."""
        return max(link.seconds, link.compute_s) + self.draft_s

    def over_limit(self, link: Link) -> float:
        """Return the duration of a cycle divided by its limit."""
        return self.cycle_s / self.limit(link)

    @property
    def duty(self) -> float:
        """Return the percentage of the time in which the link was busy."""
        return 100 * self.busy_s / self.cycle_s

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.cycle_s


Found = Mapping[str, Sequence[Cycles]]  # case -> the cycles of each round


def main() -> None:
    arguments = make_parser(__doc__)
    arguments.add_argument("--rows", type=int, default=64, help="rows of the tree")
    arguments.add_argument("--slots", type=int, help="slots of the ring (default: as planned)")
    arguments.add_argument("--cycles", type=int, default=30)
    arguments.add_argument("--text-cycles", type=int, default=10, help="cycles on starter prompts")
    options = arguments.parse_args()
    folder = options.model or grow_demo("mid", MID)
    figures = measure(
        Text(counting_model(MODELS / "counting", MID).folder, [counting_prompt(PROMPT_TOKENS)]),
        Text(folder, load_chat_prompts("starters")),
        options.rows,
        slots=options.slots,
        cycles=(options.cycles, options.text_cycles),
        rounds=options.rounds,
    )
    print_figures(figures, options)


def measure(
    known: Text, chat: Text, rows: int, *, slots: int | None, cycles: tuple[int, int], rounds: int
) -> Figures:
    """Measure the predictable text, then the chats; return the figures.

    Args:
        rows: the most rows of a tree.
        slots: slots of the ring; None: as planned.
        cycles: cycles on the predictable text, and on the chats.
    """
    known = replace(known, filler_rows=rows)
    link = calibrate(known, rows, slots)
    deep = _choose_draft(known, link, rows, slots)
    depth = deep.depth or 1
    ahead = replace(deep, ahead=True)
    cases = {SERIAL: deep, AHEAD: ahead}
    chat_cases = {**cases, TUNED: replace(ahead, depth=2 * depth, tuned=True)}
    found = _measure_in_turn(known, cases, link, slots, cycles[0], rounds)
    found_in_chat = _measure_in_turn(chat, chat_cases, link, slots, cycles[1], rounds)
    return _make_figures(chat.folder, link, depth, found, found_in_chat)


def _measure_in_turn(
    text: Text,
    cases: Mapping[str, DraftSpec],
    link: Link,
    slots: int | None,
    cycles: int,
    rounds: int,
) -> Found:
    """Measure all cases in turn in each round; each round has the next prompt."""
    found: dict[str, list[Cycles]] = {name: [] for name in cases}
    with ExitStack() as stack:
        sessions = {
            name: _open(stack, text, _make_spec(text.folder, draft, link.gbps, slots))
            for name, draft in cases.items()
        }
        for number in range(rounds):
            prompt = text.prompts[number % len(text.prompts)]
            for name, served in sessions.items():
                found[name].append(measure_cycles(served, prompt, cycles))
    return found


def _choose_draft(text: Text, link: Link, rows: int, slots: int | None) -> DraftSpec:
    """Return the draft that takes half of W/B, corrected by measurements with this link."""
    depth = link.depth(DRAFT_SHARE)
    for _ in range(CORRECTIONS):
        with ExitStack() as stack:
            spec = _make_spec(text.folder, make_fixed_draft(rows, depth), link.gbps, slots)
            seen = measure_cycles(_open(stack, text, spec), text.prompts[0], PROBED_CYCLES)
        better = max(1, round(depth * DRAFT_SHARE * link.seconds / seen.draft_s))
        if better == depth:
            break
        depth = better
    return make_fixed_draft(rows, depth)


def make_fixed_draft(rows: int, depth: int) -> DraftSpec:
    """Return a draft of exactly `depth` steps, with at most `rows` rows in its tree."""
    return DraftSpec(
        "subspec", depth=depth, width=WIDTH, branch=WIDTH, budget=rows, tuned=False, ahead=False
    )


def calibrate(text: Text, rows: int, slots: int | None) -> Link:
    """Choose the link from the times of a pass and a draft step with all weights resident."""
    spec = _make_spec(text.folder, make_fixed_draft(rows, PROBED_DEPTH), None, slots)
    with ExitStack() as stack:
        resident = replace(spec, stream=StreamSpec(tier="resident"))
        seen = measure_cycles(_open(stack, text, resident), text.prompts[0], PROBED_CYCLES)
    with session(replace(spec, draft=DraftSpec("none"))) as travelling:
        streamed = travelling.streamed_bytes
    return Link(
        gbps=streamed / (seen.pass_s / COMPUTE_SHARE) / 1e9,
        streamed_bytes=streamed,
        compute_s=seen.pass_s,
        step_s=seen.draft_s / PROBED_DEPTH,
    )


def measure_cycles(served: Session, prompt: list[int], cycles: int) -> Cycles:
    """Measure `cycles` cycles of one request in the steady state, then abort it."""
    drive(served, [make_request("user", prompt, GREEDY)], passes=1 + LEARNING_PASSES)
    stream = served.loaded.stream
    stream.reset_stats()
    run = drive(served, passes=cycles)
    busy = stream.stats.busy_seconds
    abort_requests(served, ["user"])
    count = len(run.passes)
    assert count > 0, "the answer ended before the first cycle"

    def mean(name: str) -> float:
        return statistics.fmean(getattr(stats, name) for stats in run.passes)

    return Cycles(
        cycle_s=run.seconds / count,
        draft_s=mean("draft_ms") / 1e3,
        ahead_s=mean("ahead_ms") / 1e3,
        stall_s=mean("copy_stall_ms") / 1e3,
        pass_s=mean("pass_ms") / 1e3,
        busy_s=busy / count,
        tokens=run.num_tokens / count,
        rows=mean("rows"),
    )


def _open(stack: ExitStack, text: Text, spec: ModelSpec) -> Session:
    served = stack.enter_context(session(spec))
    if text.filler_rows is not None:
        fill_trees(served, text.filler_rows)
    return served


def _make_spec(folder: Path, draft: DraftSpec, gbps: float | None, slots: int | None) -> ModelSpec:
    spec = ram_spec(folder, draft, gbps=gbps, max_sequences=1)
    return replace(spec, stream=replace(spec.stream, slots=slots))


def _make_figures(
    chat: Path, link: Link, depth: int, found: Found, found_in_chat: Found
) -> Figures:
    values = {
        "W_GB": link.streamed_bytes / 1e9,
        "B_GB_per_second": link.gbps,
        "W_over_B_ms": link.seconds * 1e3,
        "compute_ms": link.compute_s * 1e3,
        "draft_depth": depth,
        "draft_over_W_over_B": _median(found[SERIAL], lambda c: c.draft_s) / link.seconds,
        "rounds": len(found[SERIAL]),
    }
    return Figures(
        name="link",
        title="Cycle time and link duty, one user",
        values=values,
        tables=[
            _make_table("Text that the draft always predicts, medians of the rounds", found, link),
            _make_table(f"Starter prompts, model {chat.name}, medians", found_in_chat, link),
        ],
        bars=[
            *(
                Bar(
                    f"cycle over its limit, {name}",
                    _median(found[name], lambda cycles: cycles.over_limit(link)),
                    "<=",
                    CYCLE_AT_MOST,
                )
                for name in found
            ),
            Bar(
                "link duty with drafting ahead",
                _median(found[AHEAD], lambda cycles: cycles.duty),
                ">=",
                DUTY_AT_LEAST,
                "%",
            ),
            Bar(
                "tokens/s, drafting ahead against without",
                _compute_gain(found),
                ">=",
                AHEAD_AT_LEAST,
            ),
        ],
        notes=[
            "The bars concern the first table, in which the draft is always right, so that the "
            "mechanism is measured and not a text. In the second table, with fewer cycles per "
            "round, the draft is mostly right; there drafting ahead gives "
            f"{_compute_gain(found_in_chat):.2f} times the tokens/s."
        ],
        machine=describe_machine(),
    )


def _compute_gain(found: Found) -> float:
    """Return the tokens/s with drafting ahead over those without; median of the rounds."""
    pairs = zip(found[AHEAD], found[SERIAL], strict=True)
    return statistics.median(a.tokens_per_second / b.tokens_per_second for a, b in pairs)


def _make_table(caption: str, found: Found, link: Link) -> Table:
    figures: dict[str, Callable[[Cycles], float]] = {
        "rows": lambda cycles: cycles.rows,
        "cycle ms": lambda cycles: cycles.cycle_s * 1e3,
        "limit ms": lambda cycles: cycles.limit(link) * 1e3,
        "over limit": lambda cycles: cycles.over_limit(link),
        "draft ms": lambda cycles: cycles.draft_s * 1e3,
        "ahead ms": lambda cycles: cycles.ahead_s * 1e3,
        "pass ms": lambda cycles: cycles.pass_s * 1e3,
        "waited ms": lambda cycles: cycles.stall_s * 1e3,
        "link duty %": lambda cycles: cycles.duty,
        "A": lambda cycles: cycles.tokens,
        "tokens/s": lambda cycles: cycles.tokens_per_second,
    }
    rows: list[list[Any]] = [
        [name, *(_median(own, figure) for figure in figures.values())]
        for name, own in found.items()
    ]
    return Table(caption, ["case", *figures], rows)


def _median(rounds: Sequence[Cycles], figure: Callable[[Cycles], float]) -> float:
    return statistics.median(map(figure, rounds))


if __name__ == "__main__":
    main()
