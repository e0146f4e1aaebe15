"""Tests of bad values in config.json: the error names file and key, and takes little time."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import library_call
from engine.errors import ModelError
from engine.model.library import build_of_folder
from engine.planning.blueprint import Blueprint
from engine.printable_logs import PrintableFormatter
from engine.weights.family import read_config
from tests.engine.checkpoints import save_tiny
from tests.engine.models import PLAIN, model_spec

HUGE = 10**9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("llama"))


def changed(folder: Path, tmp_path: Path, **changes: Any) -> Path:
    """Write a folder with only a config.json, with some values changed."""
    values = json.loads((folder / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(values))
    return tmp_path


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, value) for key in ("num_hidden_layers", "hidden_size", "vocab_size")
          for value in (0, -1, 1.5, True, "3", [3], HUGE, 10**40, float("nan"))),
        *((key, HUGE) for key in ("intermediate_size", "num_attention_heads", "head_dim")),
        *((key, HUGE) for key in ("num_key_value_heads", "num_experts", "num_labels", "n_layer")),
        ("num_key_value_heads", 3),
        ("max_position_embeddings", 10**18),
        ("max_position_embeddings", 0),
        ("sliding_window", -1),
        ("rms_norm_eps", float("inf")),
        ("rms_norm_eps", "small"),
        ("rope_theta", float("nan")),
        ("rope_scaling", 5),
        ("quantization_config", "int4"),
        ("layer_types", ["full_attention"]),
        ("layer_types", [{}]),
        ("layer_types", "full_attention"),
        ("dtype", "nn"),
        ("torch_dtype", 7),
        ("model_type", 7),
        ("model_type", "hiera"),
        ("model_type", None),
        ("hidden_act", ["silu"]),
        ("id2label", 3),
        ("per_layer_config", 3),
        ("eos_token_id", {}),
        ("architectures", {"a": {"b": HUGE}}),
    ],
)  # fmt: skip
def test_the_error_of_a_value_out_of_bounds_names_its_key(
    key: str, value: object, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as caught:
        read_config(changed(folder, tmp_path, **{key: value}))
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: {key}")


@pytest.mark.parametrize(
    ("key", "value", "read_as"),
    [
        ("max_position_embeddings", 131072.0, 131072),
        ("num_hidden_layers", 3.0, 3),
        ("rms_norm_eps", 0, 0.0),
        ("max_position_embeddings", 10**10, 10**10),  # allocates nothing
        ("time_step_limit", [0.0, float("inf")], [0.0, float("inf")]),  # of some real models
        ("some_unknown_key", 10**6, 10**6),
    ],
)
def test_values_that_can_be_converted_are_accepted(
    key: str, value: object, read_as: object, folder: Path, tmp_path: Path
) -> None:
    found = getattr(read_config(changed(folder, tmp_path, **{key: value})), key)
    assert found == read_as and type(found) is type(read_as)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "unknown"),
        ("rope_scaling", {"type": "mrope", "mrope_section": [1, 2]}),
        ("rope_scaling", {"rope_type": "unknown"}),
        ("rope_scaling", {"rope_type": "yarn", "factor": "x"}),
    ],
)
def test_the_error_of_a_value_that_transformers_refuses_names_its_key(
    monkeypatch: pytest.MonkeyPatch, key: str, value: object, folder: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(library_call, "BLAME_SECONDS", 600.0)  # the machine may be busy
    place = changed(folder, tmp_path, rope_parameters=None, **{key: value})
    with pytest.raises(ModelError) as caught:
        build_of_folder(place, read_config(place), torch.float32, strict=True)
    assert str(caught.value).startswith(f"{place / 'config.json'}: {key}: ")


def test_log_lines_of_transformers_are_escaped(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rope = {"rope_type": "yarn", "factor": "\x1b[2J"}
    formatters = [handler.formatter for handler in logging.getLogger("transformers").handlers]
    assert any(isinstance(formatter, PrintableFormatter) for formatter in formatters)
    record = logging.LogRecord("a", logging.WARNING, "", 0, "\x1b[2J\x1b", (), None)
    assert PrintableFormatter().format(record) == "\\x1b[2J\\x1b"
    read_config(changed(folder, tmp_path, rope_parameters=None, rope_scaling=rope))
    assert "\x1b" not in capfd.readouterr().err


def test_layers_are_counted_before_a_model_is_built(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path)
    changed(folder, folder, num_hidden_layers=1000, layer_types=None)
    with pytest.raises(
        ModelError, match="num_hidden_layers: 1000, but the checkpoint has 3 layers"
    ):
        Blueprint(model_spec(folder, PLAIN), folder)


def test_choosing_more_experts_than_there_are_is_an_error(tmp_path: Path) -> None:
    folder = save_tiny("mixtral", tmp_path)
    changed(folder, folder, num_experts_per_tok=5)
    with pytest.raises(ModelError, match=r"config\.json: num_experts_per_tok: 5 of 4 experts"):
        read_config(folder)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("adapter_config.json", "a LoRA adapter.*merge_and_unload"),
        ("model.gguf", "model.gguf: the file ends in its first bytes"),
        ("consolidated.safetensors", "Mistral's own format"),
        ("pytorch_model.bin", "PyTorch files.*save_pretrained"),
    ],
)
@pytest.mark.parametrize("has_config", [False, True])
def test_the_error_of_a_folder_without_a_checkpoint_says_what_it_has(
    name: str, advice: str, has_config: bool, folder: Path, tmp_path: Path
) -> None:
    from engine.weights.hub import resolve
    from engine.weights.shards import read_index

    if has_config:
        changed(folder, tmp_path)
    (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError, match=advice):
        read_index(resolve(str(tmp_path), None, lambda step: None).folder)
