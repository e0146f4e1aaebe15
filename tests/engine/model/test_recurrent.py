"""Tests of the seam to recurrent layers: their shapes, and errors that the guard notices."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig
from transformers.models.qwen3_next import modeling_qwen3_next as qwen

from engine.model import guard, recurrent
from engine.model.elementwise import WholeBlocks, calls_functions
from engine.model.guard import small_values
from engine.model.library import build_on_meta
from engine.model.recurrent import recurrent_shapes
from engine.model.segment import Segment
from engine.recurrent.shape import LayerShape
from engine.recurrent.states import SequenceState
from engine.weights.family import kv_shape
from engine.weights.outline import decoder_layers
from tests.engine.checkpoints import tiny_config
from tests.engine.hybrids import HYBRIDS

RECURRENT = ("linear_attention", "mamba", "conv", "hybrid")
KINDS = ["linear_attention"] * 3 + ["full_attention"]
# Of published models, with four layers.
QWEN_27B: dict[str, Any] = {
    "hidden_size": 5120,
    "num_attention_heads": 24,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "linear_num_value_heads": 48,
    "linear_num_key_heads": 16,
    "num_hidden_layers": 4,
    "layer_types": KINDS,
}


def shapes(config: Any) -> dict[int, LayerShape]:
    return dict(recurrent_shapes(build_on_meta(config, torch.bfloat16, strict=True)))


def model_of(family: str) -> Any:
    return build_on_meta(tiny_config(family), torch.float32, strict=True)


def test_states_have_the_sizes_of_the_published_model() -> None:
    config = AutoConfig.for_model("qwen3_5_text", **QWEN_27B)
    found = shapes(config)
    assert list(found) == [0, 1, 2] and kv_shape(config).num_layers == 1
    channels = 2 * 16 * 128 + 48 * 128
    for shape in found.values():
        state, window = 48 * 128 * 128 * 4, 3 * channels * 2
        assert shape.state_bytes(torch.bfloat16) == state + window
        assert shape.stash_bytes(torch.bfloat16) == 2 * channels + 2 * 48 * 4
        # 64 rows of a tree take less than half of what the state does.
        assert 64 * shape.stash_bytes(torch.bfloat16) < (state + window) / 2


@pytest.mark.parametrize("family", HYBRIDS)
def test_each_recurrent_layer_has_a_shape(family: str) -> None:
    config = tiny_config(family)
    kinds = getattr(config, "layer_types", None)
    found = shapes(config)
    assert list(found) == [i for i, kind in enumerate(kinds or []) if kind in RECURRENT]
    assert all(shape.has_state == (family != "lfm2") for shape in found.values())


def test_without_a_batch_the_librarys_plain_functions_run() -> None:
    shapes(tiny_config("qwen3_next"))
    assert isinstance(qwen.causal_conv1d_fn, recurrent._Seam)
    rows, weight = torch.randn(1, 8, 5), torch.randn(8, 4)
    want = F.conv1d(rows, weight[:, None], padding=3, groups=8)[:, :, :5]
    assert torch.equal(qwen.causal_conv1d_fn(rows, weight), want)
    assert qwen.causal_conv1d_fn._original.__module__ == qwen.__name__


def chain_parents(segment: Segment) -> Sequence[int]:
    """Return the parents of rows as if they followed each other."""
    return [*range(-1, segment.count - 1)]


def extend_reversed(state: SequenceState, rows: Sequence[int]) -> None:
    """Accept the rows of a path in the wrong order."""
    _extend(state, list(rows)[::-1])


_extend = SequenceState.extend


@pytest.mark.parametrize(
    ("owner", "name", "wrong", "case"),
    [
        (Segment, "parents", chain_parents, "with a tree"),
        (SequenceState, "extend", extend_reversed, "with a prompt whose beginning is cached"),
        (SequenceState, "is_stashed", lambda state, rows: False, "with a tree"),
    ],
    ids=["order", "path", "stash"],
)
def test_errors_in_states_are_noticed(
    owner: Any, name: str, wrong: Any, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, wrong)
    fault = guard._find_fault([small_values(tiny_config("qwen3_next"), narrow=True)])
    assert fault.startswith((case, "AssertionError"))


@pytest.mark.parametrize("function", [F.silu, F.softplus, torch.sigmoid, Tensor.sigmoid])
def test_gates_do_not_depend_on_the_place_in_the_tile(function: Any, threads: None) -> None:
    torch.set_num_threads(3)
    rows = torch.randn(64, 1280, generator=torch.Generator().manual_seed(1))
    shifted = [rows.roll(step, 0) for step in range(64)]

    def found() -> Tensor:
        return torch.stack([function(x).roll(-step, 0) for step, x in enumerate(shifted)])

    assert not torch.equal(found(), function(rows).expand(64, -1, -1))
    with WholeBlocks():
        assert torch.equal(found(), function(rows).expand(64, -1, -1))


def test_layers_whose_code_calls_such_functions_are_found() -> None:
    own = {
        family: [calls_functions(layer) for layer in decoder_layers(model_of(family))]
        for family in ("qwen3_5_text", "granitemoehybrid", "llama", "lfm2")
    }
    assert own["qwen3_5_text"] == [True, True, True]  # also a gate of attention
    assert own["granitemoehybrid"] == [True, False, True]
    assert all(own["lfm2"]) and not any(own["llama"])
