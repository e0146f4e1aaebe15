"""Measure the demo models: `python configs/demo/measure.py`; `--write` also stores the answers.

The starter prompts are answered greedily in bfloat16 and checked for the facts that their answers
must contain. The target also answers the held-out prompts greedily. Agreement is the share of these
tokens that the draft, or the target with 4-bit layers, chooses after the same text.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

sys.path.insert(0, str(Path(__file__).parents[2]))

from configs.demo.chats import equation
from configs.demo.phrases import HELD_OUT, TRAINING, Fillers

HERE = Path(__file__).parent
GROUP = 32
NUM_SUMS = 200


def load(folder: Path) -> PreTrainedModel:
    """Load one of the two models in bfloat16."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    return model


def prompt_ids(tokenizer: PreTrainedTokenizerFast, entry: dict[str, Any]) -> Tensor:
    """Return the prompt of a starter or held-out entry as ids [1, tokens]."""
    text = tokenizer.apply_chat_template(
        entry["messages"],
        tools=entry.get("tools") or None,
        enable_thinking=entry.get("enable_thinking", False),
        add_generation_prompt=True,
        tokenize=False,
    )
    return torch.tensor([tokenizer.encode(text, add_special_tokens=False)])


@torch.no_grad()
def greedy(model: PreTrainedModel, ids: Tensor, num_tokens: int) -> Tensor:
    """Return the greedy answer as ids [tokens], with the end token if it was reached."""
    out = model.generate(  # type: ignore[operator]
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=num_tokens
    )
    following: Tensor = out[0, ids.shape[1] :]
    return following


def to_four_bits(model: PreTrainedModel) -> None:
    """Round the layers' matrices to 16 levels in each group of `GROUP` inputs, in place."""
    for module in model.model.layers.modules():
        if isinstance(module, nn.Linear):
            weight = module.weight.data
            groups = weight.float().view(-1, GROUP)
            low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
            step = ((high - low) / 15).clamp_min(1e-8)
            rounded = ((groups - low) / step).round() * step + low
            module.weight.data = rounded.view_as(weight).to(weight.dtype)


@torch.no_grad()
def agreement(model: PreTrainedModel, texts: list[tuple[Tensor, Tensor]]) -> float:
    """Return the share of the written tokens that `model` chooses at the same places."""
    hits, count = 0, 0
    for prompt, written in texts:
        ids = torch.cat([prompt, written[None]], dim=1)
        chosen = model(ids).logits[0, prompt.shape[1] - 1 : -1].argmax(-1)
        hits += int((chosen == written).sum())
        count += len(written)
    return hits / count


def right_sums(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, fillers: Fillers
) -> float:
    """Return the share of right answers to `NUM_SUMS` sums and differences below 100."""
    rng, right = random.Random(3), 0
    for _ in range(NUM_SUMS):
        a, sign, b, result = equation(rng, fillers)
        question = {"messages": [{"role": "user", "content": f"What is {a} {sign} {b}?"}]}
        written = tokenizer.decode(greedy(model, prompt_ids(tokenizer, question), 16))
        right += written == f"{a} {sign} {b} = {result}.<|im_end|>"
    return right / NUM_SUMS


def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, starters: list[dict[str, Any]]
) -> Iterator[tuple[str, list[str]]]:
    """Yield the answer to each starter and the required pieces that it lacks."""
    for starter in starters:
        written = greedy(model, prompt_ids(tokenizer, starter), starter["max_tokens"])
        text = str(tokenizer.decode(written))
        missing = [piece for piece in starter["contains"] if piece not in text]
        if not text.endswith("<|im_end|>"):
            missing.append("<|im_end|>")
        yield text.removesuffix("<|im_end|>"), missing


def measure_starters(
    target: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, write: bool
) -> None:
    """Print every answer and the pieces that it lacks; store the answers if `write` is true."""
    path = HERE / "starters.json"
    starters = json.loads(path.read_text())
    for starter, (text, missing) in zip(
        starters, answers(target, tokenizer, starters), strict=True
    ):
        print(f"{starter['id']}: {text!r} {f'LACKS {missing}' if missing else 'ok'}")
        starter["answer"] = text
    if write:
        path.write_text(json.dumps(starters, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    """Measure the starters, the agreement and the sums."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="store the answers to the starters")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(HERE / "target")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    target, draft = load(HERE / "target"), load(HERE / "draft")
    measure_starters(target, tokenizer, options.write)
    entries = json.loads((HERE / "held_out.json").read_text())
    prompts = [prompt_ids(tokenizer, entry) for entry in entries]
    texts = [(prompt, greedy(target, prompt, 160)) for prompt in prompts]
    print(f"agreement of the draft {agreement(draft, texts):.3f}")
    for name, fillers in (("trained", TRAINING), ("held-out", HELD_OUT)):
        print(f"right sums, {name} numbers: {right_sums(target, tokenizer, fillers):.3f}")
    to_four_bits(target)
    print(f"agreement of the 4-bit copy {agreement(target, texts):.3f}")


if __name__ == "__main__":
    main()
