"""Fused layers of drafts: which modules they replace, that they give the same, what they launch."""

# mypy: disallow-subclassing-any=False
# The methods of the library's classes have other types than these tests need.

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral

from engine.drafting.growth import Growth
from engine.drafting.model.fused import fuse as fusing
from engine.drafting.model.fused.fuse import fuse
from engine.drafting.model.fused.modules import FusedAttention, FusedLayer, FusedMlp, FusedNorm
from engine.drafting.model.fused.operations import AttentionRule, NormRule, TorchOperations
from engine.drafting.model.fused.triton_operations import LAUNCHES
from engine.streaming.cpu_link import CpuDevice
from tests.engine.kernel_nodes import CountedOperations, KernelNodes, padded_step
from tests.engine.models import SUBSPEC, checkpoint, draft_model, load, prompt
from tests.engine.padded import draft_of, grow
from tests.engine.sequence_makers import make_sequence
from tests.engine.structures import save_structure
from tests.variations import variations

CPU = CpuDevice()
Mlp: Any = modeling_llama.LlamaMLP
Layer: Any = modeling_llama.LlamaDecoderLayer
Attention: Any = modeling_mistral.MistralAttention
LLAMAS = ("llama", "qwen2", "qwen3", "mistral", "mistral_window", "phi3")
OTHERS = ("gemma2", "gemma3", "granite")
DRAFT = replace(SUBSPEC, calibrate=False)


def inner_layers(decoder: Any) -> list[nn.Module]:
    return [layer.inner for layer in decoder.decoder.layers]


def kinds(layer: nn.Module) -> set[type[nn.Module]]:
    """Return the classes of fused modules in a layer, and of itself."""
    fused = (FusedAttention, FusedLayer, FusedMlp, FusedNorm)
    return {type(module) for module in layer.modules() if isinstance(module, fused)}


def logits_of_steps(folder: Path, fuses: bool) -> list[Tensor]:
    """Return the logits of some draft steps: a prompt, trees, two sequences."""
    model = draft_of(folder, CPU)
    if fuses:
        fuse(model.decoder, model.caches.cache, TorchOperations())
    found: list[Tensor] = []
    forward = model._forward

    def keep(step: Any) -> Tensor:
        found.append(forward(step))
        return found[-1]

    model._forward = keep  # type: ignore[method-assign]  # what a step returns is not kept
    growths = [Growth(make_sequence(prompt(count, count)), 40) for count in (70, 20)]
    grow(model, growths[:1], 3)
    grow(model, growths, 3)
    return found


@torch.inference_mode()
@pytest.mark.parametrize("family", [*LLAMAS, *OTHERS, "phi3_longrope", "mixtral", "gpt_oss"])
def test_fused_layers_give_the_logits_of_the_librarys(family: str) -> None:
    folder = checkpoint(family)
    want, found = logits_of_steps(folder, fuses=False), logits_of_steps(folder, fuses=True)
    assert len(found) == len(want) == 6
    for own, other in zip(found, want, strict=True):
        torch.testing.assert_close(own, other, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", LLAMAS)
def test_layers_of_the_llama_shape_are_fused_as_a_whole(
    family: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, fusing.__name__):
        decoder = draft_model(load(checkpoint(family), DRAFT)).decoder
    assert all(type(layer) is FusedLayer for layer in inner_layers(decoder))
    assert not [own for own in caplog.records if own.name == fusing.__name__]
    assert isinstance(decoder.decoder.norm, FusedNorm)


@pytest.mark.parametrize("family", OTHERS)
def test_parts_of_other_layers_are_fused(family: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, fusing.__name__):
        decoder = draft_model(load(checkpoint(family), DRAFT)).decoder
    for layer in inner_layers(decoder):
        assert kinds(layer) == {FusedAttention, FusedMlp, FusedNorm}
    (record,) = (own for own in caplog.records if own.name == fusing.__name__)
    assert "modules of the library" in record.message and "DecoderLayer" in record.message


@torch.inference_mode()
def test_attention_that_shares_keys_stays_the_librarys(tmp_path: Path) -> None:
    model = draft_of(save_structure("gemma4_text", tmp_path), CPU)
    fuse(model.decoder, model.caches.cache, TorchOperations())
    for layer in inner_layers(model.decoder):
        assert FusedAttention not in kinds(layer) and FusedMlp in kinds(layer)


def test_a_fused_norm_has_the_weight_whose_type_layers_read() -> None:
    weight = torch.ones(8, dtype=torch.bfloat16)
    norm = FusedNorm(TorchOperations(), NormRule(weight, 1e-6, 0.0))
    assert norm.weight is weight and not [*norm.parameters()]


class _OtherMlp(Mlp):
    """An MLP with the parts of another one, which computes something else."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) + 0.1 * x


class _OtherLayer(Layer):
    """A layer with the parts of another one, which adds them up with other factors."""

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Any:
        return 0.9 * hidden_states + 0.1 * super().forward(hidden_states, **arguments)


class _OtherRotation(Attention):
    """Attention that rotates nothing."""

    def forward(self, hidden_states: Tensor, position_embeddings: Any, **arguments: Any) -> Any:
        cos, sin = position_embeddings
        still = torch.ones_like(cos), torch.zeros_like(sin)
        return super().forward(hidden_states, position_embeddings=still, **arguments)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("family", "change", "kept", "fused"),
    [
        ("llama", _OtherMlp, "LlamaDecoderLayer, _OtherMlp", {FusedAttention, FusedNorm}),
        ("llama", _OtherLayer, "_OtherLayer", {FusedAttention, FusedMlp, FusedNorm}),
        ("mistral", _OtherRotation, "MistralDecoderLayer, _OtherRotation", {FusedMlp, FusedNorm}),
    ],
)
def test_what_computes_something_else_stays_the_librarys(
    family: str,
    change: type[nn.Module],
    kept: str,
    fused: set[type[nn.Module]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = draft_of(checkpoint(family), CPU)
    for layer in model.decoder.decoder.layers:
        for module in [*layer.inner.modules()]:
            if type(module) is change.__bases__[0]:
                module.__class__ = change
    with caplog.at_level(logging.INFO, fusing.__name__):
        fuse(model.decoder, model.caches.cache, TorchOperations())
    for layer in inner_layers(model.decoder):
        assert kinds(layer) == fused
    assert f"the draft runs modules of the library: {kept}" in caplog.messages


@torch.inference_mode()
def test_a_window_of_another_size_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of the comparison are outside of each other's window."""
    rule = AttentionRule

    def wrong(**facts: Any) -> Any:
        return rule(**{**facts, "sliding_window": None})

    monkeypatch.setattr(fusing, "AttentionRule", wrong)
    model = draft_of(checkpoint("mistral_window"), CPU)
    fuse(model.decoder, model.caches.cache, TorchOperations())
    for layer in inner_layers(model.decoder):
        assert FusedAttention not in kinds(layer)


@torch.inference_mode()
def test_the_cache_is_as_before() -> None:
    model = draft_of(checkpoint("llama"), CPU)
    cache = model.caches.cache
    free = cache.num_free_pages
    fuse(model.decoder, cache, TorchOperations())
    assert cache.num_free_pages == free


@torch.inference_mode()
@pytest.mark.parametrize(
    ("family", "most"),
    variations(
        [*((family, 300) for family in LLAMAS), *((family, 450) for family in OTHERS)],
        quick=[("qwen3", 300), ("gemma3", 450)],
    ),
)
def test_a_step_of_28_layers_launches_few_kernels(
    family: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`tests/kernels` holds that Triton's operations launch as many kernels as is counted here."""
    counted = CountedOperations(TorchOperations(), LAUNCHES)
    place = "engine.drafting.model.self_draft.choose_operations"
    monkeypatch.setattr(place, lambda *_: counted)
    folder = checkpoint(family, torch.bfloat16, layers=28)
    step = padded_step(draft_model(load(folder, DRAFT)), rows=8)
    counted.nodes.counts.clear()
    with counted.nodes:
        step.run()
    assert 28 * 9 < counted.nodes.total <= most, counted.nodes.counts


def test_nodes_are_counted_without_views() -> None:
    with KernelNodes() as nodes:
        values = torch.zeros(4, 4).t()[1:].view(3, 4)
        values += 1
        torch.empty(3).copy_(values[0, :3])
    assert nodes.counts == {"zeros": 1, "add_": 1, "copy_": 1}
