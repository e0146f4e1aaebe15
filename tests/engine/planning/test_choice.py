"""The choice of the drafting method."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest
import torch
from transformers import Qwen2Config

from engine.drafting.method import DraftNeeds
from engine.errors import ModelError
from engine.planning import assumed, choice
from engine.planning.assumed import Machine
from engine.planning.blueprint import Blueprint
from engine.planning.choice import Scheme, best_scheme, make_scheme
from engine.planning.footprint import Demand
from engine.planning.making import coding_bytes
from engine.planning.memory import Memory
from engine.planning.preview import WhatIf, preview
from engine.spec import DraftSpec, ModelSpec, StreamSpec, TargetSpec
from engine.streaming.coded import CODED_STAGING
from engine.weights.expert_weights import ExpertWeights
from engine.weights.layout import UnitLayout, whole_layers

AUTO = ModelSpec("m", TargetSpec("m"))


def scheme(method: str, speeds: dict[str, float]) -> Scheme:
    """Return a scheme with this forecast speed. Raises `ModelError` for a method without one."""
    if method not in speeds:
        raise ModelError(f"no {method}")
    forecast = SimpleNamespace(tokens_per_second=speeds[method], tokens_per_pass=1.0)
    return cast(Scheme, SimpleNamespace(method=method, forecast=forecast))


@pytest.mark.parametrize(
    ("speeds", "best"),
    [
        ({"ngram": 1.0, "subspec": 2.0}, "subspec"),
        ({"ngram": 2.0, "subspec": 1.0}, "ngram"),
        (
            {"ngram": 1.0, "subspec": 1.0},
            "ngram",
        ),  # of equal ones the first, which takes no device memory
        ({"ngram": 1.0}, "ngram"),
        ({"subspec": 1.0}, "subspec"),
        ({"ngram": 1.0, "recycling": 9.0}, "ngram"),  # not a candidate
    ],
)
def test_the_fastest_candidate_that_can_serve_is_chosen(
    speeds: dict[str, float], best: str
) -> None:
    assert best_scheme(AUTO, lambda method: scheme(method, speeds)).method == best


# The form in which packed weights travel


GB = 10**9
# Bytes of one layer; the head is as large.
LAYERS, DENSE, PACKED, CODED = 20, 1.0 * GB, 0.3 * GB, 0.5 * GB


def outline(nbytes: float) -> Any:
    unit = UnitLayout("unit", (), int(nbytes))
    return SimpleNamespace(layouts=[unit] * (LAYERS + 1), layers=whole_layers(LAYERS))


class Described:
    """A model of equal layers, in place of a `Blueprint`."""

    config: Any = SimpleNamespace()
    dtype, torch_device = torch.bfloat16, None
    recurrent: ClassVar[dict[int, Any]] = {}
    experts = ExpertWeights()
    outlines: ClassVar[dict[bool, Any]] = {True: outline(PACKED), False: outline(DENSE)}

    def __init__(self, expansions: dict[str, int]) -> None:
        self.expansions = expansions

    def demand(self, needs: DraftNeeds, *, packed: bool, coded: bool = False) -> Demand:
        unit = int(PACKED if packed else DENSE)
        assert not (packed and coded)
        return Demand(
            unit_bytes=[unit] * (LAYERS + 1),
            layers=whole_layers(LAYERS),
            coded_bytes=[int(CODED)] * (LAYERS + 1) if coded else (),
            expanded_bytes=int(DENSE) if packed else 0,
            other_device_bytes=0,
            hidden_size=64,
            widest=64,
            num_heads=1,
            vocab_size=64,
            item_bytes=2,
            kv_bytes_per_token=1024,
            draft=needs,
            context_length=1024,
            dense_bytes=int(DENSE) * (LAYERS + 1),
            expansions=self.expansions if packed else {},
        )


def chosen(
    device: float,
    expanding_gbps: float,
    spec: ModelSpec,
    form: str = "q4_k",
    decoding_gbps: float = 0.0,
    ram: float = 64,
    own: bool = True,  # whether the device has memory of its own
) -> Scheme:
    expansions = {f".{form}": int(DENSE) * (LAYERS + 1)} if form else {}
    memory = Memory(int(device * GB), int(ram * GB), has_own_memory=own)
    speeds = {f".{form}": 1 / (expanding_gbps * GB)}
    machine = Machine(memory, ram_gbps=20.0, disk_gbps=3.0, expanding=speeds)
    if decoding_gbps:
        decoding = {False: decoding_gbps, True: 0.001}
        machine = replace(machine, decoding_gbps=decoding)
    blueprint = cast(Blueprint, Described(expansions))
    return make_scheme("none", spec, blueprint, machine, users=1)


PLAIN = ModelSpec("m", TargetSpec("m"), draft=DraftSpec("none"))


@pytest.mark.parametrize(
    ("device", "expanding_gbps", "packed", "resident"),
    [
        (4, 200.0, True, 6),  # 4.5 GB travel in a pass instead of 21, and expanding takes 0.1 s
        (4, 15.0, False, 0),  # expanding takes longer than 21 GB over the link
        (9, 200.0, True, 21),  # fits only packed, so nothing travels
        (9, 20.0, False, 5),  # expanding all of it takes longer than streaming the rest
        (30, 200.0, False, 21),  # fits expanded too
    ],
)
def test_weights_travel_in_the_form_with_the_faster_forecast(
    device: float, expanding_gbps: float, packed: bool, resident: int
) -> None:
    found = chosen(device, expanding_gbps, PLAIN)
    assert (found.packed, found.plan.tiers.count("resident")) == (packed, resident)
    assert "because the forecast is" in found.form and "instead of" in found.form
    other = chosen(device, expanding_gbps, with_setting(not packed))
    assert other.packed is not packed and "as stream.packed says" in other.form
    assert other.forecast.tokens_per_second < found.forecast.tokens_per_second


def with_setting(packed: bool) -> ModelSpec:
    return replace(PLAIN, stream=StreamSpec(packed=packed))


def test_the_form_that_fits_is_chosen() -> None:
    found = chosen(1.9, 1.0, PLAIN)
    assert found.packed and "in the other form the model does not fit" in found.form
    with pytest.raises(ModelError, match="too little"):
        chosen(1.9, 1.0, with_setting(False))


def test_weights_that_the_user_wants_quantized_stay_packed() -> None:
    spec = replace(PLAIN, target=TargetSpec("m", quantize="nf4"))
    found = chosen(30, 1.0, spec, "nf4")
    assert found.packed and "as target.quantize says" in found.form


def test_plain_weights_have_one_form() -> None:
    found = chosen(30, 1.0, PLAIN, "")
    assert (found.packed, found.form, found.forecast.expand_seconds) == (False, "", 0.0)


@pytest.mark.parametrize(
    ("device", "decoding_gbps", "coded"),
    [
        (4, 200.0, True),  # 10 GB travel in a pass instead of 18, and decoding takes 0.1 s
        (4, 40.0, True),  # decoding takes 0.45 s, less than 10 GB over the link
        (4, 15.0, False),  # decoding takes longer than 18 GB over the link
        (30, 200.0, False),  # all units are resident
        (4, 0.0, False),  # the device decodes nothing
    ],
)
def test_weights_are_coded_where_the_forecast_is_faster(
    device: float, decoding_gbps: float, coded: bool
) -> None:
    found = chosen(device, 1.0, PLAIN, "", decoding_gbps)
    assert found.coded is coded
    assert bool(found.coding) is coded
    none = replace(PLAIN, stream=StreamSpec(coding="none"))
    plain = chosen(device, 1.0, none, "", decoding_gbps)
    assert not plain.coded
    if coded:
        assert "instead of" in found.coding
        assert found.forecast.tokens_per_second > 1.5 * plain.forecast.tokens_per_second
        assert found.forecast.decode_seconds > 0


def test_coded_weights_take_half_of_the_ram() -> None:
    none = replace(PLAIN, stream=StreamSpec(coding="none"))
    plain, coded = (chosen(4, 1.0, own, "", 200.0, ram=16) for own in (none, PLAIN))
    assert "disk" in plain.plan.tiers and "disk" not in coded.plan.tiers
    assert coded.plan.ram_unit_bytes == coded.plan.tiers.count("ram") * CODED
    staging = CODED_STAGING * CODED  # on the device, from which units are decoded
    assert coded.plan.ring_bytes == coded.plan.slots * DENSE + staging
    assert coding_bytes(coded.demand) == 5 * DENSE // 2
    assert coded.plan.making_bytes == 0  # the units are loaded after it, into the same RAM
    assert coding_bytes(plain.demand) == 0


@pytest.mark.parametrize("own", [True, False])
def test_decoding_is_a_part_of_what_the_device_computes(
    monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    monkeypatch.setattr(choice, "LEAST_GAIN", 0.0)
    slow, fast = (chosen(4, 1.0, PLAIN, "", gbps, own=own).forecast for gbps in (1.0, 2.0))
    difference = slow.decode_seconds - fast.decode_seconds
    assert difference == pytest.approx(fast.decode_seconds) and difference > 1
    assert slow.pass_seconds - fast.pass_seconds == pytest.approx(difference)


def test_a_device_that_computes_in_ram_holds_its_weights_while_units_are_coded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choice, "LEAST_GAIN", 0.0)
    found = chosen(4, 1.0, PLAIN, "", 200.0, own=False)
    later = found.plan.activation_bytes + found.plan.ring_bytes  # allocated when all are coded
    coding = coding_bytes(found.demand)
    assert coding > DENSE
    assert found.plan.making_bytes == max(coding - later, 0)


def test_expanding_is_part_of_the_forecast() -> None:
    slow, fast = (chosen(9, gbps, with_setting(True)).forecast for gbps in (10.0, 100.0))
    assert slow.expand_seconds == pytest.approx(2.1)
    assert slow.pass_seconds - fast.pass_seconds == pytest.approx(2.1 - 0.21)


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the config.json of a model of 7 B weights in blocks of Q4_K and Q6_K."""
    folder = tmp_path_factory.mktemp("seven")
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    types = {f"blk.{i}.{part}.weight": "Q4_K" for i in range(28) for part in parts}
    types["output.weight"] = "Q6_K"
    stored = {"quant_method": "gguf", "architecture": "qwen2", "tensors": types}
    config = Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
    )
    values = config.to_dict() | {"dtype": "bfloat16", "quantization_config": stored}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("gib", "method", "packed", "fits"),
    [
        (6, "ngram", True, False),  # the target does not fit, and so its copies do not
        (8, "subspec", True, False),  # the target fits alone, but copies gain more
        (16, "subspec", True, True),  # the target and its copies fit
        (24, "ngram", False, True),  # the expanded target fits
    ],
)
def test_packed_targets_are_drafted_by_copies_only_if_that_is_faster(
    gib: int, method: str, packed: bool, fits: bool, seven: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assumed, "CARD", replace(assumed.CARD, expanding_gbps=100.0))
    spec = ModelSpec("m", TargetSpec(str(seven)), context_length=8192)
    found = preview(spec, WhatIf(device_memory=gib << 30, ram=64 << 30)).scheme
    assert (found.method, found.packed) == (method, packed)
    assert (set(found.plan.tiers) == {"resident"}) == fits


def test_a_named_method_is_the_only_one_that_is_tried() -> None:
    spec = ModelSpec("m", TargetSpec("m"), draft=DraftSpec("recycling"))
    assert best_scheme(spec, lambda method: scheme(method, {"recycling": 1.0})).method == (
        "recycling"
    )


def test_if_nothing_fits_the_first_candidates_error_is_raised() -> None:
    with pytest.raises(ModelError, match="no ngram"):
        best_scheme(AUTO, lambda method: scheme(method, {}))
