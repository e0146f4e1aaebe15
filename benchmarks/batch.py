"""Total tokens/s of 1, 2, 4 and 8 users of one stream.

    python -m benchmarks.batch [--json]

The link is set from measurements: the pass over 8 trees of `--rows` rows computes for 0.7 W/B, and
one user's draft takes a quarter of W/B, as measured behind that very link, at the depth that comes
nearest. Both ratios are measured again in all rounds and stated. Two cases in turn: fixed trees
without drafting ahead on a text that the draft knows by heart, all of exactly so many rows
(`benchmarks.known_text`), where the ratios hold; and chats as they are served, without a bar: one
user's draft hides behind the weights there, and that of eight does not. In one round all users ask
for the same greedy answer (nothing is shared: there is no prefix cache), so that A is the same for
one and for eight. Only passes in which every user decodes are counted.
"""

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.command import parser, show
from benchmarks.known_text import counting_model, counting_prompt, fill_trees
from benchmarks.report_format import Bar, Figures, Plot, Table
from benchmarks.runs import (
    GREEDY,
    MID,
    MODELS,
    UNLIMITED_GBPS,
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
from engine.spec import DraftSpec

FIELDS = ("tokens_per_pass", "draft_ms", "pass_ms", "compute_ms", "rows")  # of the table
USERS = (1, 2, 4, 8)
MOST = USERS[-1]
COMPUTE_SHARE = 0.7  # compute of a pass over the trees of all 8, of W/B
DRAFT_SHARE = 0.25  # one user's draft, of W/B
AT_LEAST = 5.0  # 8 users against 1
PROBED_DEPTH = 8  # of the draft whose step is timed
CORRECTIONS = 3  # of link and depth: work beside a busy link takes longer than alone
NEAR = 0.05  # of W/B: nearer than measurements agree
PROMPT_TOKENS = 32  # of the counted text
FIXED, SERVED = "fixed trees, known text", "as served, chats"


@dataclass(frozen=True)
class Case:
    """How drafts are made, and for what."""

    folder: Path
    draft: DraftSpec
    prompts: Sequence[list[int]]  # one a round, again from the first when they run out
    filler_rows: int | None = None  # rows of every tree, made up by wrong ones

    def open(self, stack: ExitStack, gbps: float) -> Session:
        spec = ram_spec(self.folder, self.draft, gbps=gbps, max_sequences=MOST)
        served = stack.enter_context(session(spec))
        if self.filler_rows is not None:
            fill_trees(served, self.filler_rows)
        return served


@dataclass(frozen=True)
class Link:
    """The link that gives the two ratios, and the tree's depth."""

    gbps: float
    depth: int
    seconds: float  # W/B


@dataclass(frozen=True)
class Pace:
    """One setting, one number of users, one round."""

    tokens_per_second: float
    tokens_per_pass: float  # A, of one user
    draft_ms: float
    pass_ms: float
    compute_ms: float  # of the pass: it did not wait for weights, nor draft ahead
    rows: float


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, default=64, help="of one tree")
    arguments.add_argument("--width", type=int, default=4, help="rows of one draft step")
    arguments.add_argument("--passes", type=int, default=3, help="of each measurement")
    options = arguments.parse_args()
    known = counting_model(MODELS / "counting", MID).folder
    chat = options.model or grown("mid", MID)
    figures = measure(
        known, chat, options.rows, options.width, passes=options.passes, rounds=options.rounds
    )
    show(figures, options)


def measure(known: Path, chat: Path, rows: int, width: int, *, passes: int, rounds: int) -> Figures:
    """Both models are of the same shape."""
    bounds = DraftSpec("subspec", width=width, branch=width, budget=rows)
    fixed = Case(
        known, replace(bounds, tuned=False, ahead=False), [counting_prompt(PROMPT_TOKENS)], rows
    )
    link = calibrate(fixed, passes)
    cases = {
        FIXED: replace(fixed, draft=replace(fixed.draft, depth=link.depth)),
        SERVED: Case(chat, replace(bounds, depth=2 * link.depth), chat_prompts("held_out")),
    }
    paces: dict[tuple[str, int], list[Pace]] = {}
    with ExitStack() as stack:
        sessions = {name: case.open(stack, link.gbps) for name, case in cases.items()}
        for name, served in sessions.items():  # for what the engine learns of the machine
            pace(served, cases[name].prompts[0], MOST, passes)
        for number in range(rounds):
            for name, served in sessions.items():
                prompt = cases[name].prompts[number % len(cases[name].prompts)]
                for users in USERS:
                    paces.setdefault((name, users), []).append(pace(served, prompt, users, passes))
    return _figures(chat, link, rows, paces)


def calibrate(case: Case, passes: int) -> Link:
    """Guess the link where nothing is waited for; then correct it and the depth behind it."""
    with ExitStack() as stack:
        shallow = replace(case, draft=replace(case.draft, depth=1))
        probed = shallow.open(stack, UNLIMITED_GBPS)
        link = _corrected(probed, case, Link(UNLIMITED_GBPS, PROBED_DEPTH, 0.0), passes)
    for _ in range(CORRECTIONS):
        with ExitStack() as stack:
            served = replace(case, draft=replace(case.draft, depth=link.depth))
            better = _corrected(served.open(stack, link.gbps), case, link, passes)
        is_near = abs(better.seconds / link.seconds - 1) < NEAR and better.depth == link.depth
        link = better
        if is_near:
            break
    return link


def _corrected(served: Session, case: Case, link: Link, passes: int) -> Link:
    """The link by what compute, and from the second time on the draft, take behind this one."""
    pace(served, case.prompts[0], MOST, 1)  # for what the engine learns of the machine
    compute = pace(served, case.prompts[0], MOST, passes).compute_ms / 1e3
    seconds, depth = compute / COMPUTE_SHARE, link.depth
    if link.seconds:
        draft = pace(served, case.prompts[0], 1, passes).draft_ms / 1e3
        depth = max(1, round(depth * DRAFT_SHARE * seconds / draft))
    return Link(served.streamed_bytes / seconds / 1e9, depth, seconds)


def pace(served: Session, prompt: list[int], users: int, passes: int) -> Pace:
    """So many passes in which all users decode; then their requests are dropped."""
    names = [f"user {number}" for number in range(users)]
    requests = [request(name, prompt, GREEDY) for name in names]
    started = drive(served, requests, passes=1)
    waiting = set(names) - started.answered
    while waiting:
        waiting -= drive(served, passes=1).answered
    drive(served, passes=1)  # the first tree, and with it the ring as it is between two passes
    run = drive(served, passes=passes)
    forget(served, names)
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


def _figures(
    folder: Path, link: Link, rows: int, paces: dict[tuple[str, int], list[Pace]]
) -> Figures:
    columns = ["trees", "users", "tokens/s in all", "against 1 user", "A", "draft ms", "pass ms"]
    columns += ["compute ms", "rows a pass"]
    lines: list[list[Any]] = []
    gains: dict[tuple[str, int], float] = {}
    for (name, users), own in paces.items():
        pairs = zip(own, paces[name, 1], strict=True)  # measured in turn: compared round by round
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
        "rows_of_a_tree": rows,
        "draft_of_one_user_over_w_over_b": draft_share,
        "compute_of_8_trees_over_w_over_b": compute_share,
        "rounds": len(paces[FIXED, 1]),
    }
    return Figures(
        name="batch",
        title="One stream for all: total tokens/s of 1 to 8 users",
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
        machine=machine(),
    )


def _median(paces: Sequence[Pace], field: str) -> float:
    return statistics.median(float(getattr(pace, field)) for pace in paces)


if __name__ == "__main__":
    main()
