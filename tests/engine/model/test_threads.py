"""Tests that a row's result does not depend on its place in the tile, for any thread count."""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig

from engine.model.experts import apply_gate
from engine.model.library import build_on_meta, find_activations
from engine.spec import TILE
from tests.engine.checkpoints import FAMILIES, tiny_config, tiny_model
from tests.engine.models import PLAIN, VOCAB, add_tokenizer, exact, load, prompt, request, run
from tests.variations import variations

Function = Callable[[Tensor], Tensor]

THREADS = [1, 2, 3, 4, 6, 8]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Widths of an MLP: those of real models, and some that are no multiple of a vector block. One row
# may be longer than a piece.
WIDTHS = [1, 7, 33, 96, 511, 513, 896, 1400, 1537, 2880, 4864, 5001, 18944, 33333]
# Families with different activation functions. The others have one of these, and are tested with
# each width and each number of threads, but not with all pairs of them.
WITH_ALL_CASES = ("llama", "gemma2")

# Other functions that layers of transformers compute element by element or row by row.
OTHERS: dict[str, Function] = {
    "rope": lambda x: torch.cat([x.float().cos(), x.float().sin()], dim=-1),
    "norm": lambda x: x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6),
    "soft cap": lambda x: torch.tanh(x / 30) * 30,
    "router": lambda x: x.softmax(-1),
    "router, float32": lambda x: x.softmax(-1, dtype=torch.float32),
    "log-probabilities": lambda x: x.float().log_softmax(-1),
}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@cache
def differing_values(function: Function, dtype: torch.dtype) -> Tensor:
    """Return values for which scalar and vector function differ; all values if none do."""
    torch.set_num_threads(1)
    if dtype.itemsize == 2:
        bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
        values = bits.view(dtype)
        values = values[values.isfinite()]
        values = values[: len(values) // TILE * TILE]
    else:
        values = torch.randn(2**15, generator=torch.Generator().manual_seed(0)) * 4
    few = 14  # less than a vector block of any type
    scalar = torch.cat([function(values[i : i + few]) for i in range(0, len(values), few)])
    different = (scalar != function(values)) & scalar.isfinite()
    return values[different] if different.any() else values


def tile_of_one_row(row: Tensor) -> Tensor:
    """Return a tile [64, W] that holds the row at each place."""
    return row.expand(TILE, -1).contiguous()


def number_of_differing_rows(function: Function, tile: Tensor) -> int:
    """Return how many rows of a tile of equal rows have another result than the first row."""
    result = function(tile)
    return int((result != result[:1]).any(dim=-1).sum())


def strict_model(family: str, dtype: torch.dtype) -> Any:
    return build_on_meta(tiny_config(family), dtype, strict=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_activation_does_not_depend_on_a_rows_place(family: str, dtype: torch.dtype) -> None:
    of_model = find_activations(strict_model(family, dtype))
    assert of_model or family == "gpt_oss"  # its gate has its own test
    for activation in of_model[:1]:
        plain = type(activation)()
        assert isinstance(plain, activation_types()), "add a family to WITH_ALL_CASES"
        values = differing_values(plain.forward, dtype)
        cases = (
            product(WIDTHS, THREADS) if family in WITH_ALL_CASES else zip(WIDTHS, cycle(THREADS))
        )
        for width, threads in cases:
            row = values[torch.arange(2 * width) % len(values)]
            tile = tile_of_one_row(row)
            torch.set_num_threads(threads)
            # A separate tensor, and the first half of a fused product.
            for part in (tile[:, :width].contiguous(), tile[:, :width]):
                case = (width, threads, part.is_contiguous())
                assert number_of_differing_rows(activation, part) == 0, case


@cache
def activation_types() -> tuple[type, ...]:
    """Return the types of activation functions that are tested with all cases."""
    models = [strict_model(family, torch.float32) for family in WITH_ALL_CASES]
    return tuple(type(find_activations(model)[0]) for model in models)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "family", variations(["mixtral", "qwen3_moe", "gpt_oss"], quick=["gpt_oss"])
)
def test_an_experts_gate_does_not_depend_on_a_rows_place(family: str, dtype: torch.dtype) -> None:
    experts = strict_model(family, dtype).get_submodule("model.layers.0.mlp.experts")
    inner = torch.sigmoid if family == "gpt_oss" else F.silu
    values = differing_values(inner, dtype)
    if family == "gpt_oss":
        values = values / experts.alpha
    for width in WIDTHS:
        tile = tile_of_one_row(values[torch.arange(2 * width) % len(values)])
        for threads in THREADS:
            torch.set_num_threads(threads)
            differing = number_of_differing_rows(lambda x: apply_gate(experts, x), tile)
            assert differing == 0, (width, threads)
            whole = apply_gate(experts, tile)
            assert whole.shape == (TILE, width)
            assert torch.allclose(whole, experts._apply_gate(tile), rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OTHERS)
def test_other_functions_of_layers_do_not_depend_on_a_rows_place(
    name: str, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(1)
    for width in WIDTHS:
        tile = tile_of_one_row((torch.randn(width, generator=generator) * 3).to(dtype))
        for threads in THREADS:
            torch.set_num_threads(threads)
            assert number_of_differing_rows(OTHERS[name], tile) == 0, (width, threads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "inputs"), [(4864, 896), (896, 4864), (1400, 96), (8, 2880)])
def test_a_product_does_not_depend_on_a_rows_place(
    outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
    tile = tile_of_one_row(torch.randn(inputs, generator=generator).to(dtype))
    for threads in THREADS:
        torch.set_num_threads(threads)
        assert number_of_differing_rows(lambda x: F.linear(x, weight), tile) == 0, threads


def test_activations_keep_their_values() -> None:
    activation, plain = find_activations(strict_model("llama", torch.float32))[0], F.silu
    x = torch.randn(TILE, 4864, generator=torch.Generator().manual_seed(3))
    for threads in (1, 2, 4):  # with these, PyTorch's own pieces consist of whole blocks
        torch.set_num_threads(threads)
        assert torch.equal(activation(x), plain(x))
    torch.set_num_threads(1)
    want = plain(x)
    torch.set_num_threads(3)
    assert not torch.equal(plain(x), want)  # PyTorch without our pieces
    assert torch.equal(activation(x), want)


def wide_checkpoint(folder: Path) -> Path:
    """Write a small Llama whose MLP is as wide as a real one."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=4864,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=1,
    )
    tiny_model(config, torch.float32).save_pretrained(folder)
    add_tokenizer(folder)
    return folder


def test_on_three_threads_an_answer_does_not_depend_on_other_requests(tmp_path: Path) -> None:
    folder = wide_checkpoint(tmp_path)
    requests = [
        request(f"{n}", prompt(11 + 7 * n, n), max_tokens=12, logprobs=2, prompt_logprobs=1)
        for n in range(4)
    ]
    engine = load(folder, PLAIN)
    torch.set_num_threads(3)  # after loading, which sets its own number
    together = exact(run(engine, requests))
    for own in requests:
        # Each has a new engine, so that the prefix cache holds nothing of the other requests.
        engine = load(folder, PLAIN)
        torch.set_num_threads(3)
        assert exact(run(engine, [own])) == {(own.request_id, 0): together[own.request_id, 0]}
