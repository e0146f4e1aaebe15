"""Tests that the example in the docstring of the package works when its file is added."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.errors import ModelError
from engine.spec import DraftSpec, StreamSpec
from engine.weights import formats, stored_format
from engine.weights.units import CheckpointUnits
from tests.engine.checkpoints import save_tiny
from tests.engine.models import PLAIN, SUBSPEC, add_tokenizer, exact, load, prompt, request, run
from tests.engine.planning.test_blueprint import both
from tests.engine.weights.formats.test_linear import meta_model, set_quantization
from tests.examples import added, example_in, write_files

NAME = "int8_rows"


@pytest.fixture
def example(tmp_path: Path) -> Iterator[None]:
    """Put the example of the package's docstring into the package, as a file."""
    write_files(tmp_path, {f"engine/weights/formats/{NAME}.py": example_in(formats.__doc__)})
    stored_format._modules.cache_clear()
    with added(tmp_path, formats):
        yield
    stored_format._modules.cache_clear()


def write(family: str, folder: Path) -> tuple[Path, Path]:
    """Write a checkpoint in the example's format, and a plain one of the same values."""
    plain, stored = folder / "plain", folder / "stored"
    save_tiny(family, plain, layers=2, max_shard_size="1GB", tied=False)
    add_tokenizer(plain)
    shutil.copytree(plain, stored)
    set_quantization(stored, quant_method=NAME)
    (path,) = plain.glob("*.safetensors")
    values, codes = load_file(path), dict[str, Tensor]()
    for name in list(values):
        if not name.endswith(("_proj.weight", "lm_head.weight")):
            codes[name] = values[name]
            continue
        scale = values[name].abs().amax(-1) / 127
        codes[f"{name}.scale"] = scale
        codes[f"{name}.codes"] = (values[name] / scale.unsqueeze(-1)).round().to(torch.int8)
        values[name] = codes[f"{name}.codes"] * scale.unsqueeze(-1)
    save_file(values, path)
    save_file(codes, stored / path.name)
    return stored, plain


@pytest.mark.parametrize("stream", [StreamSpec("ram", 2), StreamSpec("disk", 2)])
@pytest.mark.parametrize(
    ("family", "draft"),
    # The experts of qwen3_moe are stored, and so quantized, one by one.
    [("llama", PLAIN), ("llama", SUBSPEC), ("qwen3_moe", DraftSpec("ngram"))],
)
@pytest.mark.usefixtures("example")
def test_the_example_gives_the_answers_of_the_plain_checkpoint(
    family: str, draft: DraftSpec, stream: StreamSpec, tmp_path: Path
) -> None:
    stored, plain = write(family, tmp_path)
    asked = [request("g", prompt(8), logprobs=2), request("s", prompt(9), temperature=1.0, seed=1)]
    want = run(load(plain, PLAIN), asked)
    assert exact(run(load(stored, draft, stream=stream), asked)) == exact(want)


@pytest.mark.parametrize(
    ("family", "down"),
    [("llama", "mlp.down_proj.weight"), ("qwen3_moe", "mlp.experts.down_proj")],
)
@pytest.mark.usefixtures("example")
def test_the_example_is_planned_from_its_configuration(
    family: str, down: str, tmp_path: Path
) -> None:
    stored, _ = write(family, tmp_path)
    read, planned = both(stored, tmp_path / "alone")
    assert planned.layouts == read.layouts
    packed = {field.name for field in planned.layouts[0].fields}
    assert {f"{down}.codes", f"{down}.scale"} <= packed
    assert {field.name for field in planned.layouts[-1].fields} == {"weight.codes", "weight.scale"}


def without_a_scale(tensors: dict[str, Tensor]) -> None:
    del tensors["model.layers.0.mlp.up_proj.weight.scale"]


def of_another_shape(tensors: dict[str, Tensor]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    for part in ("codes", "scale"):
        tensors[f"{name}.{part}"] = tensors[f"{name}.{part}"][1:].contiguous()


def of_no_module(tensors: dict[str, Tensor]) -> None:
    for part in ("codes", "scale"):
        tensors[f"other.{part}"] = tensors[f"lm_head.weight.{part}"].clone()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_a_scale, "up_proj.weight.codes has no model.layers.0.mlp.up_proj.weight.scale"),
        (of_another_shape, r"up_proj.weight.codes expands to \[95, 64\], but .* needs \[96, 64\]"),
        (of_no_module, "unexpected tensor other: the model has no place"),
    ],
)
@pytest.mark.usefixtures("example")
def test_the_error_of_a_damaged_checkpoint_names_the_tensor(
    damage: Any, message: str, tmp_path: Path
) -> None:
    stored, _ = write("llama", tmp_path)
    (path,) = stored.glob("*.safetensors")
    tensors = load_file(path)
    damage(tensors)
    save_file(tensors, path)
    with pytest.raises(ModelError, match=f"{path}: .*{message}"):
        CheckpointUnits(stored, meta_model(stored, torch.float32), torch.float32)


@pytest.mark.usefixtures("example")
def test_the_error_of_an_unknown_format_lists_the_known_ones(tmp_path: Path) -> None:
    stored, _ = write("llama", tmp_path)
    set_quantization(stored, quant_method="other")
    with pytest.raises(ModelError, match=r"'other'.*; awq \(gemm\), bits.*, mxfp4, int8 r"):
        CheckpointUnits(stored, meta_model(stored, torch.float32), torch.float32)
