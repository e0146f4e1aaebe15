"""The speed of the decoder is measured or assumed, and a decoder that is wrong is not used."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.planning import assumed, link_probe
from engine.planning.blueprint import Blueprint
from engine.planning.preview import WhatIf, preview
from engine.spec import ModelSpec, StreamSpec
from engine.streaming.cpu_link import CpuDevice
from engine.weights.coding import coded
from tests.engine.models import SUBSPEC, checkpoint, model_spec

CARD = WhatIf(device_memory=1 << 30, ram=1 << 30, link_gbps=0.001)


@pytest.fixture
def spec(monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    monkeypatch.setattr(link_probe, "LEAST_CODED_BYTES", 0)
    monkeypatch.setattr(link_probe, "SHAPE", (64, 1024))
    stream = StreamSpec(tier="ram", slots=2)
    return model_spec(checkpoint("llama", torch.bfloat16), SUBSPEC, stream=stream)


def measured(spec: ModelSpec) -> Mapping[bool, float]:
    cpu = torch.device("cpu")
    blueprint = Blueprint(spec, checkpoint("llama", torch.bfloat16), cpu)
    return link_probe.decoding_gbps(blueprint, CpuDevice())


def test_both_codes_are_measured(spec: ModelSpec) -> None:
    found = measured(spec)
    assert found.keys() == {False, True} and min(found.values()) > 0
    assert measured(replace(spec, stream=replace(spec.stream, coding="none"))) == {}


def test_a_device_that_decodes_other_bits_gets_plain_weights(
    spec: ModelSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = coded.decode

    def wrong(fields: Any, copy: Any, out: Tensor) -> None:
        right(fields, copy, out)
        out.view(torch.int16)[3, 5] ^= 1

    monkeypatch.setattr(coded, "decode", wrong)
    assert measured(spec) == {}
    assert "cpu decodes coded weights to other bits" in caplog.text


def test_the_decoder_of_a_card_that_is_not_there_is_assumed(spec: ModelSpec) -> None:
    found = preview(spec, CARD)
    assert found.scheme.coded
    shown = {one.what: one for one in found.assumptions}["decoding"]
    assert shown.source == "assumed, by 50% of the device memory's bandwidth"
    speeds = assumed.decoding_gbps(assumed.CARD, 32)
    # 500 GB/s, of which a half: 7.7 coded bits, a code of 4 bits, 4 bytes for 32 weights, 2 bytes.
    assert speeds[True] == pytest.approx(250 * 2 / (7.7 / 8 + 0.5 + 4 / 32 + 2))
    assert speeds[False] == pytest.approx(250 * 2 / (12.1 / 8 + 2))
    assert float(shown.figure.removesuffix(" GB/s")) == pytest.approx(speeds[True], rel=0.01)
