"""Measure the host time of a pass: all that is not decoder layers, final norm or head.

    python -m benchmarks.host_time [--json] [--answers 3]

A real engine serves the demo's target, and the same model with its vocabulary grown to 152,064
tokens, one sequence at a time: `subspec` trees of up to 64 rows, temperature 0.7, top-p 0.9,
held-out prompts. The times of the layers, final norms and heads of target and draft are subtracted
from the time of each step. The rest is the choices of the verification, trees, masks, KV pages and
text. Drafting before the pass needs host time too (scores, masks, embedding and rotary angles of
its steps). It is part of the draft time, which lengthens a cycle unless it is hidden, so it has a
column of its own. All times are processor time of the engine's one thread, which other load on the
machine lengthens less than wall time. The figures are medians over the passes that verified a full
tree.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

import engine.drafting.model.children
import engine.runtime.verify
from benchmarks.random_model import Shape
from benchmarks.runs import (
    DEMO,
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
from engine.model.decoder import Decoder
from engine.spec import DraftSpec, ModelSpec

TREE_ROWS = 64
DRAFT = DraftSpec(
    "subspec", depth=16, width=6, branch=4, budget=TREE_ROWS, tuned=False, ahead=False
)
PARAMS = SamplingParams(temperature=0.7, top_p=0.9, seed=1, max_tokens=200)
GROWN = Shape(layers=6, hidden=512, intermediate=1280, heads=8, kv_heads=2, vocabulary=4096)
VOCABULARIES = {4_096: 4.0, 152_064: 20.0}  # vocabulary -> milliseconds a pass may take


@dataclass(frozen=True)
class Row:
    """The figures of one vocabulary; times are milliseconds per pass."""

    vocabulary: int
    passes: int  # passes that verified a full tree
    tokens_per_pass: float
    draft_steps: float  # per pass
    host_ms: float
    target_ms: float
    choosing_ms: float  # the choices of the verification, with the head's product
    drafting_ms: float  # host time of drafting before the pass, not in `host_ms`
    scoring_ms: float  # the part of `drafting_ms` that scores the drafted rows


class Stopwatch:
    """Processor seconds and number of the wrapped calls of this thread, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that makes the call and adds its time to `name`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds[name] += time.thread_time() - began
                self.calls[name] += 1

        return timed

    def reset(self) -> None:
        """Set all times and counts to zero."""
        self.seconds.clear()
        self.calls.clear()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments.add_argument(
        "--answers", type=int, default=3, help="prompts to answer for each model"
    )
    options = arguments.parse_args()
    torch.set_num_threads(1)
    rows = [measure(vocabulary, options.answers) for vocabulary in VOCABULARIES]
    if options.json:
        print(json.dumps({"machine": describe_machine(), "rows": [asdict(row) for row in rows]}))
    else:
        print(format_table(rows))


def measure(vocabulary: int, answers: int) -> Row:
    """Answer `answers` prompts and return the medians of their passes."""
    prompts = load_chat_prompts("held_out")[: answers + 1]
    with session(make_spec(vocabulary)) as served, watch_session(served) as watch:
        measure_answer(served, prompts[0], watch)  # the first one warms caches
        passes = [own for prompt in prompts[1:] for own in measure_answer(served, prompt, watch)]
    return summarize(vocabulary, passes)


def make_spec(vocabulary: int) -> ModelSpec:
    """Return the demo's target with this vocabulary, streamed from RAM without a simulated link."""
    folder = DEMO / "target"
    if vocabulary != GROWN.vocabulary:
        folder = grow_demo(f"host-time-{vocabulary}", replace(GROWN, vocabulary=vocabulary))
    return ram_spec(folder, DRAFT, gbps=None, max_sequences=1)


@contextmanager
def watch_session(served: Session) -> Iterator[Stopwatch]:
    """Time the models' computations and the parts of the host's work within a `with` block."""
    watch = Stopwatch()
    drafting: Any = served.loaded.drafting
    watch_model(served.loaded.decoder, watch, "target")
    watch_model(drafting._model.decoder, watch, "draft")
    drafting.propose = watch.wrap("propose", drafting.propose)
    places: tuple[tuple[Any, str], ...] = (
        (engine.drafting.model.children, "draft_children"),
        (engine.runtime.verify, "choose_likely_rows"),
    )
    originals = [getattr(owner, name) for owner, name in places]
    for (owner, name), call in zip(places, originals, strict=True):
        setattr(owner, name, watch.wrap(name, call))
    try:
        yield watch
    finally:
        for (owner, name), call in zip(places, originals, strict=True):
            setattr(owner, name, call)


def watch_model(decoder: Decoder, watch: Stopwatch, name: str) -> None:
    """Time layers, final norm and head, by replacing attributes of the instances."""
    inner: Any = decoder.decoder
    for module in (*inner.layers, inner.norm):
        module.forward = watch.wrap(name, module.forward)
    decoder._logits = watch.wrap(name, decoder._logits)  # type: ignore[method-assign]


def measure_answer(
    served: Session, prompt: Sequence[int], watch: Stopwatch
) -> list[dict[str, float]]:
    """Answer a prompt; return the figures of each pass with a full tree, times in seconds."""
    found = []
    served.engine.add(make_request("answer", prompt, PARAMS))
    while served.engine.has_work():
        watch.reset()
        began = time.thread_time()
        drive(served, passes=1)
        whole = time.thread_time() - began
        stats, seconds = served.engine.last_pass, watch.seconds
        if stats is not None and stats.rows == TREE_ROWS:
            drafting = seconds["propose"] - seconds["draft"]
            found.append(
                {
                    "tokens": stats.accepted,
                    "steps": watch.calls["draft_children"],
                    "host": whole - seconds["target"] - seconds["draft"] - drafting,
                    "drafting": drafting,
                    "scoring": seconds["draft_children"],
                    "choosing": seconds["choose_likely_rows"],
                }
            )
    return found


def summarize(vocabulary: int, passes: Sequence[dict[str, float]]) -> Row:
    """Return the medians and means over passes."""

    def median_ms(name: str) -> float:
        return statistics.median(own[name] for own in passes) * 1e3

    return Row(
        vocabulary=vocabulary,
        passes=len(passes),
        tokens_per_pass=statistics.mean(own["tokens"] for own in passes),
        draft_steps=statistics.mean(own["steps"] for own in passes),
        host_ms=median_ms("host"),
        target_ms=VOCABULARIES[vocabulary],
        choosing_ms=median_ms("choosing"),
        drafting_ms=median_ms("drafting"),
        scoring_ms=median_ms("scoring"),
    )


def format_table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| vocabulary | host ms per pass | at most | choices | drafting | scores in drafting | "
        "passes | tokens per pass | draft steps |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(
            f"| {row.vocabulary:,} | {row.host_ms:.1f} | {row.target_ms:.0f} | "
            f"{row.choosing_ms:.1f} | {row.drafting_ms:.1f} | {row.scoring_ms:.1f} | "
            f"{row.passes} | {row.tokens_per_pass:.1f} | {row.draft_steps:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
