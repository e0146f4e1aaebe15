"""Total tokens/s of 1, 2, 4 and 8 users of one stream.

    python -m benchmarks.batch [--json]

The link is set from measurements: the pass over 8 trees of `--rows` rows takes 0.7 W/B, and one
user's draft, at the depth that comes nearest, a quarter of W/B. Both ratios are measured again
behind that link and stated. In one round all users ask for the same greedy answer (nothing is
shared: there is no prefix cache), so that A is the same for one and for eight; each round has
another prompt. Only passes in which every user decodes are counted.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.report_format import Bar, Figures, Plot, Table
from benchmarks.runs import (
    GREEDY,
    MID,
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
from engine.spec import DraftSpec, ModelSpec

USERS = (1, 2, 4, 8)
MOST = USERS[-1]
COMPUTE_SHARE = 0.7  # compute of a pass over the trees of all 8, of W/B
DRAFT_SHARE = 0.25  # one user's draft, of W/B
AT_LEAST = 5.0  # 8 users against 1
PROBED_DEPTH = 8  # of the draft whose step is timed


@dataclass(frozen=True)
class Link:
    """The link that gives the two ratios, and the tree's depth."""

    gbps: float
    depth: int
    seconds: float  # W/B
    compute_s: float  # of a pass over 8 trees, nothing to wait for


@dataclass(frozen=True)
class Pace:
    """One setting, one number of users, one round."""

    tokens_per_second: float
    tokens_per_pass: float  # A, of one user
    draft_ms: float
    pass_ms: float
    rows: float


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    arguments.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    arguments.add_argument("--model", type=Path, help="its folder (default: the demo's, grown)")
    arguments.add_argument("--rows", type=int, default=64, help="of one tree")
    arguments.add_argument("--width", type=int, default=4, help="rows of one draft step")
    arguments.add_argument("--passes", type=int, default=8, help="of each measurement")
    arguments.add_argument("--rounds", type=int, default=5)
    options = arguments.parse_args()
    figures = measure(
        options.model or grown("mid", MID),
        options.rows,
        options.width,
        passes=options.passes,
        rounds=options.rounds,
    )
    print(json.dumps(figures.to_json()) if options.json else figures)


def measure(folder: Path, rows: int, width: int, *, passes: int, rounds: int) -> Figures:
    """Fixed trees without drafting ahead, where the ratios hold by construction; and as served."""
    prompts = chat_prompts("held_out")[:rounds]
    fixed = DraftSpec("subspec", width=width, branch=width, budget=rows, tuned=False, ahead=False)
    link = calibrate(folder, fixed, prompts[0], passes)
    specs = {
        "fixed trees": replace(fixed, depth=link.depth),
        "as served": DraftSpec("subspec", depth=2 * link.depth, width=width, budget=rows),
    }
    paces: dict[tuple[str, int], list[Pace]] = {}
    with ExitStack() as stack:
        sessions = {
            name: stack.enter_context(session(_spec(folder, draft, link.gbps)))
            for name, draft in specs.items()
        }
        for served in sessions.values():
            pace(served, prompts[0], MOST, passes)  # for what the engine learns of the machine
        for prompt in prompts:
            for name, served in sessions.items():
                for users in USERS:
                    paces.setdefault((name, users), []).append(pace(served, prompt, users, passes))
    return _figures(folder, link, rows, paces)


def calibrate(folder: Path, draft: DraftSpec, prompt: list[int], passes: int) -> Link:
    """Measure compute and a draft step where nothing is waited for; choose link and depth."""
    spec = _spec(folder, replace(draft, depth=PROBED_DEPTH), UNLIMITED_GBPS)
    with session(spec) as probed:
        pace(probed, prompt, MOST, passes)
        step = pace(probed, prompt, 1, passes).draft_ms / 1e3 / PROBED_DEPTH
        compute = pace(probed, prompt, MOST, passes).pass_ms / 1e3
        seconds = compute / COMPUTE_SHARE
        depth = max(1, round(DRAFT_SHARE * seconds / step))
        return Link(probed.streamed_bytes / seconds / 1e9, depth, seconds, compute)


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
        rows=statistics.fmean(stats.rows for stats in run.passes),
    )


def _spec(folder: Path, draft: DraftSpec, gbps: float) -> ModelSpec:
    return ram_spec(folder, draft, gbps=gbps, max_sequences=MOST)


def _figures(
    folder: Path, link: Link, rows: int, paces: dict[tuple[str, int], list[Pace]]
) -> Figures:
    columns = ["trees", "users", "tokens/s in all", "against 1 user", "A", "draft ms", "pass ms"]
    columns.append("rows a pass")
    lines: list[list[Any]] = []
    gains: dict[tuple[str, int], float] = {}
    for (name, users), own in paces.items():
        pairs = zip(own, paces[name, 1], strict=True)  # measured in turn: compared round by round
        gains[name, users] = statistics.median(
            pace.tokens_per_second / alone.tokens_per_second for pace, alone in pairs
        )
        lines.append(
            [name, users, _median(own, "tokens_per_second"), gains[name, users]]
            + [_median(own, field) for field in ("tokens_per_pass", "draft_ms", "pass_ms", "rows")]
        )
    draft_share = _median(paces["fixed trees", 1], "draft_ms") / 1e3 / link.seconds
    values = {
        "model": folder.name,
        "link_gbps": link.gbps,
        "w_over_b_ms": link.seconds * 1e3,
        "depth": link.depth,
        "rows_of_a_tree": rows,
        "draft_of_one_user_over_w_over_b": draft_share,
        "compute_of_8_trees_over_w_over_b": link.compute_s / link.seconds,
        "rounds": len(paces["fixed trees", 1]),
    }
    return Figures(
        name="batch",
        title="One stream for all: total tokens/s of 1 to 8 users",
        values=values,
        tables=[Table("Medians of the rounds", columns, lines)],
        bars=[
            Bar(f"8 users against 1, total tokens/s, {name}", gains[name, MOST], ">=", AT_LEAST)
            for name in ("fixed trees", "as served")
        ],
        plots=[
            Plot(
                "batch",
                "users",
                "total tokens/s against 1 user",
                {
                    name: [(float(n), gains[name, n]) for n in USERS]
                    for name in ("fixed trees", "as served")
                }
                | {"ideal": [(float(n), float(n)) for n in USERS]},
            )
        ],
        machine=machine(),
    )


def _median(paces: Sequence[Pace], field: str) -> float:
    return statistics.median(float(getattr(pace, field)) for pace in paces)


if __name__ == "__main__":
    main()
