"""Tests of whether a model has layers that are mixtures of experts."""

from typing import Any

import pytest
import torch

from engine.model.library import build_on_meta
from engine.planning.blueprint import active_share
from engine.weights.layout import UnitLayout, lay_out
from engine.weights.outline import unit_modules
from tests.engine.checkpoints import FAMILIES, tiny_config
from tests.engine.hybrids import DENSE, HYBRIDS
from tests.engine.latents import LATENTS, MIXTURES

ALL = [*FAMILIES, *HYBRIDS, *LATENTS]
DENSE_ONES = {*FAMILIES, *DENSE, *LATENTS} - MIXTURES - {"mixtral", "qwen3_moe", "gpt_oss"}


def layers_of(config: Any) -> list[UnitLayout]:
    layers, _ = unit_modules(build_on_meta(config, torch.float32, strict=True))
    return [
        lay_out(path, {name: (own.dtype, own.shape) for name, own in module.state_dict().items()})
        for path, module in layers
    ]


@pytest.mark.parametrize("family", ALL)
def test_a_token_uses_all_weights_but_those_of_experts(family: str) -> None:
    config = tiny_config(family)
    assert (active_share(config, layers_of(config)) == 1.0) == (family in DENSE_ONES)


def test_layers_without_experts_are_dense_whatever_the_keys_say() -> None:
    config = tiny_config("deepseek_v3")
    config.first_k_dense_replace = config.num_hidden_layers
    config.mlp_layer_types = ["dense"] * config.num_hidden_layers
    assert config.num_local_experts == 8
    assert active_share(config, layers_of(config)) == 1.0
