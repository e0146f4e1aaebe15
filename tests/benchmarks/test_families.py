"""Tests of the survey of model families: what the plan accepts is loaded, for every type."""

import json
from pathlib import Path

import pytest

from benchmarks.families import Outcome, all_families, read_results, survey

PARTS = 32  # of all types, so that several processes share them


def test_results_of_an_ended_survey_are_read_again(tmp_path: Path) -> None:
    file = tmp_path / "results"
    assert read_results(file) == {}
    line = json.dumps({"family": "llama", "result": "equal", "reason": ""})
    file.write_text(f"{line}\n{line[:20]}")  # the survey was ended while it wrote
    assert read_results(file) == {"llama": Outcome("llama", "equal")}


@pytest.mark.parametrize(
    ("family", "result", "reason"),
    [
        # Experts that are stored transposed, and gate and up as two blocks of rows.
        pytest.param("qwen3_vl_moe", "equal", "", marks=pytest.mark.slow),
        pytest.param("minimax_m3_vl", "equal", "", marks=pytest.mark.slow),
        ("molmo2", "refused", "is stored in a form that must be computed"),
        ("mamba", "refused", "has no layer with attention"),
        ("deepseek_v32", "refused", "each row selects the tokens that it attends to by an index"),
        ("moshi", "refused", "logits depend on whether it keeps keys and values"),
    ],
)
def test_a_tiny_model_is_served_or_refused(family: str, result: str, reason: str) -> None:
    outcome = survey(family)
    assert outcome.result == result
    assert reason in outcome.reason


def test_drafts_are_made_of_layers_under_any_name() -> None:
    assert survey("gpt2", ("subspec",)) == Outcome("gpt2", "equal")


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(part, marks=pytest.mark.long if part else pytest.mark.slow)
        for part in range(PARTS)
    ],
)
def test_loading_refuses_exactly_what_the_plan_refuses(part: int) -> None:
    found = [survey(family, methods=()) for family in all_families()[part::PARTS]]
    assert not [own for own in found if own.result not in ("loaded", "refused", "not built")]
