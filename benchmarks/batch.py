"""Measure the total tokens/s of 1, 2, 4 and 8 users who share one stream of weights.

    python -m benchmarks.batch [--json]

The bandwidth of the simulated link is chosen from measurements: the compute of a pass over 8 trees
of `--rows` rows takes 0.7 W/B, and the draft of one user takes a quarter of W/B at the depth that
comes nearest. Both ratios are measured again in every round and reported. Two cases run in turn:
fixed trees of exactly `--rows` rows without drafting ahead, on a text that the draft always
predicts (`benchmarks.known_text`), where the ratios hold; and chats as they are served, which have
no bar: there the draft of one user overlaps the transfer of the weights, and the drafts of eight do
not. In one round all users ask for the same greedy answer (they share nothing, because the prefix
cache is off), so that A is the same for one user and for eight. Only passes in which every user
decodes are counted.
"""

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.command import make_parser, print_figures
from benchmarks.known_text import counting_model, counting_prompt, fill_trees
from benchmarks.report_format import Bar, Figures, Plot, Table
from benchmarks.runs import (
    GREEDY,
    MID,
    MODELS,
    UNLIMITED_GBPS,
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
from engine.spec import DraftSpec

FIELDS = ("tokens_per_pass", "draft_ms", "pass_ms", "compute_ms", "rows")  # columns of the table
USERS = (1, 2, 4, 8)
MOST = USERS[-1]
COMPUTE_SHARE = 0.7  # compute of a pass over the trees of all 8 users / (W/B)
DRAFT_SHARE = 0.25  # draft time of one user / (W/B)
AT_LEAST = 5.0  # 8 users against 1
PROBED_DEPTH = 8  # depth of the draft whose step is timed
CORRECTIONS = 3  # of link and depth: work during a transfer takes longer than alone
NEAR = 0.05  # relative difference of W/B that is within the noise of the measurements
PROMPT_TOKENS = 32  # prompt of the counting text
FIXED, SERVED = "fixed trees, known text", "as served, chats"


@dataclass(frozen=True)
class Case:
    """A way of drafting, with the model and the prompts that it is measured on."""

    folder: Path
    draft: DraftSpec
    prompts: Sequence[list[int]]  # one for each round, from the first again after the last
    filler_rows: int | None = None  # rows of every tree, filled up with wrong tokens

    def open(self, stack: ExitStack, gbps: float) -> Session:
        """Load the model behind a link of `gbps`; `stack` closes it."""
        spec = ram_spec(self.folder, self.draft, gbps=gbps, max_sequences=MOST)
        served = stack.enter_context(session(spec))
        if self.filler_rows is not None:
            fill_trees(served, self.filler_rows)
        return served


@dataclass(frozen=True)
class Link:
    """The simulated link that gives the two ratios, and the depth of the trees."""

    gbps: float
    depth: int
    seconds: float  # W/B


@dataclass(frozen=True)
class Pace:
    """The speed of one case with one number of users in one round."""

    tokens_per_second: float
    tokens_per_pass: float  # A, of one user
    draft_ms: float
    pass_ms: float
    compute_ms: float  # the part of the pass without waiting for weights and drafting ahead
    rows: float


def main() -> None:
    arguments = make_parser(__doc__)
    arguments.add_argument("--rows", type=int, default=64, help="rows of one tree")
    arguments.add_argument("--width", type=int, default=4, help="rows of one draft step")
    arguments.add_argument("--passes", type=int, default=3, help="passes of each measurement")
    options = arguments.parse_args()
    known = counting_model(MODELS / "counting", MID).folder
    chat = options.model or grow_demo("mid", MID)
    figures = measure(
        known, chat, options.rows, options.width, passes=options.passes, rounds=options.rounds
    )
    print_figures(figures, options)


def measure(known: Path, chat: Path, rows: int, width: int, *, passes: int, rounds: int) -> Figures:
    """Measure both cases and return their figures.

    Args:
        known: the folder of the counting model.
        chat: the folder of the chat model, which has the same shape.
        rows: rows of one tree.
        width: rows of one draft step.
    """
    bounds = DraftSpec("subspec", width=width, branch=width, budget=rows)
    fixed = Case(
        known, replace(bounds, tuned=False, ahead=False), [counting_prompt(PROMPT_TOKENS)], rows
    )
    link = calibrate(fixed, passes)
    cases = {
        FIXED: replace(fixed, draft=replace(fixed.draft, depth=link.depth)),
        SERVED: Case(chat, replace(bounds, depth=2 * link.depth), load_chat_prompts("held_out")),
    }
    paces: dict[tuple[str, int], list[Pace]] = {}
    with ExitStack() as stack:
        sessions = {name: case.open(stack, link.gbps) for name, case in cases.items()}
        for name, served in sessions.items():  # the engine first measures this machine's speeds
            measure_pace(served, cases[name].prompts[0], MOST, passes)
        for number in range(rounds):
            for name, served in sessions.items():
                prompt = cases[name].prompts[number % len(cases[name].prompts)]
                for users in USERS:
                    paces.setdefault((name, users), []).append(
                        measure_pace(served, prompt, users, passes)
                    )
    return _make_figures(chat, link, rows, paces)


def calibrate(case: Case, passes: int) -> Link:
    """Return the link and the depth that give the two ratios.

    The first guess comes from an unlimited link. It is then corrected by measuring with the guess.
    """
    with ExitStack() as stack:
        shallow = replace(case, draft=replace(case.draft, depth=1))
        probed = shallow.open(stack, UNLIMITED_GBPS)
        link = _correct(probed, case, Link(UNLIMITED_GBPS, PROBED_DEPTH, 0.0), passes)
    for _ in range(CORRECTIONS):
        with ExitStack() as stack:
            served = replace(case, draft=replace(case.draft, depth=link.depth))
            better = _correct(served.open(stack, link.gbps), case, link, passes)
        is_near = abs(better.seconds / link.seconds - 1) < NEAR and better.depth == link.depth
        link = better
        if is_near:
            break
    return link


def _correct(served: Session, case: Case, link: Link, passes: int) -> Link:
    """Return a better link from measurements with `link`; the first call keeps the depth."""
    measure_pace(
        served, case.prompts[0], MOST, 1
    )  # the engine first measures this machine's speeds
    compute = measure_pace(served, case.prompts[0], MOST, passes).compute_ms / 1e3
    seconds, depth = compute / COMPUTE_SHARE, link.depth
    if link.seconds:
        draft = measure_pace(served, case.prompts[0], 1, passes).draft_ms / 1e3
        depth = max(1, round(depth * DRAFT_SHARE * seconds / draft))
    return Link(served.streamed_bytes / seconds / 1e9, depth, seconds)


def measure_pace(served: Session, prompt: list[int], users: int, passes: int) -> Pace:
    """Measure `passes` passes in which all users decode, then abort their requests."""
    names = [f"user {number}" for number in range(users)]
    requests = [make_request(name, prompt, GREEDY) for name in names]
    started = drive(served, requests, passes=1)
    waiting = set(names) - started.answered
    while waiting:
        waiting -= drive(served, passes=1).answered
    drive(served, passes=1)  # drafts the first tree and brings the ring into its steady state
    run = drive(served, passes=passes)
    abort_requests(served, names)
    return Pace(
        tokens_per_second=run.tokens_per_second,
        tokens_per_pass=run.num_tokens / (users * passes),
        draft_ms=statistics.median(stats.draft_ms for stats in run.passes),
        pass_ms=statistics.median(stats.pass_ms for stats in run.passes),
        compute_ms=statistics.median(
            stats.pass_ms - stats.copy_stall_ms - stats.ahead_ms for stats in run.passes
        ),
        rows=statistics.fmean(stats.rows for stats in run.passes),
    )


def _make_figures(
    folder: Path, link: Link, rows: int, paces: dict[tuple[str, int], list[Pace]]
) -> Figures:
    columns = ["trees", "users", "total tokens/s", "against 1 user", "A", "draft ms", "pass ms"]
    columns += ["compute ms", "rows per pass"]
    lines: list[list[Any]] = []
    gains: dict[tuple[str, int], float] = {}
    for (name, users), own in paces.items():
        pairs = zip(own, paces[name, 1], strict=True)  # compared round by round
        gains[name, users] = statistics.median(
            pace.tokens_per_second / alone.tokens_per_second for pace, alone in pairs
        )
        lines.append(
            [name, users, _median(own, "tokens_per_second"), gains[name, users]]
            + [_median(own, field) for field in FIELDS]
        )
    draft_share = _median(paces[FIXED, 1], "draft_ms") / 1e3 / link.seconds
    compute_share = _median(paces[FIXED, MOST], "compute_ms") / 1e3 / link.seconds
    values = {
        "model": folder.name,
        "link_gbps": link.gbps,
        "w_over_b_ms": link.seconds * 1e3,
        "depth": link.depth,
        "rows_per_tree": rows,
        "draft_of_one_user_over_w_over_b": draft_share,
        "compute_of_8_trees_over_w_over_b": compute_share,
        "rounds": len(paces[FIXED, 1]),
    }
    return Figures(
        name="batch",
        title="Total tokens/s of 1 to 8 users who share one stream of weights",
        values=values,
        tables=[Table("Medians of the rounds", columns, lines)],
        bars=[
            Bar(f"8 users against 1, total tokens/s, {FIXED}", gains[FIXED, MOST], ">=", AT_LEAST)
        ],
        plots=[
            Plot(
                "batch",
                "users",
                "total tokens/s against 1 user",
                {name: [(float(n), gains[name, n]) for n in USERS] for name in (FIXED, SERVED)}
                | {"ideal": [(float(n), float(n)) for n in USERS]},
            )
        ],
        machine=describe_machine(),
    )


def _median(paces: Sequence[Pace], field: str) -> float:
    return statistics.median(float(getattr(pace, field)) for pace in paces)


if __name__ == "__main__":
    main()
