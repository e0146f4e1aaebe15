"""Time of a pass outside decoder layers, norm and head: what the host adds to one sequence.

    python -m benchmarks.host_time [--json] [--answers 3]

A real engine serves the demo's target, and the same model with its vocabulary grown to 152,064
tokens, one sequence at a time: trees of up to 64 rows by `subspec`, temperature 0.7 with top-p 0.9,
held-out prompts. Layers, final norms and heads of target and draft are timed and taken off the
time of each step; what is left is verifying's choices, tree, masks, KV book-keeping and text.
Drafting before the pass has host time too (scores, masks, embedding and rotary angles of its
steps): it is part of the draft time, which adds to a cycle where it is not hidden, and stands in a
column of its own. All of it is processor time of the engine's one thread, which a busy machine
lengthens less than the clock's; medians over the passes that checked a full tree.
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

import engine.drafting.model.draft_model
import engine.runtime.verify
from benchmarks.random_model import Shape
from benchmarks.runs import (
    DEMO,
    Session,
    chat_prompts,
    drive,
    grown,
    machine,
    ram_spec,
    request,
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
VOCABULARIES = {4_096: 4.0, 152_064: 20.0}  # and the milliseconds a pass may take


@dataclass(frozen=True)
class Row:
    """One vocabulary; times are milliseconds a pass."""

    vocabulary: int
    passes: int  # that checked a full tree
    tokens_per_pass: float
    draft_steps: float  # a pass
    host_ms: float
    target_ms: float
    choosing_ms: float  # the verification's choices, the head's product among them
    drafting_ms: float  # before the pass: the tree's drafting, not in `host_ms`
    scoring_ms: float  # of which the drafted rows' scores


class Stopwatch:
    """Processor seconds of this thread spent in wrapped calls, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds[name] += time.thread_time() - began
                self.calls[name] += 1

        return timed

    def reset(self) -> None:
        self.seconds.clear()
        self.calls.clear()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments.add_argument("--answers", type=int, default=3, help="prompts answered for each model")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    rows = [measure(vocabulary, options.answers) for vocabulary in VOCABULARIES]
    if options.json:
        print(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}))
    else:
        print(table(rows))


def measure(vocabulary: int, answers: int) -> Row:
    """The medians of some answers' passes."""
    prompts = chat_prompts("held_out")[: answers + 1]
    with session(specification(vocabulary)) as served, watched(served) as watch:
        answer(served, prompts[0], watch)  # the first one warms caches
        passes = [own for prompt in prompts[1:] for own in answer(served, prompt, watch)]
    return summary(vocabulary, passes)


def specification(vocabulary: int) -> ModelSpec:
    """The demo's target with this vocabulary, streamed from RAM without a pretended link."""
    folder = DEMO / "target"
    if vocabulary != GROWN.vocabulary:
        folder = grown(f"host-time-{vocabulary}", replace(GROWN, vocabulary=vocabulary))
    return ram_spec(folder, DRAFT, gbps=None, max_sequences=1)


@contextmanager
def watched(served: Session) -> Iterator[Stopwatch]:
    """Time what the models compute, and apart from it the parts of the host's work."""
    watch = Stopwatch()
    drafting: Any = served.loaded.drafting
    watch_model(served.loaded.decoder, watch, "target")
    watch_model(drafting._model.decoder, watch, "draft")
    drafting.propose = watch.wrap("propose", drafting.propose)
    places: tuple[tuple[Any, str], ...] = (
        (engine.drafting.model.draft_model, "draft_children"),
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
    """Layers, final norm, and the head's product. On the instances: what calls them looks there."""
    inner: Any = decoder.decoder
    for module in (*inner.layers, inner.norm):
        module.forward = watch.wrap(name, module.forward)
    decoder._logits = watch.wrap(name, decoder._logits)  # type: ignore[method-assign]


def answer(served: Session, prompt: Sequence[int], watch: Stopwatch) -> list[dict[str, float]]:
    """Figures of each pass of one answer that checked a full tree; times in seconds."""
    found = []
    served.engine.add(request("answer", prompt, PARAMS))
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


def summary(vocabulary: int, passes: Sequence[dict[str, float]]) -> Row:
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


def table(rows: Sequence[Row]) -> str:
    lines = [
        "| vocabulary | host ms a pass | at most | choices | drafting beside it | of that scores | "
        "passes | tokens a pass | draft steps |",
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
