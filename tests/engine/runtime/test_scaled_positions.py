"""Tests of `target.rope`: a model with scaled positions is the one that transformers scales."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.errors import ModelError
from engine.spec import RopeSpec, TargetSpec
from engine.weights.family import read_config
from tests.engine.models import PLAIN, SUBSPEC, alone, checkpoint, exact, load, prompt, request, run

# Families of which the checkpoints have positions that are not scaled, and their own context.
ROPES = {"qwen2": RopeSpec(4.0), "mistral_window": RopeSpec(2.5), "qwen3": RopeSpec(8.0, 64)}
OWN_CONTEXT = 512


@pytest.mark.parametrize("family", ROPES)
def test_tokens_are_those_of_transformers_with_a_scaled_configuration(family: str) -> None:
    folder, rope = checkpoint(family), ROPES[family]
    original = rope.original or OWN_CONTEXT
    ids = prompt(original + 8, 5)
    auto: Any = AutoModelForCausalLM
    config = auto.from_pretrained(folder).config
    config.rope_parameters |= {
        "rope_type": "yarn",
        "factor": rope.factor,
        "original_max_position_embeddings": original,
    }
    config.max_position_embeddings = int(original * rope.factor)
    model = auto.from_pretrained(folder, config=config, attn_implementation="eager")
    inputs = torch.tensor([ids])
    want = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=2,
    )[0, len(ids) :].tolist()
    engine = load(folder, PLAIN, target=TargetSpec(str(folder), rope=rope))
    assert engine.info.context_length == config.max_position_embeddings
    assert run(engine, [request("r", ids, max_tokens=12)])[("r", 0)].ids == want


def test_answers_beyond_the_own_context_do_not_depend_on_the_draft(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.model.blockwise.KEY_BLOCK", 64)  # the contexts have many blocks
    folder = checkpoint("qwen2")
    target = TargetSpec(str(folder), rope=RopeSpec(4.0))
    texts = {"long": prompt(6, 1) * 110, "crossing": prompt(500, 2), "short": prompt(9, 3)}
    asked = [
        request(f"{name} {temperature}", text, temperature=temperature, seed=3, logprobs=1)
        for name, text in texts.items()
        for temperature in (0.0, 1.0)
    ]
    want = alone(load(folder, PLAIN, target=target), asked)
    assert exact(run(load(folder, SUBSPEC, target=target), asked)) == exact(want)


def test_a_scaled_model_has_its_own_fingerprint() -> None:
    folder = checkpoint("qwen2")
    targets = [TargetSpec(str(folder), rope=RopeSpec(factor)) for factor in (1.0, 2.0, 4.0)]
    assert len({load(folder, PLAIN, target=target).info.fingerprint for target in targets}) == 3


@pytest.mark.parametrize("family", ["llama", "gpt_oss", "phi3_longrope", "gemma3", "phi3"])
def test_positions_that_cannot_be_scaled_are_refused(family: str) -> None:
    with pytest.raises(ModelError, match=r"^target\.rope: .*config\.json"):
        read_config(checkpoint(family), RopeSpec(2.0))


def test_an_original_context_above_the_models_own_is_refused() -> None:
    with pytest.raises(ModelError, match=r"target\.rope\.original: 4096 is more than .* 512"):
        read_config(checkpoint("qwen2"), RopeSpec(2.0, 4096))
