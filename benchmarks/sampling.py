"""Measure how well drafts predict sampled tokens, with shared and with independent noise.

    python -m benchmarks.sampling [--json] [--prompts 24] [--tokens 160]

The model is the demo's target with its final norm scaled by `FLATTER`, so that text sampled at
temperature 1 has more than 2 nats per token (this is measured and reported). The draft is
`subspec`'s 4-bit copy of its layers, without look-ups. The model was not trained on the prompts.

- Hit rate: the engine samples answers to `--prompts` prompts at temperature 1 with chains of
  drafts, and the logits of draft and target are recorded at each position of the text. On these
  positions, the hit rate of a setting says how often the first candidate of the draft is the token
  that the target chooses. "Independent" scores the draft with noise of another seed.
- Tokens per pass: the engine answers the first `--in-engine` prompts at each setting, with trees of
  up to 64 rows, whose drafts use the noise of the target, or noise of another seed.
"""

import argparse
import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import engine.drafting.model.children
import engine.runtime.choices
from benchmarks.runs import (
    DEMO,
    MODELS,
    Session,
    describe_machine,
    drive,
    load_chat_prompts,
    make_request,
    ram_spec,
    session,
)
from engine.drafting.model.guess import draft_children
from engine.messages import SamplingParams
from engine.sampling.choose import choose_rows
from engine.sampling.large_vocabularies.blocks import Rows
from engine.spec import DraftSpec

FLATTER = 0.7  # factor of the demo's logits
FINAL_NORM = "model.norm.weight"
SETTINGS = {
    "greedy": SamplingParams(temperature=0.0, seed=1),
    "0.3": SamplingParams(temperature=0.3, seed=1),
    "0.7, top-p 0.9": SamplingParams(temperature=0.7, top_p=0.9, seed=1),
    "1.0": SamplingParams(temperature=1.0, seed=1),
}
AT_LEAST = {"0.7, top-p 0.9": 0.97, "1.0": 0.95}  # hit rate / hit rate of greedy choices
OTHER_NOISE = 0x5EED  # xor of the seed, for noise that is independent of the target's
CHAINS = DraftSpec("subspec", depth=8, width=1, branch=1, budget=9, tuned=False, ahead=False)
TREES = DraftSpec("subspec", depth=16, width=6, branch=4, budget=64, tuned=False, ahead=False)
TAU = 0.5  # the best candidate does not depend on it


@dataclass(frozen=True)
class Row:
    """The figures of one setting."""

    setting: str
    hit_rate: float
    hit_rate_independent: float
    of_greedy: float  # hit rate / hit rate of greedy choices
    at_least: float | None
    tokens_per_pass: float
    tokens_per_pass_independent: float


@dataclass
class Positions:
    """The logits of draft and target at positions of sampled text."""

    draft: list[Tensor] = field(default_factory=list)  # [V] each
    target: list[Tensor] = field(default_factory=list)
    position: list[int] = field(default_factory=list)

    @property
    def entropy(self) -> float:
        """Return the target's mean entropy in nats."""
        log_probs = torch.stack(self.target).float().log_softmax(-1)
        return float(-(log_probs.exp() * log_probs).sum(-1).mean())

    def hit_rate(self, params: SamplingParams, seed: int) -> float:
        """Return how often the draft's best candidate with noise of `seed` is the choice."""
        chosen = choose_rows(
            Rows.of(torch.stack(self.target)), params, None, positions=self.position, choice=0
        )
        tokens, _ = draft_children(
            torch.stack(self.draft),
            replace(params, seed=seed),
            None,
            positions=self.position,
            choice=0,
            tau=TAU,
            branch=1,
        )
        return float((tokens[:, 0] == chosen).double().mean())


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments.add_argument("--prompts", type=int, default=24, help="for the hit rates")
    arguments.add_argument("--tokens", type=int, default=160, help="tokens of an answer")
    arguments.add_argument("--in-engine", type=int, default=2, help="prompts for tokens per pass")
    options = arguments.parse_args()
    prompts = load_chat_prompts("held_out")[: options.prompts]
    folder = make_flatter_model()
    with _open_without_lookups(folder, CHAINS) as chains:
        seen = record_positions(chains, prompts, options.tokens)
    with _open_without_lookups(folder, TREES) as trees:
        rows = measure(trees, prompts[: options.in_engine], options.tokens, seen)
    facts = {"positions": len(seen.position), "entropy_nats": round(seen.entropy, 2)}
    if options.json:
        report = {"machine": describe_machine(), **facts, "rows": [asdict(row) for row in rows]}
        print(json.dumps(report))
    else:
        print(
            format_table(rows),
            f"\n{facts['positions']} positions, {facts['entropy_nats']} nats each",
        )


def make_flatter_model() -> Path:
    """Return the folder of the demo's target with flatter logits; the first call makes it."""
    folder = MODELS / f"demo-flatter-{FLATTER}"
    if not (folder / "config.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(DEMO / "target", folder, ignore=shutil.ignore_patterns("config.json"))
        for path in folder.glob("*.safetensors"):
            tensors = load_file(path)
            if FINAL_NORM in tensors:
                tensors[FINAL_NORM] = tensors[FINAL_NORM] * FLATTER
                save_file(tensors, path, metadata={"format": "pt"})
        shutil.copy(DEMO / "target" / "config.json", folder)  # last, to mark the folder as complete
    return folder


@contextmanager
def _open_without_lookups(folder: Path, draft: DraftSpec) -> Iterator[Session]:
    """Open a session without look-ups, whose candidates would mix with the draft model's."""
    with session(ram_spec(folder, draft, gbps=None, max_sequences=1)) as served:
        served.loaded.drafting._lookups = ()
        yield served


def record_positions(served: Session, prompts: Sequence[Sequence[int]], tokens: int) -> Positions:
    """Sample answers at temperature 1 and return the logits along their text.

    The logits of a draft belong to the text if the path that they follow was emitted.
    """
    seen = Positions()
    for prompt in prompts:
        _watch_answer(served, prompt, replace(SETTINGS["1.0"], max_tokens=tokens), seen)
    return seen


def _watch_answer(
    served: Session, prompt: Sequence[int], params: SamplingParams, seen: Positions
) -> None:
    """Sample one answer and add its logits to `seen`."""
    drafted: dict[int, list[tuple[list[int], Tensor]]] = defaultdict(list)
    emitted: list[int] = []

    def draft(logits: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        for row, position in enumerate(kwargs["positions"]):
            drafted[position].append((list(kwargs["paths"][row]), logits[row].clone()))
        return draft_children(logits, *args, **kwargs)

    def watched(logits: Rows, *args: Any, positions: list[int], **kwargs: Any) -> Tensor:
        (position,) = positions
        for path, own in drafted.pop(position, ()):
            if path == emitted[len(emitted) - len(path) :]:
                seen.draft.append(own)
                seen.target.append(logits.whole()[0, : logits.size])
                seen.position.append(position)
                break
        chosen = choose_rows(logits, *args, positions=positions, **kwargs)
        emitted.append(int(chosen))
        return chosen

    with (
        replace_attribute(
            engine.drafting.model.children, "is_path_dependent", lambda params: True
        ),  # so that the paths are given
        replace_attribute(engine.drafting.model.children, "draft_children", draft),
        replace_attribute(
            engine.runtime.choices, "MAX_LIKELY_ROWS", 1
        ),  # choose only for rows that are visited
        replace_attribute(engine.runtime.choices, "choose_rows", watched),
    ):
        drive(served, [make_request("watched", prompt, params)])


@contextmanager
def replace_attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute for a `with` block."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def measure(
    served: Session, prompts: Sequence[Sequence[int]], tokens: int, seen: Positions
) -> list[Row]:
    """Return the figures of each setting of `SETTINGS`."""
    rows = []
    greedy = seen.hit_rate(SETTINGS["greedy"], 0)
    for setting, params in SETTINGS.items():
        hit_rate = seen.hit_rate(params, params.seed)
        with replace_attribute(
            engine.drafting.model.children, "draft_children", draft_with_other_noise
        ):
            independent = measure_tokens_per_pass(
                served, prompts, replace(params, max_tokens=tokens)
            )
        rows.append(
            Row(
                setting=setting,
                hit_rate=hit_rate,
                hit_rate_independent=seen.hit_rate(params, params.seed ^ OTHER_NOISE),
                of_greedy=hit_rate / greedy,
                at_least=AT_LEAST.get(setting),
                tokens_per_pass=measure_tokens_per_pass(
                    served, prompts, replace(params, max_tokens=tokens)
                ),
                tokens_per_pass_independent=independent,
            )
        )
    return rows


def draft_with_other_noise(
    logits: Tensor, params: SamplingParams, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Return the draft's children with noise that is independent of the target's."""
    return draft_children(logits, replace(params, seed=params.seed ^ OTHER_NOISE), *args, **kwargs)


def measure_tokens_per_pass(
    served: Session, prompts: Sequence[Sequence[int]], params: SamplingParams
) -> float:
    """Return the tokens per pass of all answers, without the passes of the prompts."""
    run = drive(served, [make_request(str(i), prompt, params) for i, prompt in enumerate(prompts)])
    passes = [own for own in run.passes if own.prompt_rows == 0]
    return sum(own.accepted for own in passes) / sum(own.sequences for own in passes)


def format_table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| temperature | first candidate hits | of greedy (at least) | independent noise | "
        "tokens per pass | independent noise |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        bar = f" ({row.at_least:.0%})" if row.at_least else ""
        lines.append(
            f"| {row.setting} | {row.hit_rate:.3f} | {row.of_greedy:.1%}{bar} | "
            f"{row.hit_rate_independent:.3f} | {row.tokens_per_pass:.1f} | "
            f"{row.tokens_per_pass_independent:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
