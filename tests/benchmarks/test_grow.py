"""Tests that a grown model has the logits of its source."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks.grow import CannotGrow, grow
from benchmarks.random_model import TOKENIZER, TOKENIZER_FILES, Shape

IDS = torch.arange(3, 51)[None]  # [1, 48]
SHAPES = {
    "wider": Shape(
        layers=3, hidden=128, intermediate=192, heads=8, kv_heads=2, vocabulary=100, context=64
    ),
    "not a multiple": Shape(
        layers=2,
        hidden=152,
        intermediate=130,
        heads=4,
        kv_heads=2,
        vocabulary=100,
        context=64,
        head_dim=16,
    ),
    "more tokens": Shape(
        layers=2,
        hidden=128,
        intermediate=128,
        heads=4,
        kv_heads=2,
        vocabulary=160,
        context=64,
        head_dim=16,
    ),
    "fewer heads share keys": Shape(
        layers=3,
        hidden=144,
        intermediate=128,
        heads=6,
        kv_heads=6,
        vocabulary=100,
        context=64,
        head_dim=16,
    ),
    "wider heads": Shape(
        layers=3,
        hidden=64,
        intermediate=96,
        heads=4,
        kv_heads=2,
        vocabulary=100,
        context=64,
        head_dim=32,
    ),
    "qwen2": Shape(
        layers=4,
        hidden=128,
        intermediate=128,
        heads=12,
        kv_heads=3,
        vocabulary=130,
        context=64,
        head_dim=48,
        family="qwen2",
    ),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    torch.manual_seed(5)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=100,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.1,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        (folder / name).write_bytes((TOKENIZER / name).read_bytes())
    return folder


def logits(folder: Path, dtype: torch.dtype = torch.float32) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.inference_mode():
        result: Tensor = model(IDS).logits[0].float()
    return result


@pytest.mark.parametrize("name", SHAPES)
def test_a_grown_model_has_the_logits_of_its_source(
    source: Path, tmp_path: Path, name: str
) -> None:
    grow(source, tmp_path, SHAPES[name], dtype="float32")
    grown, expected = logits(tmp_path), logits(source)
    torch.testing.assert_close(grown[:, :100], expected, rtol=1e-4, atol=2e-5)
    assert (grown[:, 100:] < -100).all()


def test_a_grown_bfloat16_model_differs_by_rounding_only(source: Path, tmp_path: Path) -> None:
    grow(source, tmp_path, SHAPES["wider"])
    expected = logits(source)
    rounding = (logits(source, torch.bfloat16) - expected).abs().max()
    assert (logits(tmp_path, torch.bfloat16) - expected).abs().max() < 2 * rounding
    assert rounding < 0.05 * expected.abs().max()


def test_added_weights_are_noise(source: Path, tmp_path: Path) -> None:
    """Zeros could be compressed, and some disks store them in no space."""
    checkpoint = grow(source, tmp_path, SHAPES["wider"])
    zeros = 0
    for path in tmp_path.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # not a mapping
                zeros += int((file.get_tensor(name) == 0).sum())
    assert zeros < 0.25 * checkpoint.num_parameters


def test_a_finished_checkpoint_is_not_written_again(source: Path, tmp_path: Path) -> None:
    made = grow(source, tmp_path, SHAPES["wider"])
    marker = tmp_path / "kept"
    marker.touch()
    assert grow(source, tmp_path, SHAPES["wider"]) == made
    assert marker.exists()
    grow(source, tmp_path, SHAPES["wider"], seed=1)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            Shape(
                layers=1,
                hidden=128,
                intermediate=192,
                heads=8,
                kv_heads=2,
                vocabulary=100,
                context=64,
            ),
            "layers: 1 is too small",
        ),
        (
            Shape(
                layers=2,
                hidden=64,
                intermediate=96,
                heads=4,
                kv_heads=2,
                vocabulary=101,
                context=64,
            ),
            "hidden: 64 is too small",
        ),
        (
            Shape(
                layers=2,
                hidden=64,
                intermediate=96,
                heads=4,
                kv_heads=4,
                vocabulary=100,
                context=64,
                head_dim=24,
            ),
            "head_dim: 24 is no multiple",
        ),
        (
            Shape(
                layers=2,
                hidden=64,
                intermediate=96,
                heads=3,
                kv_heads=3,
                vocabulary=100,
                context=64,
                head_dim=16,
            ),
            "kv_heads: 3 is too small",
        ),
    ],
)
def test_a_shape_that_is_too_small_is_refused(
    source: Path, tmp_path: Path, shape: Shape, message: str
) -> None:
    with pytest.raises(CannotGrow, match=message):
        grow(source, tmp_path, shape)
