"""Tests of the check at load: families that the decoder does not run exactly are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from engine.cache_files import cache_root
from engine.errors import ModelError
from engine.model import attention, guard
from engine.model.guard import FOLDER, check_decoder, small_values
from engine.model.reduced import reduce_depth, reduce_width
from tests.engine.checkpoints import tiny_config

WHERE = Path("config.json")


def config(kind: str, **changes: Any) -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return AutoConfig.for_model(kind, **{**sizes, **changes})


MLA = {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 2,
    "moe_intermediate_size": 32,
}
WIDE_GLOBAL = {  # the full layers have wider and fewer heads than those with a window
    "head_dim": 16,
    "global_head_dim": 32,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("stablelm", {}),
        ("nemotron", {"head_dim": 16}),
        ("gpt_neox", {"num_key_value_heads": 4}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("deepseek_v3", MLA),
        ("gemma4_text", WIDE_GLOBAL),
    ],
)
def test_families_with_other_structures_are_exact(kind: str, changes: dict[str, Any]) -> None:
    check_decoder(config(kind, **changes), WHERE)


@pytest.mark.parametrize("kind", ["diffllama", "gptj"])
def test_a_family_that_differs_is_refused_by_name(kind: str) -> None:
    with pytest.raises(ModelError, match=rf"model_type '{kind}': this server's decoder does not"):
        check_decoder(config(kind), WHERE)


def test_a_result_is_kept_for_all_sizes_of_a_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    check_decoder(config("llama", hidden_size=128, num_hidden_layers=5), WHERE)
    monkeypatch.setattr(guard, "Reference", None)  # another check would fail
    check_decoder(config("llama", hidden_size=128, num_hidden_layers=9), WHERE)


@pytest.mark.parametrize("damage", ["{", '{"fault": 3}', "[]"])
def test_a_damaged_result_is_found_again(damage: str) -> None:
    wanted = config("llama", rms_norm_eps=1e-5)
    check_decoder(wanted, WHERE)
    for path in (cache_root() / FOLDER).iterdir():
        path.write_text(damage)
    check_decoder(wanted, WHERE)
    kept = [json.loads(path.read_text()) for path in _results() if path.read_text() != damage]
    assert kept == [{"fault": ""}]


def _results() -> list[Path]:
    return list((cache_root() / FOLDER).iterdir())


@pytest.mark.parametrize("broken", ["tree", "cached", "window"])
def test_each_kind_of_pass_is_compared(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in the mask of one kind of pass is noticed."""
    own = attention._visibility_mask

    def wrong(segment: Any, rows: range, window: int | None) -> torch.Tensor | None:
        mask = own(segment, rows, None if broken == "window" else window)
        if broken == "tree" and segment.mask is not None:
            return None
        if broken == "cached" and segment.start and segment.mask is None and mask is not None:
            return mask.index_fill(1, torch.tensor([segment.start - 1]), value=False)
        return mask

    monkeypatch.setattr(attention, "_visibility_mask", wrong)
    small = [small_values(tiny_config("mistral_window"), narrow=narrow) for narrow in (True, False)]
    fault = guard._find_fault(small)
    assert "logits up to" in fault and (broken == "window" or broken in fault)


def test_the_depth_keeps_one_layer_of_each_kind() -> None:
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    values = {
        "num_hidden_layers": 12,
        "layer_types": kinds * 2,
        "per_layer_config": {"5": {"head_dim": 8}, "11": {"head_dim": 8}},
        "vocab_size": 50_000,
        "sliding_window": 4096,
        "first_k_dense_replace": 3,
        "hidden_act": "silu",
    }
    small = reduce_depth(values)
    assert small["layer_types"] == ["sliding_attention", "full_attention"]
    assert small["per_layer_config"] == {"1": {"head_dim": 8}}
    assert (small["num_hidden_layers"], small["first_k_dense_replace"]) == (2, 1)
    assert small["vocab_size"] <= 256 and small["sliding_window"] < 64


@pytest.mark.parametrize(
    ("heads", "kv_heads", "hidden", "want"),
    [(64, 8, 8192, (4, 2, 512)), (32, 32, 4096, (2, 2, 256)), (14, 2, 896, (14, 2, 896))],
)
def test_the_width_keeps_the_ratio_of_heads_to_the_hidden_size(
    heads: int, kv_heads: int, hidden: int, want: tuple[int, int, int]
) -> None:
    values = {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": 28672,
        "num_experts": 128,
        "num_experts_per_tok": 8,
    }
    small = reduce_width(values)
    keys = ("num_attention_heads", "num_key_value_heads", "hidden_size")
    assert tuple(small[key] for key in keys) == want
    assert small["intermediate_size"] <= 128 and small["num_experts"] == 16
