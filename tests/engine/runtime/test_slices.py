"""Tests of mixtures of experts whose layers are streamed in slices: the answers are the same."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import engine.planning.blueprint
import engine.weights.safetensors
from engine.drafting.method import DraftNeeds
from engine.messages import Generate
from engine.model.decoder import StreamedLayer
from engine.planning.footprint import Demand
from engine.planning.memory import Memory
from engine.planning.plan import make_plan
from engine.runtime.engine import Engine
from engine.spec import DraftSpec, MemorySpec, StreamSpec, TargetSpec
from engine.weights.layout import LayerUnits
from engine.weights.open_file import OpenFile
from engine.weights.sources import Source, select_experts
from engine.weights.units import CheckpointUnits
from tests.engine.checkpoints import HIDDEN, INTERMEDIATE
from tests.engine.models import (
    PLAIN,
    SMALL,
    SUBSPEC,
    Answers,
    alone,
    checkpoint,
    drain,
    exact,
    hooks,
    load,
    model_spec,
    prompt,
    request,
    run,
)
from tests.engine.structures import generated
from tests.engine.weights.formats.test_linear import meta_model, mxfp4_checkpoint, read, read_dense
from tests.variations import variations

MIXTURES = ["mixtral", "qwen3_moe", "gpt_oss"]
STREAMS = [StreamSpec(tier="disk", slots=2), StreamSpec(tier="resident"), StreamSpec(resident=1)]
CASES = [(family, torch.float32) for family in MIXTURES] + [
    (family, torch.bfloat16) for family in ("mixtral", "gpt_oss")
]
TINY = 1  # bytes: every expert is a slice of its own
EXPERT = 3 * INTERMEDIATE * HIDDEN * 4  # bytes of one float32 expert of mixtral


def requests() -> list[Generate]:
    """Return requests of several lengths, one longer than two tiles."""
    return [
        request("greedy", prompt(5, 1) * 4, logprobs=2, max_tokens=16),
        request("sampled", prompt(150, 2), temperature=1.0, seed=3, logprobs=0, max_tokens=10),
        request("twins", prompt(30, 4), n=2, temperature=1.2, seed=5, top_k=6, max_tokens=10),
    ]


def sliced(patch: pytest.MonkeyPatch, folder: Path, draft: DraftSpec, **changes: Any) -> Engine:
    with patch.context() as tiny:
        tiny.setattr(engine.planning.blueprint, "SLICE_BYTES", TINY)
        made = load(folder, draft, **changes)
    assert all(len(layer.units.slices) == 4 for layer in layers(made))
    return made


def layers(made: Engine) -> list[StreamedLayer]:
    return list(made._decoder.decoder.layers)


def whole_answers(folder: Path, **changes: Any) -> Answers:
    """Return the answers of an engine whose layers are not sliced."""
    whole = load(folder, PLAIN, **changes)
    assert not any(layer.units.slices for layer in layers(whole))
    want = alone(whole, requests())
    whole.close()
    return want


@pytest.mark.parametrize(("family", "dtype"), variations(CASES, quick=CASES[-1:]), ids=str)
def test_answers_of_sliced_layers_equal_those_of_whole_ones(
    monkeypatch: pytest.MonkeyPatch, family: str, dtype: torch.dtype
) -> None:
    folder = checkpoint(family, dtype)
    want = exact(whole_answers(folder))
    specexec = DraftSpec("specexec", source=str(folder), **SMALL)
    drafts = [PLAIN, DraftSpec("ngram"), specexec, SUBSPEC]
    for draft in drafts:
        made = sliced(monkeypatch, folder, draft)
        for attempt in ("cold", "prefix cached"):
            assert exact(run(made, requests())) == want, (draft.method, attempt)
        made.close()


@pytest.mark.parametrize(
    "family", variations(["deepseek_v3", "kimi_linear"], quick=["deepseek_v3"])
)
def test_answers_of_sliced_layers_with_a_shared_expert_do_not_depend_on_the_draft(
    monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """Sums have another order than in whole layers, so only tokens are those of the library."""
    folder = checkpoint(family)
    monkeypatch.setattr(engine.planning.blueprint, "SLICE_BYTES", TINY)
    plain = load(folder, PLAIN)
    assert [bool(layer.units.slices) for layer in layers(plain)] == [False, True, True]
    want = alone(plain, requests())
    asked = requests()[0]
    assert want["greedy", 0].ids == generated(folder, list(asked.prompt), 16)
    made = load(folder, DraftSpec("ngram"))
    for attempt in ("cold", "prefix cached"):
        assert exact(run(made, requests())) == exact(want), attempt


def test_a_slice_may_hold_several_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint("mixtral")
    want = exact(whole_answers(folder))
    monkeypatch.setattr(engine.planning.blueprint, "SLICE_BYTES", 2 * EXPERT)
    made = load(folder, DraftSpec("ngram"))
    assert {layer.units.slices for layer in layers(made)} == {(range(2), range(2, 4))}
    assert exact(run(made, requests())) == want
    made.close()


@pytest.mark.parametrize(
    ("stream", "family"),
    variations(product(STREAMS, MIXTURES), quick=list(zip(STREAMS, MIXTURES, strict=True))),
    ids=str,
)
def test_answers_do_not_depend_on_the_tiers_of_the_slices(
    monkeypatch: pytest.MonkeyPatch, family: str, stream: StreamSpec
) -> None:
    folder = checkpoint(family)
    want = exact(whole_answers(folder))
    made = sliced(monkeypatch, folder, DraftSpec("ngram"), stream=stream)
    assert exact(run(made, requests())) == want
    tiers = made._loaded.plan.tiers
    of_layers = [{tiers[unit] for unit in layer.units.units} for layer in layers(made)]
    assert all(len(own) == 1 for own in of_layers), "a layer is resident with all its units"
    if stream.resident is not None:
        assert [own == {"resident"} for own in of_layers] == [False, True, False]
    made.close()


def test_slots_have_the_size_of_slices_and_not_of_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint("mixtral")
    whole = load(folder, PLAIN)
    small = sliced(monkeypatch, folder, PLAIN)
    units, plan = small._loaded.stream._layouts, small._loaded.plan
    assert plan.ring_bytes == 2 * max(layout.nbytes for layout in units)
    assert plan.ring_bytes < whole._loaded.plan.ring_bytes / 3
    assert len(units) == 3 * 5 + 1
    for made in (whole, small):
        made.close()


@pytest.mark.parametrize("tier", variations(["ram", "disk", "resident"], quick=["disk"]))
def test_answers_of_quantized_slices_equal_those_of_whole_layers(
    monkeypatch: pytest.MonkeyPatch, tier: Any
) -> None:
    folder = checkpoint("mixtral")
    target = TargetSpec(str(folder), quantize="nf4")
    want = exact(whole_answers(folder, target=target))
    assert want != exact(whole_answers(folder)), "four bits change the answers"
    stream = StreamSpec(tier=tier, slots=2)
    made = sliced(monkeypatch, folder, DraftSpec("ngram"), target=target, stream=stream)
    assert exact(run(made, requests())) == want
    made.close()


def test_fast_numerics_give_the_same_tokens_with_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 no token is near a tie, so the tokens agree, though not the last bits."""
    folder = checkpoint("mixtral")
    want = whole_answers(folder)
    made = sliced(monkeypatch, folder, PLAIN, numerics="fast")
    got = run(made, requests())
    assert got[("greedy", 0)].ids == want[("greedy", 0)].ids
    assert all(got[key].finish == answer.finish for key, answer in want.items())


# Three tiles, then four slices. Skipped tiles still report progress; rows that wait for the experts
# are dropped at the first slice.
@pytest.mark.parametrize(
    ("unit", "last"), [(0, 2), (1, 3), (2, 3), (3, 3), (4, 4), (6, 6), (7, 9), (11, 11)]
)
def test_an_abort_takes_effect_before_the_next_slice(
    monkeypatch: pytest.MonkeyPatch, unit: int, last: int
) -> None:
    made = sliced(monkeypatch, checkpoint("mixtral"), PLAIN)
    made.add(request("r", prompt(150), max_tokens=30))
    seen: list[int] = []

    def leave(count: int) -> None:
        seen.append(count)
        if len(seen) == unit + 1:
            made.abort("r")

    hooks(made).on_unit = leave
    made.step()
    assert len(seen) == last + 1, "no unit ran after the abort"
    assert made.step() == [] and not made.has_work()
    hooks(made).on_unit = None
    assert not any(layer.experts.routed for layer in layers(made) if layer.experts is not None)
    again = run(made, [request("next", prompt(70), max_tokens=8)])
    assert again[("next", 0)].finish == "length"
    made.close()


def test_an_abort_does_not_change_other_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    made = sliced(monkeypatch, checkpoint("mixtral"), PLAIN)
    stays = request("stays", prompt(70, 1), max_tokens=10)
    want = run(made, [stays])[("stays", 0)].ids
    made.add(request("goes", prompt(150), max_tokens=10))
    made.add(stays)
    hooks(made).on_unit = lambda _: made.abort("goes")
    assert drain(made)[("stays", 0)].ids == want
    made.close()


def test_other_families_and_small_layers_are_not_sliced(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint("mixtral")
    monkeypatch.setattr(engine.planning.blueprint, "SLICE_BYTES", 1 << 20)
    assert not any(layer.units.slices for layer in layers(load(folder, PLAIN)))
    monkeypatch.setattr(engine.planning.blueprint, "SLICE_BYTES", TINY)
    assert not any(layer.units.slices for layer in layers(load(checkpoint("llama"), PLAIN)))
    assert all(layer.units.slices for layer in layers(load(folder, PLAIN)))
    monkeypatch.setattr(engine.planning.blueprint, "EXPERTS_LAST", frozenset({"qwen3_moe"}))
    assert not any(layer.units.slices for layer in layers(load(folder, PLAIN)))


# Units


def slice_units(folder: Path, dtype: torch.dtype, slice_bytes: int, **options: Any) -> Any:
    model = meta_model(folder, dtype)
    return CheckpointUnits(folder, model, dtype, slice_bytes=slice_bytes, **options)


@pytest.mark.parametrize(
    ("slice_bytes", "slices"),
    [
        (TINY, (range(1), range(1, 2), range(2, 3), range(3, 4))),
        (EXPERT + 4096, (range(1), range(1, 2), range(2, 3), range(3, 4))),
        (2 * EXPERT, (range(2), range(2, 4))),
        (3 * EXPERT, (range(2), range(2, 4))),  # nearly equal ones, not three and one
        (4 * EXPERT, (range(4),)),
        (1 << 20, ()),
    ],
)
def test_slices_are_the_fewest_that_fit(slice_bytes: int, slices: tuple[range, ...]) -> None:
    units = slice_units(checkpoint("mixtral"), torch.float32, slice_bytes)
    first, second, third = units.layers
    assert first.slices == slices and first.first == 0
    assert second.first == len(slices) + 1 and third.units.stop == len(units.layouts) - 1
    for index, held in zip(first.units[1:], slices, strict=True):
        layout = units.layouts[index]
        assert layout.nbytes <= max(slice_bytes, EXPERT + 4096)
        assert layout.name == f"model.layers.0.mlp.experts[{held.start}:{held.stop}]"
        assert all(field.shape[0] == len(held) for field in layout.fields)


def assert_slices_make(units: Any, whole: dict[str, Tensor]) -> None:
    """Check that the units of the first layer together are exactly the layer."""
    layer: LayerUnits = units.layers[0]
    base, *parts = [read(units, index) for index in layer.units]
    found = dict(base)
    for name in parts[0]:
        assert name.startswith("mlp.experts.")
        found[name] = torch.cat([part[name] for part in parts])
    assert found.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("quantize", [None, "nf4"])
@pytest.mark.parametrize("family", MIXTURES)
def test_slices_hold_the_bytes_of_the_whole_layer(family: str, quantize: Any) -> None:
    folder, dtype = checkpoint(family), torch.float32
    whole = CheckpointUnits(folder, meta_model(folder, dtype), dtype, quantize)
    units = slice_units(folder, dtype, TINY, quantize=quantize)
    assert len(units.layers[0].slices) == 4
    assert_slices_make(units, read(whole, 0))


@pytest.mark.parametrize("packed", [True, False])
def test_a_slice_of_stored_mxfp4_is_read_on_its_own(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = mxfp4_checkpoint(tmp_path)
    units = slice_units(tmp_path, torch.bfloat16, TINY)
    units = units if packed else units.expanded()
    amount = bytes_read(monkeypatch)
    for index, held in zip(units.layers[0].units[1:], units.layers[0].slices, strict=True):
        found = read_dense(units, index, torch.bfloat16)
        for name, tensor in expected.items():
            own = found[name.removeprefix("model.layers.0.")]
            assert torch.equal(own, tensor[held.start : held.stop]), name
    weights = sum(tensor.numel() for tensor in expected.values())
    biases = 4 * (2 * INTERMEDIATE + HIDDEN) * 2
    assert sum(amount) == weights // 2 + weights // 32 + biases, "each byte is read once"


def bytes_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which the length of each later read of checkpoint files is appended."""
    original, amounts = OpenFile.read, list[int]()

    def counted(file: OpenFile, memory: memoryview, offset: int) -> None:
        amounts.append(len(memory))
        original(file, memory, offset)

    monkeypatch.setattr(OpenFile, "read", counted)
    return amounts


@pytest.mark.parametrize("family", MIXTURES)
def test_reading_a_slice_reads_only_its_bytes(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts are stored one by one (mixtral, qwen3_moe) or as one tensor (gpt_oss)."""
    units = slice_units(checkpoint(family), torch.float32, TINY)
    amounts = bytes_read(monkeypatch)
    for layout, index in zip(units.layouts, range(len(units.layouts)), strict=True):
        read(units, index)
        assert sum(amounts) == sum(field.nbytes for field in layout.fields), layout.name
        amounts.clear()


def test_experts_of_a_computed_source_are_cut_from_the_whole() -> None:
    def count(out: Tensor) -> None:
        out.copy_(torch.arange(24).view(4, 3, 2))

    source = select_experts(Source((4, 3, 2), count), range(1, 3))
    assert source.shape == (2, 3, 2)
    found = torch.empty(2, 3, 2)
    source.fill(found)
    assert torch.equal(found, torch.arange(24.0).view(4, 3, 2)[1:3])


# The plan


def demand(layers: tuple[LayerUnits, ...], unit_bytes: list[int]) -> Demand:
    return Demand(
        unit_bytes=unit_bytes,
        layers=layers,
        expanded_bytes=0,
        other_device_bytes=0,
        hidden_size=64,
        widest=64,
        num_heads=1,
        vocab_size=16,
        item_bytes=4,
        kv_bytes_per_token=1024,
        draft=DraftNeeds(scratch_rows=0),
        context_length=512,
    )


def test_the_plan_keeps_whole_layers_on_the_device() -> None:
    mega = 1 << 20
    unit_bytes = [mega, *[8 * mega] * 2] * 4 + [4 * mega]
    layers = tuple(LayerUnits(3 * i, "experts", (range(4), range(4, 8))) for i in range(4))
    spec = model_spec(Path(), PLAIN, memory=MemorySpec(device=64 * mega), stream=StreamSpec())
    plan = make_plan(spec, demand(layers, unit_bytes), Memory(64 * mega, 1 << 40, False))
    resident = {unit for unit, tier in enumerate(plan.tiers) if tier == "resident"}
    assert resident == {*layers[1].units, *layers[3].units}
    assert plan.ring_bytes == 3 * 8 * mega


def test_the_plan_counts_the_rows_that_are_kept_for_slices() -> None:
    mega = 1 << 20
    spec = model_spec(Path(), PLAIN, memory=MemorySpec(device=6 * mega))
    pages = [
        make_plan(spec, demand(layers, [mega] * 3), Memory(6 * mega, 1 << 40, False)).num_pages
        for layers in ((LayerUnits(0), LayerUnits(1)), (LayerUnits(0, "experts", (range(8),)),))
    ]
    # A copy of the longest pass's rows and the experts' result, less a norm in float32.
    waiting = 512 * 64 * (4 * 4 - (4 + 2 * 4))
    assert pages[0] - pages[1] == waiting // (1024 * 64)
