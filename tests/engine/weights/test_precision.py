"""The type that a target computes in, by what its files and the settings say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.planning.blueprint import Blueprint
from engine.runtime.target_files import TargetFiles
from engine.spec import ModelSpec, TargetSpec
from tests.engine.checkpoints import save_tiny
from tests.engine.models import PLAIN, add_tokenizer, load, prompt, request, run


def folder_that_names(name: str | None, stored: torch.dtype, folder: Path) -> Path:
    """Return a checkpoint of this type whose config.json names another one, or none."""
    save_tiny("llama", folder, dtype=stored)
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    config.pop("dtype")
    if name is not None:
        config["dtype"] = name
    path.write_text(json.dumps(config))
    return folder


def spec_of(folder: Path, **target: Any) -> ModelSpec:
    return ModelSpec("tiny", TargetSpec(str(folder), **target), device="cpu")


@pytest.mark.parametrize(
    ("named", "stored", "wanted", "computed"),
    [
        (None, torch.float32, None, torch.float32),
        (None, torch.float16, None, torch.float16),
        (None, torch.bfloat16, None, torch.bfloat16),
        (None, torch.float64, None, torch.float32),
        ("auto", torch.float16, None, torch.float16),
        ("float16", torch.float16, None, torch.float16),
        ("bfloat16", torch.float32, None, torch.bfloat16),
        ("float64", torch.float64, None, torch.float32),
        ("float32", torch.float16, "bfloat16", torch.bfloat16),
        (None, torch.float32, "float16", torch.float16),
    ],
)
def test_weights_are_rounded_only_where_something_names_the_type(
    named: str | None,
    stored: torch.dtype,
    wanted: Any,
    computed: torch.dtype,
    tmp_path: Path,
) -> None:
    folder = folder_that_names(named, stored, tmp_path)
    assert Blueprint(spec_of(folder, dtype=wanted), folder).dtype == computed


@pytest.mark.parametrize(
    ("named", "target", "line"),
    [
        (None, {}, None),
        ("bfloat16", {}, "weights are converted from float32 to bfloat16 (dtype in config.json)"),
        (
            None,
            {"dtype": "float16"},
            "weights are converted from float32 to float16 (target.dtype)",
        ),
    ],
)
def test_a_conversion_is_logged_with_its_reason(
    named: str | None,
    target: dict[str, Any],
    line: str | None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = folder_that_names(named, torch.float32, tmp_path)
    add_tokenizer(folder)
    caplog.set_level("INFO")
    files = TargetFiles(spec_of(folder, **target), lambda step: None)
    files.log_remarks()
    files.units.close()
    logged = [record.getMessage() for record in caplog.records]
    assert [text for text in logged if "converted" in text] == ([f"tiny: {line}"] if line else [])


def test_a_float16_model_gives_the_text_of_the_library(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = folder_that_names(None, torch.float16, tmp_path)
    add_tokenizer(folder)
    library: Any = AutoModelForCausalLM
    model = library.from_pretrained(folder, dtype=torch.float16, attn_implementation="eager")
    ids = prompt(20, 5)
    inputs = torch.tensor([ids])
    want = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=2,
    )[0, 20:].tolist()
    got = run(load(folder, PLAIN), [request("r", ids, max_tokens=20)])[("r", 0)]
    assert got.ids == want
