"""Tokens a pass of the demo model: each draft on the starter and on the held-out prompts.

    python -m benchmarks.demo [--json] [--prompts 10]

Greedy and at temperature 0.8 with one seed. Every answer is compared with plain decoding's, which
answers all prompts at once: its rows are padded to as many anyway.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from engine.errors import EngineError
from engine.messages import Generate, SamplingParams, Tokens
from engine.runtime.engine import Engine
from engine.spec import ModelSpec
from server.config.registry import read_entry

DEMO = Path(__file__).parent.parent / "configs" / "demo"
PLAIN = "demo-plain"
MODELS = (PLAIN, "demo-specexec", "demo")
SAMPLINGS = {"0": SamplingParams(temperature=0.0), "0.8": SamplingParams(temperature=0.8, seed=7)}
MAX_TOKENS = 160


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments.add_argument("--prompts", type=int, help="the first ones of each set (default: all)")
    options = arguments.parse_args()
    rows = measure(options.prompts)
    print(json.dumps(rows) if options.json else table(rows))


def measure(count: int | None = None) -> list[dict[str, Any]]:
    """One row for each model, prompt set and sampling; at most so many prompts of a set."""
    prompts = {name: prompt_ids(name)[:count] for name in ("starters", "held_out")}
    expected: dict[tuple[str, str], list[tuple[int, ...]]] = {}
    rows = []
    for model in MODELS:
        at_once = max(map(len, prompts.values())) if model == PLAIN else 1
        spec = replace(specification(model), max_sequences=at_once)
        engine = Engine.load(spec, lambda what, done, total: None)
        for prompt_set, texts in prompts.items():
            for sampling, params in SAMPLINGS.items():
                parts = [texts[i : i + at_once] for i in range(0, len(texts), at_once)]
                answers = [own for part in parts for own in answer_all(engine, part, params)]
                ids = [tokens for tokens, _ in answers]
                if expected.setdefault((prompt_set, sampling), ids) != ids:
                    raise EngineError(f"{model}: an answer differs from plain decoding's")
                asked = {"model": model, "prompts": prompt_set, "temperature": sampling}
                rows.append({**asked, **figures(answers)})
        engine.close()
    return rows


def specification(model: str) -> ModelSpec:
    """The model's YAML, without the pretended link and always drafting up to the bounds.

    Only passes are counted: how much is drafted must not hang on how fast this machine is.
    """
    spec = read_entry(DEMO.parent / "models" / f"{model}.yaml", model).spec
    draft = replace(spec.draft, tuned=False)
    return replace(spec, draft=draft, stream=replace(spec.stream, simulate_gbps=None))


def prompt_ids(name: str) -> list[list[int]]:
    """The prompts of a file, rendered and tokenized."""
    tokenizer: Any = AutoTokenizer.from_pretrained(DEMO / "target")
    entries = json.loads((DEMO / f"{name}.json").read_text())
    return [tokenizer(render(tokenizer, e), add_special_tokens=False).input_ids for e in entries]


def render(tokenizer: Any, entry: dict[str, Any]) -> str:
    if "prompt" in entry:
        return str(entry["prompt"])
    keys = ("tools", "enable_thinking")
    given = {key: entry[key] for key in keys if key in entry}
    return str(
        tokenizer.apply_chat_template(
            entry["messages"], tokenize=False, add_generation_prompt=True, **given
        )
    )


def answer_all(
    engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams
) -> list[tuple[tuple[int, ...], int]]:
    """The tokens of each answer and the passes it took, the prompt's included."""
    params = replace(params, max_tokens=MAX_TOKENS)
    for number, prompt in enumerate(prompts):
        engine.add(Generate(f"{number}", tuple(prompt), params))
    tokens: dict[str, tuple[int, ...]] = {}
    passes: dict[str, int] = {}
    while engine.has_work():
        for event in engine.step():
            if not isinstance(event, Tokens):
                raise EngineError(event.message)
            tokens[event.request_id] = tokens.get(event.request_id, ()) + event.ids
            if event.stats is not None:
                passes[event.request_id] = event.stats.passes
    return [(tokens[f"{number}"], passes[f"{number}"]) for number in range(len(prompts))]


def figures(answers: Sequence[tuple[tuple[int, ...], int]]) -> dict[str, float]:
    tokens = sum(len(ids) for ids, _ in answers)
    passes = sum(count for _, count in answers)
    return {
        "answers": len(answers),
        "tokens": tokens,
        "passes": passes,
        "tokens_per_pass": tokens / passes,
        "median_tokens_per_pass": statistics.median(len(ids) / count for ids, count in answers),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| model | prompts | temperature | answers | tokens | tokens a pass (median answer) |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        pace = f"{row['tokens_per_pass']:.1f} ({row['median_tokens_per_pass']:.1f})"
        cells = [row[key] for key in ("model", "prompts", "temperature", "answers", "tokens")]
        lines.append("| " + " | ".join(map(str, [*cells, pace])) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
