"""Substitutes of a published model whose scales are fitted are nearer to the target."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.real.model import make_model
from benchmarks.real.substitutes import (
    PLAIN,
    Form,
    compare,
    logits_of,
    measure_importance,
    substitute,
    write_answers,
)
from benchmarks.runs import MODELS


@pytest.mark.timeout(1200)
@torch.inference_mode()
def test_fitted_substitutes_are_nearer_to_the_target(chats: dict[str, tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    target: Any = AutoModelForCausalLM.from_pretrained(
        make_model(MODELS / "smollm2"), dtype=torch.bfloat16
    )
    answers = [own for prompt in chats.values() for own in write_answers(target, list(prompt), 48)]
    expected = logits_of(target, answers)
    plain = substitute(target, PLAIN, {})
    fitted = substitute(target, Form("int4", 32, is_fitted=True), measure_importance(plain))
    before, after = (compare(expected, logits_of(model, answers)) for model in (plain, fitted))
    assert after[0] < 0.75 * before[0]  # divergence
    assert after[1] > before[1] > 0.7  # the same best token
    assert after[2] > before[2] > 0.7  # the same choice with the same noise
