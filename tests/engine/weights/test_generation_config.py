"""What is taken from generation_config.json."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ModelError
from engine.weights.generation_config import GenerationConfig, read_generation_config

VOCAB = 100


def read(folder: Path, values: dict[str, Any]) -> GenerationConfig:
    (folder / "generation_config.json").write_text(json.dumps(values))
    return read_generation_config(folder, VOCAB)


def test_a_folder_without_the_file_has_no_defaults(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path, VOCAB) == GenerationConfig()


@pytest.mark.parametrize(
    ("values", "sampling"),
    [
        ({}, {}),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.05},
            {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.05},
        ),
        ({"repetition_penalty": 1.05}, {"repetition_penalty": 1.05}),
        ({"top_k": 50.0, "temperature": 1}, {"top_k": 50, "temperature": 1}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.0}),
        ({"top_k": -1, "top_p": None}, {}),
    ],
)
def test_sampling_parameters_are_read(
    values: dict[str, Any], sampling: dict[str, float], tmp_path: Path
) -> None:
    assert dict(read(tmp_path, values).sampling) == sampling


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", "hot"),
        ("temperature", -1),
        ("temperature", True),
        ("temperature", float("nan")),
        ("top_p", 1.5),
        ("top_k", float("inf")),
        ("top_k", 2.5),
        ("repetition_penalty", 0),
        ("suppress_tokens", [VOCAB]),
        ("suppress_tokens", "all"),
    ],
)
def test_a_wrong_value_is_left_out_and_logged(
    key: str, value: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read(tmp_path, {key: value}) == GenerationConfig()
    assert f"generation_config.json: {key}: " in caplog.text


def test_suppressed_tokens_are_read(tmp_path: Path) -> None:
    assert read(tmp_path, {"suppress_tokens": [7, 3.0, 7]}).suppressed == (3, 7)


def test_a_file_that_is_no_object_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(ModelError, match="generation_config"):
        read_generation_config(tmp_path, VOCAB)
