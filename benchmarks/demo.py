"""Count the tokens per pass of each demo model on its starter and held-out prompts.

    python -m benchmarks.demo [--json] [--prompts 10]

Answers are greedy, and sampled at temperature 0.8 with one seed. Every answer is compared with the
answer of plain decoding, which answers all prompts at once because its rows are padded anyway.
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
    arguments.add_argument("--prompts", type=int, help="prompts of each set (default: all)")
    options = arguments.parse_args()
    rows = measure(options.prompts)
    print(json.dumps(rows) if options.json else format_table(rows))


def measure(count: int | None = None) -> list[dict[str, Any]]:
    """Return one row for each model, prompt set and temperature.

    Args:
        count: prompts used of each set; None: all.

    Raises `EngineError` if an answer differs from the answer of plain decoding.
    """
    prompts = {name: load_prompts(name)[:count] for name in ("starters", "held_out")}
    expected: dict[tuple[str, str], list[tuple[int, ...]]] = {}
    rows = []
    for model in MODELS:
        at_once = max(map(len, prompts.values())) if model == PLAIN else 1
        spec = replace(make_spec(model), max_sequences=at_once)
        engine = Engine.load(spec, lambda step: None)
        for prompt_set, texts in prompts.items():
            for sampling, params in SAMPLINGS.items():
                parts = [texts[i : i + at_once] for i in range(0, len(texts), at_once)]
                answers = [own for part in parts for own in answer_all(engine, part, params)]
                ids = [tokens for tokens, _ in answers]
                if expected.setdefault((prompt_set, sampling), ids) != ids:
                    raise EngineError(f"{model}: an answer differs from plain decoding's")
                asked = {"model": model, "prompts": prompt_set, "temperature": sampling}
                rows.append({**asked, **make_figures(answers)})
        engine.close()
    return rows


def make_spec(model: str) -> ModelSpec:
    """Read a model's YAML file; remove the simulated link, and always draft up to the bounds.

    Only passes are counted, so the size of the trees must not depend on this machine's speed.
    """
    spec = read_entry(DEMO.parent / "models" / f"{model}.yaml", model).spec
    draft = replace(spec.draft, tuned=False)
    return replace(spec, draft=draft, stream=replace(spec.stream, simulate_gbps=None))


def load_prompts(name: str) -> list[list[int]]:
    """Return the token ids of each prompt of a file."""
    tokenizer: Any = AutoTokenizer.from_pretrained(DEMO / "target")
    entries = json.loads((DEMO / f"{name}.json").read_text())
    return [tokenizer(render(tokenizer, e), add_special_tokens=False).input_ids for e in entries]


def render(tokenizer: Any, entry: dict[str, Any]) -> str:
    """Return the text of a prompt; a chat is rendered by the tokenizer's template."""
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
    """Return the tokens of each answer and its number of passes, the prompt's pass included."""
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


def make_figures(answers: Sequence[tuple[tuple[int, ...], int]]) -> dict[str, float]:
    """Return the totals and ratios of answers, each given as its tokens and passes."""
    tokens = sum(len(ids) for ids, _ in answers)
    passes = sum(count for _, count in answers)
    return {
        "answers": len(answers),
        "tokens": tokens,
        "passes": passes,
        "tokens_per_pass": tokens / passes,
        "median_tokens_per_pass": statistics.median(len(ids) / count for ids, count in answers),
    }


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| model | prompts | temperature | answers | tokens | tokens a pass (median answer) |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        pace = f"{row['tokens_per_pass']:.1f} ({row['median_tokens_per_pass']:.1f})"
        cells = [row[key] for key in ("model", "prompts", "temperature", "answers", "tokens")]
        lines.append("| " + " | ".join(map(str, [*cells, pace])) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
