"""Tests that find the weights of experts in a model."""

from typing import Any

import pytest
import torch
from torch import nn

from engine.model.library import build_on_meta
from engine.weights.expert_weights import ExpertWeights, find_experts
from engine.weights.outline import decoder_layers
from tests.engine.checkpoints import FAMILIES, tiny_config
from tests.engine.hybrids import DENSE, HYBRIDS
from tests.engine.latents import LATENTS, MIXTURES
from tests.engine.structures import structure_config

ALL = [*FAMILIES, *HYBRIDS, *LATENTS]
DENSE_ONES = {*FAMILIES, *DENSE, *LATENTS} - MIXTURES - {"mixtral", "qwen3_moe", "gpt_oss"}


def experts_of(config: Any) -> ExpertWeights:
    return find_experts(decoder_layers(build_on_meta(config, torch.float32, strict=True)))


@pytest.mark.parametrize("family", ALL)
def test_mixtures_have_fused_weights_and_others_have_none(family: str) -> None:
    found = experts_of(tiny_config(family))
    assert (not found.stacks) == (family in DENSE_ONES)
    assert bool(found.count) == bool(found.stacks) and not found.unknown


@pytest.mark.parametrize(
    ("config", "stacks", "others"),
    [
        (tiny_config("mixtral"), {"gate_up_proj": False, "down_proj": False}, {"mlp.gate.weight"}),
        (
            tiny_config("gpt_oss"),
            {"gate_up_proj": True, "down_proj": True},
            {
                "mlp.router.weight",
                "mlp.experts.gate_up_proj_bias",
                "mlp.experts.down_proj_bias",
            },
        ),
        (tiny_config("nemotron_h"), {"up_proj": False, "down_proj": False}, {"mixer.gate.weight"}),
        (tiny_config("gemma4_experts"), None, {"router.proj.weight"}),
        (
            structure_config("llama4_text"),
            {"gate_up_proj": True, "down_proj": True},
            {"feed_forward.router.weight"},
        ),
    ],
    ids=["mixtral", "gpt_oss", "nemotron_h", "gemma4", "llama4"],
)
def test_routers_and_biases_are_kept(
    config: Any, stacks: dict[str, bool] | None, others: set[str]
) -> None:
    found = experts_of(config)
    assert found.others == others
    if stacks is not None:
        assert {name.rpartition(".")[2]: own for name, own in found.stacks.items()} == stacks
    assert found.count == 4


def test_layers_without_experts_are_dense_whatever_the_keys_say() -> None:
    config: Any = tiny_config("deepseek_v3")
    config.first_k_dense_replace = config.num_hidden_layers
    config.mlp_layer_types = ["dense"] * config.num_hidden_layers
    assert config.num_local_experts == 8
    assert not experts_of(config).stacks


def test_fused_weights_of_another_kind_are_named() -> None:
    layer: Any = nn.Module()
    layer.experts = nn.Module()
    layer.experts.weight = nn.Parameter(torch.zeros(4, 8, 8))
    found = find_experts([layer])
    assert found.unknown == {"Module"} and not found.stacks
