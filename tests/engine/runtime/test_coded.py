"""Weights that travel in a lossless code give the answers of plain ones, bit for bit."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Literal

import pytest
import torch

from engine.planning import blueprint, choice, link_probe
from engine.planning.preview import WhatIf, preview
from engine.runtime.engine import Engine
from engine.spec import DraftSpec, StreamSpec, TargetSpec, Tier
from engine.streaming.packed_cache import entries
from tests.engine.models import (
    PLAIN,
    SUBSPEC,
    checkpoint,
    exact,
    load,
    model_spec,
    prompt,
    request,
    run,
)
from tests.variations import variations

Coding = Literal["auto", "none"]

ASKED = [
    request("greedy", prompt(20, 1), max_tokens=12, logprobs=2),
    request("seeded", prompt(70, 2), max_tokens=12, temperature=1.0, seed=3, logprobs=0),
]


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let weights be coded although the model is small and gains nothing by it."""
    monkeypatch.setattr(link_probe, "LEAST_CODED_BYTES", 0)
    monkeypatch.setattr(choice, "LEAST_GAIN", 0.0)


def served(draft: DraftSpec, tier: Tier, coding: Coding, resident: int = 0) -> Engine:
    stream = StreamSpec(tier=tier, slots=2, resident=resident, coding=coding)
    return load(checkpoint("llama", torch.bfloat16), draft, stream=stream)


@pytest.mark.parametrize(
    ("tier", "resident"),
    variations(product(["ram", "disk"], [0, 1]), quick=[("ram", 1), ("disk", 0)]),
)
def test_answers_are_those_of_plain_weights(tier: Tier, resident: int) -> None:
    want = exact(run(served(PLAIN, tier, "none"), ASKED))
    for draft in (SUBSPEC, DraftSpec("ngram"), PLAIN):
        plain, coded = (served(draft, tier, how, resident) for how in ("none", "auto"))
        assert "lossless code" in coded.info.plan
        assert "lossless code" not in plain.info.plan
        assert exact(run(coded, ASKED)) == exact(run(plain, ASKED)) == want
        assert plain.info.link_bits == 16
        assert coded.info.link_bits < 16
        assert coded.info.fingerprint == plain.info.fingerprint


def test_parts_of_layers_are_coded_by_the_copies_of_their_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blueprint, "PART_BYTES", 24 << 10)
    plain, coded = (served(SUBSPEC, "disk", how) for how in ("none", "auto"))
    assert len(coded._loaded.plan.tiers) > 4, "no layer has several parts"
    assert exact(run(coded, ASKED)) == exact(run(plain, ASKED))
    assert coded.info.link_bits < 12


def test_a_second_start_uses_the_cache_unless_the_copies_changed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    found = []
    for draft in (SUBSPEC, SUBSPEC, replace(SUBSPEC, group=64)):
        assert "lossless code" in served(draft, "disk", "auto").info.plan
        found.append({entry.path for entry in entries()})
    assert found[0] == found[1]
    # The copies and the coded units; then both again, of copies with other groups.
    assert [len(paths) for paths in found] == [2, 2, 4]


def test_a_quantized_or_float32_target_travels_as_it_is() -> None:
    stream = StreamSpec(tier="ram", slots=2)
    folder = checkpoint("llama", torch.bfloat16)
    nf4 = TargetSpec(str(folder), quantize="nf4")
    for engine in (
        load(folder, PLAIN, stream=stream, target=nf4),
        load(checkpoint("llama"), PLAIN, stream=stream),
    ):
        assert "lossless code" not in engine.info.plan


def test_the_plan_shows_bits_and_savings() -> None:
    spec = model_spec(
        checkpoint("llama", torch.bfloat16), SUBSPEC, stream=StreamSpec(tier="ram", slots=2)
    )
    found = preview(spec, WhatIf())
    assert found.scheme.coded
    shown = {one.what: one for one in found.assumptions}
    assert shown["weights"].figure.endswith(" bits")
    assert "less link" in shown["weights"].source and "less RAM" in shown["weights"].source
    assert shown["decoding"].figure.endswith(" GB/s")
    plain = preview(replace(spec, stream=replace(spec.stream, coding="none")), WhatIf())
    assert not plain.scheme.coded and "decoding" not in {one.what for one in plain.assumptions}
    assert found.scheme.plan.ram_unit_bytes < plain.scheme.plan.ram_unit_bytes
    assert found.scheme.forecast.link_seconds < plain.scheme.forecast.link_seconds
    assert found.scheme.forecast.decode_seconds > 0
