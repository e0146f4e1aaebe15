"""Tests of the check at load: families that the decoder does not run exactly are refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from engine.cache_files import cache_root
from engine.compiled.attention import Columns
from engine.errors import ModelError
from engine.model import attention, guard, library, ordered
from engine.model.guard import FOLDER, check_decoder, small_values
from engine.model.reduced import reduce_depth, reduce_width
from engine.model.rope import query_factors
from engine.model.segment import Reach, Segment
from tests.engine.checkpoints import tiny_config
from tests.engine.structures import STRUCTURES, structure_config

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


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("diffllama", "with 65 rows, logits up to"),
        ("falcon", "its attention is code of its own"),
        ("doge", "AssertionError: the family has an attention mask of its own"),
    ],
)
def test_a_family_that_differs_is_refused_by_name(kind: str, reason: str) -> None:
    said = rf"model_type '{kind}': this server's decoder does not .*{reason}"
    with pytest.raises(ModelError, match=said):
        check_decoder(config(kind), WHERE)


def test_an_error_without_a_text_is_named_by_its_place() -> None:
    with pytest.raises(AssertionError) as caught:
        raise AssertionError
    own = "test_an_error_without_a_text_is_named_by_its_place"
    assert guard._said(caught.value) == f"AssertionError: in {own} of test_guard.py"


def test_a_result_is_kept_for_all_sizes_of_a_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    check_decoder(config("llama", hidden_size=128, num_hidden_layers=5), WHERE)
    monkeypatch.setattr(guard, "Reference", None)  # another check would fail
    check_decoder(config("llama", hidden_size=128, num_hidden_layers=9), WHERE)
    stored = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    check_decoder(config("llama", hidden_size=128, quantization_config=stored), WHERE)


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


_attend = ordered.attend_in_order


def _attend_by_rows(query: torch.Tensor, *others: Any, **named: Any) -> torch.Tensor:
    """Return an output whose last bits depend on the number of rows."""
    return _attend(query, *others, **named) * (1 + 1e-6 * len(query))


@pytest.mark.parametrize("broken", ["tree", "cached", "window"])
def test_each_kind_of_pass_is_compared(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in what the rows of one kind of pass see is noticed."""
    own = ordered.find_columns

    def wrong(segment: Segment, rows: range, reach: Reach) -> Columns:
        if broken == "tree":
            segment = replace(segment, mask=None)
        found = own(segment, rows, Reach() if broken == "window" else reach)
        if broken == "cached" and segment.start and segment.mask is None:
            prefix = found.prefix.copy()
            prefix[segment.start - 1] = prefix[0]
            return replace(found, prefix=prefix)
        return found

    monkeypatch.setattr(ordered, "find_columns", wrong)
    small = [small_values(tiny_config("mistral_window"), narrow=narrow) for narrow in (True, False)]
    fault = guard._find_fault(small)
    assert "logits up to" in fault and (broken == "window" or broken in fault)


@pytest.mark.parametrize(
    ("where", "name", "wrong", "reason"),
    [
        # As where an activation function is not replaced under strict numerics.
        (library, "apply_in_blocks", lambda function, x: function(x), "and 3 threads"),
        (attention, "attend_in_order", _attend_by_rows, "with 65 rows"),
    ],
    ids=["activation", "attention"],
)
def test_logits_that_depend_on_the_rows_beside_are_noticed(
    where: Any, name: str, wrong: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, wrong)
    fault = guard._find_fault([small_values(config("llama", intermediate_size=2048), narrow=True)])
    assert reason in fault and "depend on the rows beside it" in fault


def test_a_family_whose_cached_decoding_differs_from_its_forward_is_refused() -> None:
    """The library's cache of moshi has a window, and its forward has none."""
    with pytest.raises(ModelError, match="logits depend on whether it keeps keys and values"):
        check_decoder(config("moshi", ffn_dim=128, sliding_window=24), WHERE)


def test_the_number_of_threads_stays() -> None:
    before = torch.get_num_threads()
    guard._find_fault([small_values(config("llama"), narrow=True)])
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("kind", STRUCTURES)
def test_layers_that_share_keys_or_see_chunks_are_exact(kind: str) -> None:
    check_decoder(structure_config(kind), WHERE)


def test_positions_that_are_counted_within_a_tile_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong(positions: torch.Tensor, *, floor: float, strength: float) -> torch.Tensor:
        return query_factors(torch.arange(len(positions)), floor=floor, strength=strength)

    monkeypatch.setattr(library, "query_factors", wrong)
    fault = guard._find_fault([small_values(structure_config("llama4_text"), narrow=True)])
    assert "logits up to" in fault


def test_shared_layers_are_kept_beside_the_layers_whose_keys_they_share() -> None:
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    values = {
        "num_hidden_layers": 9,
        "layer_types": kinds * 3,
        "num_kv_shared_layers": 5,
        "mlp_only_layers": [0, 8],
        "rope_parameters": {"full_attention": {"original_max_position_embeddings": 8192}},
        "max_position_embeddings": 32768,
    }
    small = reduce_depth(values)
    assert small["layer_types"] == [*kinds, *kinds[1:], "full_attention"]
    assert (small["num_hidden_layers"], small["num_kv_shared_layers"]) == (6, 3)
    assert small["mlp_only_layers"] == [0, 5]
    assert small["rope_parameters"]["full_attention"]["original_max_position_embeddings"] == 96
    assert small["max_position_embeddings"] == 4 * 96


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
