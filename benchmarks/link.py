"""How close a cycle comes to its limit, and how busy the link is.

    python -m benchmarks.link [--json]

One user, greedy, on a real engine behind a pretended link. A cycle is one step of the engine:
draft, pass, verification. Its limit is max(W/B, compute) + draft not hidden. W/B is set to four
times the compute, which is measured with everything resident; the draft's depth so that drafting
takes half of W/B.

The bars are about the mechanism, so they are measured on a text that the draft knows by heart, in
trees of `--rows` rows (`benchmarks.known_text`): shallow trees, whose draft is a small part; then
deep ones with and without drafting ahead. All cases in turn, `--cycles` cycles each, round after
round. The second table has the same on starter prompts, a text that the draft mostly knows, where
a pass that ends above its leaves throws away what was drafted below them.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.command import parser, show
from benchmarks.known_text import counting_model, counting_prompt, fill_trees
from benchmarks.report_format import Bar, Figures, Table
from benchmarks.runs import (
    GREEDY,
    MID,
    MODELS,
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
WIDTH = 4  # rows of a draft step
PROBED_DEPTH = 9  # of the draft whose step is timed
PROBED_CYCLES = 10
CORRECTIONS = 2  # of the depth: a step beside a busy link takes longer than alone
LEARNING_PASSES = 4  # for what the engine learns of the machine, and the ring's steady state
PROMPT_TOKENS = 32  # of the counted text
CYCLE_AT_MOST = 1.05
DUTY_AT_LEAST = 95.0
AHEAD_AT_LEAST = 1.2
SHALLOW, SERIAL, AHEAD = "shallow draft", "without drafting ahead", "with drafting ahead"
TUNED = "self-tuned, with drafting ahead"


@dataclass(frozen=True)
class Text:
    """What is generated: a model and prompts."""

    folder: Path
    prompts: Sequence[list[int]]
    filler_rows: int | None = None  # rows of every tree, made up by wrong ones


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


Found = Mapping[str, Sequence[Cycles]]  # by case, each round's


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, default=64, help="of the tree")
    arguments.add_argument("--slots", type=int, help="of the ring (default: as planned)")
    arguments.add_argument("--cycles", type=int, default=30)
    arguments.add_argument("--text-cycles", type=int, default=12, help="on starter prompts")
    options = arguments.parse_args()
    folder = options.model or grown("mid", MID)
    figures = measure(
        Text(counting_model(MODELS / "counting", MID).folder, [counting_prompt(PROMPT_TOKENS)]),
        Text(folder, chat_prompts("starters")),
        options.rows,
        slots=options.slots,
        cycles=(options.cycles, options.text_cycles),
        rounds=options.rounds,
    )
    show(figures, options)


def measure(
    known: Text, chat: Text, rows: int, *, slots: int | None, cycles: tuple[int, int], rounds: int
) -> Figures:
    """Known text, then the chats; trees of at most so many rows, their depths chosen."""
    known = replace(known, filler_rows=rows)
    link = calibrate(known, rows, slots)
    deep = _half_of_the_link(known, link, rows, slots)
    depth = deep.depth or 1
    cases = {
        SHALLOW: fixed_tree(rows, link.depth(SHALLOW_SHARE)),
        SERIAL: deep,
        AHEAD: replace(deep, ahead=True),
    }
    chat_cases = {
        SERIAL: deep,
        AHEAD: replace(deep, ahead=True),
        TUNED: replace(deep, depth=2 * depth, tuned=True, ahead=True),
    }
    found = _in_turn(known, cases, link, slots, cycles[0], rounds)
    found_in_chat = _in_turn(chat, chat_cases, link, slots, cycles[1], rounds)
    return _figures(chat.folder, link, depth, found, found_in_chat)


def _in_turn(
    text: Text,
    cases: Mapping[str, DraftSpec],
    link: Link,
    slots: int | None,
    cycles: int,
    rounds: int,
) -> Found:
    """All cases, round after round, each with the next prompt."""
    found: dict[str, list[Cycles]] = {name: [] for name in cases}
    with ExitStack() as stack:
        sessions = {
            name: _open(stack, text, _spec(text.folder, draft, link.gbps, slots))
            for name, draft in cases.items()
        }
        for number in range(rounds):
            prompt = text.prompts[number % len(text.prompts)]
            for name, served in sessions.items():
                found[name].append(observe(served, prompt, cycles))
    return found


def _half_of_the_link(text: Text, link: Link, rows: int, slots: int | None) -> DraftSpec:
    """The tree whose draft takes half of W/B, as measured behind this very link."""
    depth = link.depth(DRAFT_SHARE)
    for _ in range(CORRECTIONS):
        with ExitStack() as stack:
            spec = _spec(text.folder, fixed_tree(rows, depth), link.gbps, slots)
            seen = observe(_open(stack, text, spec), text.prompts[0], PROBED_CYCLES)
        better = max(1, round(depth * DRAFT_SHARE * link.seconds / seen.draft_s))
        if better == depth:
            break
        depth = better
    return fixed_tree(rows, depth)


def fixed_tree(rows: int, depth: int) -> DraftSpec:
    """A draft of always so many steps, and at most so many rows in the tree."""
    return DraftSpec(
        "subspec", depth=depth, width=WIDTH, branch=WIDTH, budget=rows, tuned=False, ahead=False
    )


def calibrate(text: Text, rows: int, slots: int | None) -> Link:
    """Measure compute and a draft step where nothing travels, and choose the link."""
    spec = _spec(text.folder, fixed_tree(rows, PROBED_DEPTH), None, slots)
    with ExitStack() as stack:
        resident = replace(spec, stream=StreamSpec(tier="resident"))
        seen = observe(_open(stack, text, resident), text.prompts[0], PROBED_CYCLES)
    with session(replace(spec, draft=DraftSpec("none"))) as travelling:
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


def _spec(folder: Path, draft: DraftSpec, gbps: float | None, slots: int | None) -> ModelSpec:
    spec = ram_spec(folder, draft, gbps=gbps, max_sequences=1)
    return replace(spec, stream=replace(spec.stream, slots=slots))


def _figures(chat: Path, link: Link, depth: int, found: Found, found_in_chat: Found) -> Figures:
    values = {
        "W_GB": link.streamed_bytes / 1e9,
        "B_GB_a_second": link.gbps,
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
            _table("Text that the draft knows by heart, medians of the rounds", found, link),
            _table(f"Starter prompts, model {chat.name}, medians", found_in_chat, link),
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
            Bar("tokens/s, drafting ahead against without", _gain(found), ">=", AHEAD_AT_LEAST),
        ],
        notes=[
            "Bars are about the first table: the draft is always right, so that the mechanism is "
            "measured and not a text. In the second, of fewer cycles a round, it is mostly right; "
            f"there drafting ahead gives {_gain(found_in_chat):.2f} times the tokens/s."
        ],
        machine=machine(),
    )


def _gain(found: Found) -> float:
    """Drafting ahead against without, tokens/s: measured in turn, compared round by round."""
    pairs = zip(found[AHEAD], found[SERIAL], strict=True)
    return statistics.median(a.tokens_per_second / b.tokens_per_second for a, b in pairs)


def _table(caption: str, found: Found, link: Link) -> Table:
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
