"""Plans for CUDA cards without fast bfloat16: they are made by what the card can compute."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.drafting.method import PlanContext, facts_of
from engine.errors import ModelError
from engine.planning.blueprint import Blueprint
from engine.runtime.target_files import TargetFiles
from engine.spec import DraftSpec, ModelSpec, TargetSpec
from engine.streaming.cpu_link import CpuDevice
from engine.weights.formats import nf4
from tests.engine.checkpoints import save_tiny

CARD = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_tiny("llama", path, dtype=torch.bfloat16, width=4)
    return path


def set_capability(monkeypatch: pytest.MonkeyPatch, major: int, minor: int) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, minor))


def spec_of(folder: Path, dtype: Any) -> ModelSpec:
    return ModelSpec("m", TargetSpec(str(folder), dtype=dtype))


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_model_in_bfloat16_is_refused_with_the_types_that_an_older_card_computes_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any
) -> None:
    set_capability(monkeypatch, 7, 5)
    monkeypatch.setattr("engine.runtime.target_files.choose_device", lambda *_: CpuDevice(CARD))
    with pytest.raises(ModelError, match=r"target\.dtype: .*capability 7\.5.*float16.*float32"):
        TargetFiles(spec_of(folder, dtype), lambda *_: None)


@pytest.mark.parametrize(
    ("device", "capability", "dtype"),
    [
        (CARD, (7, 5), "float16"),
        (CARD, (7, 0), "float32"),
        (CARD, (8, 0), None),
        (torch.device("cpu"), None, None),
        (None, None, None),  # a card of another machine, which `understudy plan` was asked about
    ],
)
def test_other_models_and_cards_are_served(
    folder: Path, monkeypatch: pytest.MonkeyPatch, device: Any, capability: Any, dtype: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert Blueprint(spec_of(folder, dtype), folder, device).dtype == getattr(
        torch, dtype or "bfloat16"
    )


def context_of(folder: Path, device: torch.device | None) -> PlanContext:
    """Return what SubSpec plans with for the model in float16."""
    blueprint = Blueprint(spec_of(folder, "float16"), folder, device)
    outline = blueprint.outlines[False]
    return PlanContext(
        draft=DraftSpec("subspec"),
        bounds=facts_of("subspec").bounds,
        config=blueprint.config,
        dtype=blueprint.dtype,
        layouts=outline.layouts,
        layers=outline.layers,
        device=device,
    )


def test_the_copies_are_counted_in_the_form_that_the_card_multiplies(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = facts_of("subspec").needs
    context = context_of(folder, None)
    recent = needs(context)
    set_capability(monkeypatch, 8, 9)
    assert needs(replace(context, device=CARD)) == recent
    set_capability(monkeypatch, 7, 5)
    older = needs(replace(context, device=CARD))
    assert older.weight_bytes < recent.weight_bytes, "nf4, in blocks of 64"


def test_without_a_product_that_an_older_card_has_there_are_no_copies(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_capability(monkeypatch, 7, 5)
    monkeypatch.setattr(nf4, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"draft\.method: subspec .*capability 7\.5.*bitsandbytes"):
        facts_of("subspec").needs(context_of(folder, CARD))
