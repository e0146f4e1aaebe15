"""The plan's figures of coded weights on a GPU, which docs/coded-streaming.md shows.

They are computed, not measured.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from engine.planning import assumed
from engine.planning.choice import Scheme
from engine.planning.preview import WhatIf, preview
from engine.spec import DraftSpec, ModelSpec, StreamSpec, TargetSpec

DOCUMENT = Path(__file__).parents[3] / "docs" / "coded-streaming.md"
CARD_GBPS = 1000.0  # of its own memory
GB = 10**9
COMMON: dict[str, Any] = {
    "dtype": "bfloat16",
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
}
QWEN = {**COMMON, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
LLAMA = {**COMMON, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}


def shape(layers: int, hidden: int, inner: int, heads: int, kv_heads: int, vocabulary: int) -> Any:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
    }


# The configuration, the device's memory in GiB, the RAM in GB, and the method.
CASES: dict[str, tuple[dict[str, Any], int, int, str]] = {
    "7 B": ({**QWEN, **shape(28, 3584, 18944, 28, 4, 152064)}, 8, 64, "subspec"),
    "32 B": ({**QWEN, **shape(64, 5120, 27648, 40, 8, 152064)}, 24, 96, "subspec"),
    "70 B": ({**LLAMA, **shape(80, 8192, 28672, 64, 8, 128256)}, 24, 96, "ngram"),
}


def planned(
    folder: Path, patch: pytest.MonkeyPatch, name: str, coding: Literal["auto", "none"]
) -> Scheme:
    config, gib, ram, method = CASES[name]
    (folder / "config.json").write_text(json.dumps(config))
    patch.setattr(assumed, "CARD", replace(assumed.CARD, gbps=CARD_GBPS))
    stream = StreamSpec(coding=coding)
    target, draft = TargetSpec(str(folder)), DraftSpec(method)
    spec = ModelSpec("m", target, draft, context_length=4096, stream=stream)
    return preview(spec, WhatIf(gib << 30, ram * GB, link_gbps=25.0)).scheme


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_figures_of_the_page_are_those_of_the_plan(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, coded = (planned(tmp_path, monkeypatch, name, own) for own in ("none", "auto"))
    _, gib, ram, method = CASES[name]
    assert coded.coded and not plain.coded
    cells = [f"{name}, {gib} GiB, {ram} GB of RAM", f"`{method}`"]
    for scheme in (plain, coded):
        away = [own for own in scheme.plan.tiers if own == "disk"]
        where = f"{len(away)} of {len(scheme.plan.tiers)} units on disk" if away else "RAM"
        cells.append(f"{scheme.forecast.tokens_per_second:.2g}, {where}")
    gain = coded.forecast.tokens_per_second / plain.forecast.tokens_per_second
    row = f"| {' | '.join([*cells, f'{gain:.2f}'])} |"
    assert row in DOCUMENT.read_text(encoding="utf-8"), row
    assert gain >= 1.4
    assert "disk" not in coded.plan.tiers


@pytest.mark.slow
def test_buffers_of_coded_units_are_a_part_of_the_ring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = planned(tmp_path, monkeypatch, "7 B", "auto")
    streamed = {unit for unit, tier in enumerate(found.plan.tiers) if tier != "resident"}
    largest = max(found.demand.coded_bytes[unit] for unit in streamed)
    slots = [found.demand.unit_bytes[unit] for unit in streamed]
    assert found.plan.ring_bytes <= found.plan.ring_slots * max(slots) + 2 * largest
    assert found.plan.ring_bytes >= found.plan.ring_slots * min(slots) + 2 * largest
