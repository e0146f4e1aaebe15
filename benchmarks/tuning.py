"""Compare self-tuned trees with a grid of fixed trees on three kinds of text, one user.

    python -m benchmarks.tuning [--json]

A fixed tree has a constant depth and width. All trees of the grid run once on each text. The best
of them then run in turn with the self-tuned tree in every round, which is compared with the best
median among them. The self-tuned tree measures its step times in one round that is not counted. The
bandwidth of the link is chosen so that W/B is `--over-draft` times the time of a draft of depth 8
and width 4.
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.command import make_parser, print_figures
from benchmarks.random_model import Shape
from benchmarks.report_format import Bar, Figures, Plot, Table
from benchmarks.runs import (
    GREEDY,
    UNLIMITED_GBPS,
    Session,
    describe_machine,
    drive,
    grow_demo,
    load_chat_prompts,
    make_request,
    ram_spec,
    session,
)
from engine.messages import SamplingParams
from engine.spec import DraftSpec, ModelSpec

SMALL = Shape(layers=6, hidden=384, intermediate=1024, heads=6, kv_heads=2, vocabulary=4096)
DEPTHS = (4, 8, 16, 32)
WIDTHS = (1, 4)
BUDGET = 64  # rows of every tree
PROBED = (8, 4)
CONTENDERS = 2  # trees of the grid that are compared on each text
AT_LEAST = 0.95  # tokens/s / tokens/s of the best fixed tree

Bounds = tuple[int, int]  # depth, width
TUNED = "self-tuned"


@dataclass(frozen=True)
class Text:
    """A kind of text: prompts, and the sampling of their answers."""

    name: str
    prompts: Sequence[list[int]]
    params: SamplingParams


@dataclass(frozen=True)
class Pace:
    """The speed of the answers to the prompts of one text."""

    tokens_per_second: float
    tokens_per_pass: float
    draft_ms: float
    rows: float


def main() -> None:
    arguments = make_parser(__doc__)
    arguments.add_argument("--tokens", type=int, default=48, help="tokens of an answer")
    arguments.add_argument("--prompts", type=int, default=2, help="prompts of each kind of text")
    arguments.add_argument("--over-draft", type=float, default=2.0, help="W/B / draft time")
    arguments.add_argument("--depths", type=int, nargs="+", default=DEPTHS)
    arguments.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    options = arguments.parse_args()
    figures = measure(
        options.model or grow_demo("small", SMALL),
        make_texts(options.prompts, options.tokens),
        [(depth, width) for depth in options.depths for width in options.widths],
        rounds=options.rounds,
        over_draft=options.over_draft,
    )
    print_figures(figures, options)


def make_texts(count: int, tokens: int) -> list[Text]:
    """Return three texts: trained on, ordinary, and hard to predict (their nats are reported)."""
    starters, held_out = load_chat_prompts("starters"), load_chat_prompts("held_out")
    chat = SamplingParams(temperature=0.7, top_p=0.9, seed=7)
    wild = SamplingParams(temperature=1.4, seed=7)
    kinds = (
        ("trained on", starters[:count], GREEDY),
        ("chat", held_out[:count], chat),
        ("high entropy", held_out[count : 2 * count], wild),
    )
    return [Text(n, prompts, replace(p, max_tokens=tokens)) for n, prompts, p in kinds]


def measure(
    folder: Path, kinds: Sequence[Text], grid: Sequence[Bounds], *, rounds: int, over_draft: float
) -> Figures:
    """Run the grid once, then its best trees and the self-tuned tree in turn; return figures."""
    gbps, seconds = _choose_link(folder, kinds[0], over_draft)
    screened: dict[Bounds, dict[str, float]] = {}
    for bounds in grid:
        with session(_make_fixed_spec(folder, bounds, gbps)) as served:
            screened[bounds] = {
                kind.name: measure_pace(served, kind).tokens_per_second for kind in kinds
            }
    best = {kind.name: _choose_best(screened, kind.name) for kind in kinds}
    with ExitStack() as stack:
        tuned = stack.enter_context(session(_make_tuned_spec(folder, grid, gbps)))
        fixed = {
            bounds: stack.enter_context(session(_make_fixed_spec(folder, bounds, gbps)))
            for bounds in sorted({bounds for own in best.values() for bounds in own})
        }
        nats = {kind.name: measure_nats(tuned, kind) for kind in kinds}
        paces: dict[str, dict[str, list[Pace]]] = {kind.name: {} for kind in kinds}
        for kind in kinds:
            measure_pace(tuned, kind)
        for _ in range(rounds):
            for kind in kinds:
                entrants: Iterable[tuple[str, Session]] = (
                    (TUNED, tuned),
                    *((_label(bounds), fixed[bounds]) for bounds in best[kind.name]),
                )
                for name, served in entrants:
                    paces[kind.name].setdefault(name, []).append(measure_pace(served, kind))
    values = {
        "model": folder.name,
        "link_gbps": gbps,
        "w_over_b_ms": seconds * 1e3,
        "rows_per_tree": BUDGET,
        "rounds": rounds,
        "tokens_per_answer": kinds[0].params.max_tokens,
    }
    return _make_figures(values, screened, paces, nats)


def measure_pace(served: Session, kind: Text) -> Pace:
    """Answer the prompts of a text one after another and return the speed."""
    runs = [
        drive(served, [make_request(f"{kind.name} {number}", prompt, kind.params)])
        for number, prompt in enumerate(kind.prompts)
    ]
    passes = [stats for run in runs for stats in run.passes]
    tokens = sum(run.num_tokens for run in runs)
    return Pace(
        tokens_per_second=tokens / sum(run.seconds for run in runs),
        tokens_per_pass=tokens / len(passes),
        draft_ms=statistics.fmean(stats.draft_ms for stats in passes),
        rows=statistics.fmean(stats.rows for stats in passes),
    )


def measure_nats(served: Session, kind: Text) -> float:
    """Return the mean of -log p of the emitted tokens, by the model's own probabilities."""
    params = replace(kind.params, logprobs=0)
    runs = [drive(served, [make_request("nats", prompt, params)]) for prompt in kind.prompts]
    return statistics.fmean(nats for run in runs for nats in run.nats)


def _choose_link(folder: Path, kind: Text, over_draft: float) -> tuple[float, float]:
    """Return the GB/s that make W/B `over_draft` draft times, and W/B in seconds."""
    with session(_make_fixed_spec(folder, PROBED, UNLIMITED_GBPS)) as probed:
        measure_pace(probed, kind)
        runs = [drive(probed, [make_request("draft", p, kind.params)]) for p in kind.prompts]
        drafts = [stats.draft_ms for run in runs for stats in run.passes if stats.draft_ms > 1]
        seconds = over_draft * statistics.median(drafts) / 1e3
        return probed.streamed_bytes / seconds / 1e9, seconds


def _make_fixed_spec(folder: Path, bounds: Bounds, gbps: float) -> ModelSpec:
    depth, width = bounds
    draft = DraftSpec("subspec", depth=depth, width=width, budget=BUDGET, tuned=False)
    return ram_spec(folder, draft, gbps=gbps)


def _make_tuned_spec(folder: Path, grid: Sequence[Bounds], gbps: float) -> ModelSpec:
    """Return the self-tuned tree, bounded by the largest depth and width of the grid."""
    depth, width = (max(side) for side in zip(*grid, strict=True))
    return ram_spec(
        folder, DraftSpec("subspec", depth=depth, width=width, budget=BUDGET), gbps=gbps
    )


def _choose_best(screened: Mapping[Bounds, Mapping[str, float]], kind: str) -> list[Bounds]:
    ranked = sorted(screened, key=lambda bounds: screened[bounds][kind], reverse=True)
    return ranked[:CONTENDERS]


def _label(bounds: Bounds) -> str:
    return f"{bounds[0]} x {bounds[1]}"


def _make_figures(
    values: Mapping[str, Any],
    screened: Mapping[Bounds, Mapping[str, float]],
    paces: Mapping[str, Mapping[str, Sequence[Pace]]],
    nats: Mapping[str, float],
) -> Figures:
    rows, bars = [], []
    for kind, own in paces.items():
        speed = {name: _median(runs, "tokens_per_second") for name, runs in own.items()}
        best = max((name for name in speed if name != TUNED), key=speed.__getitem__)
        share = speed[TUNED] / speed[best]
        bars.append(Bar(f"self-tuned over the best fixed tree, {kind}", share, ">=", AT_LEAST))
        for name, runs in own.items():
            figures = [_median(runs, f) for f in ("tokens_per_pass", "draft_ms", "rows")]
            rows.append([kind, nats[kind], name, speed[name], speed[name] / speed[best], *figures])
    kinds = list(paces)
    columns = [
        "text",
        "nats per token",
        "tree (depth x width)",
        "tokens/s",
        "against the best fixed",
    ]
    columns += ["A", "draft ms", "rows per pass"]
    grid = [[_label(b), *(screened[b][kind] for kind in kinds)] for b in screened]
    return Figures(
        name="tuning",
        title="Self-tuned trees compared with fixed trees",
        values=values,
        tables=[
            Table("Medians of the rounds", columns, rows),
            Table("The grid, once each, tokens/s", ["tree", *kinds], grid),
        ],
        bars=bars,
        plots=list(_plots(screened, kinds)),
        machine=describe_machine(),
    )


def _plots(screened: Mapping[Bounds, Mapping[str, float]], kinds: Sequence[str]) -> Iterator[Plot]:
    widths = sorted({width for _, width in screened})
    lines = {
        f"{kind}, width {width}": [
            (float(depth), screened[depth, own][kind]) for depth, own in screened if own == width
        ]
        for kind in kinds
        for width in widths
    }
    yield Plot("tuning", "depth of the fixed tree", "tokens/s", lines, log_x=True)


def _median(paces: Sequence[Pace], field: str) -> float:
    return statistics.median(float(getattr(pace, field)) for pace in paces)


if __name__ == "__main__":
    main()
