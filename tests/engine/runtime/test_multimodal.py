"""Tests of models that take images too: their language part is served, from text alone."""

import logging
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMultimodalLM

from engine.errors import ModelError
from engine.planning.blueprint import Blueprint
from engine.spec import DraftSpec
from tests.engine.models import PLAIN, SUBSPEC, load, model_spec, prompt, request, run
from tests.engine.wrappers import WRAPPERS, save_wrapper, write_config_alone
from tests.variations import variations

LENGTH = 70  # tokens of the prompt, more than a tile


@cache
def greedy(folder: Path) -> list[int]:
    """Return the tokens that the library's own model generates."""
    auto: Any = AutoModelForMultimodalLM
    model = auto.from_pretrained(folder, attn_implementation="eager")
    inputs = torch.tensor([prompt(LENGTH)])
    new = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    tokens = model.generate(inputs, attention_mask=torch.ones_like(inputs), **new)
    found: list[int] = tokens[0, LENGTH:].tolist()
    return found


@pytest.mark.parametrize("family", variations(WRAPPERS, quick=["gemma3", "qwen3_vl"]))
def test_the_answers_equal_the_librarys_and_the_vision_tower_is_not_read(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_wrapper(family, tmp_path)
    for draft in (PLAIN, DraftSpec("ngram") if family == "llama4" else SUBSPEC):
        with caplog.at_level(logging.WARNING):
            engine = load(folder, draft)
        answers = run(engine, [request("r", prompt(LENGTH), max_tokens=16)])
        assert answers[("r", 0)].ids == greedy(folder), draft.method
    assert "NaN" not in caplog.text


@pytest.mark.parametrize("family", ["gemma3", "qwen2_5_vl"])
def test_tensors_with_the_librarys_own_names_are_found(family: str, tmp_path: Path) -> None:
    published = save_wrapper(family, tmp_path / "published")
    own = save_wrapper(family, tmp_path / "own", published_names=False)
    names = [set(load_file(folder / "model.safetensors")) for folder in (published, own)]
    assert names[0] != names[1]
    answers = run(load(own, PLAIN), [request("r", prompt(LENGTH), max_tokens=16)])
    assert answers[("r", 0)].ids == greedy(published)


@pytest.mark.parametrize("family", WRAPPERS)
def test_the_plan_from_config_json_alone_has_the_sizes_of_the_language_part(
    family: str, tmp_path: Path
) -> None:
    alone = Blueprint(model_spec(write_config_alone(family, tmp_path), PLAIN), tmp_path)
    folder = save_wrapper(family, tmp_path / "whole")
    whole = Blueprint(model_spec(folder, PLAIN), folder)
    assert [u.nbytes for u in alone.outlines[True].layouts] == [
        u.nbytes for u in whole.outlines[True].layouts
    ]
    assert not [name for name in alone.outlines[True].wanted if "vis" in name]


def test_a_strange_tensor_of_the_language_part_is_still_refused(tmp_path: Path) -> None:
    file = save_wrapper("llava", tmp_path) / "model.safetensors"
    stray = {"language_model.model.layers.0.stray": torch.zeros(1)}
    save_file({**load_file(file), **stray}, file)
    with pytest.raises(ModelError, match=r"unexpected tensor language_model.model.layers.0.stray"):
        load(tmp_path, DraftSpec("none"))
