"""Tests of the 4-bit copies of experts: they draft well, are where the plan says, and are exact."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.cache_files import unit_name
from engine.drafting.model import importance
from engine.drafting.model.substitutes import (
    SubstituteUnits,
    find_copies,
    linear_paths,
    substitute_unit,
    weight_name,
)
from engine.errors import ModelError
from engine.model.library import build_on_meta
from engine.planning import choice, link_probe
from engine.runtime.engine import Engine
from engine.spec import DraftSpec, MemorySpec, StreamSpec
from engine.streaming import packed_cache
from engine.streaming.packed import PackedUnits
from engine.triton_kernels import int4_product
from engine.weights.expert_weights import find_experts
from engine.weights.family import read_config
from engine.weights.formats import int4, nf4
from engine.weights.formats.linear import ExpertLayers, Kernel, substitute
from engine.weights.layout import WholeLayers
from engine.weights.outline import decoder_layers
from engine.weights.units import CheckpointUnits
from tests.engine.books import check_idle
from tests.engine.drafting.model.test_importance import with_bos
from tests.engine.models import (
    PLAIN,
    SMALL,
    SUBSPEC,
    Answers,
    add_tokenizer,
    alone,
    checkpoint,
    draft_ahead,
    draft_model,
    exact,
    load,
    prompt,
    request,
    run,
)
from tests.engine.runtime.test_hybrid_drafts import accepted
from tests.engine.structures import save_structure
from tests.engine.weights.formats.test_linear import mxfp4_checkpoint
from tests.variations import variations

CPU = torch.device("cpu")
PROMPTS = {"long": prompt(70, 1), "short": prompt(3, 2), "repeated": prompt(5, 3) * 8}
FAMILIES = ["mixtral", "qwen3_moe", "gpt_oss", "gemma4_experts"]
SHAPES: dict[str, dict[str, Any]] = {
    "chains": {"depth": 6, "width": 1, "branch": 1, "budget": 7},
    "bushes": {"depth": 2, "width": 8, "branch": 4, "budget": 40},
    "tiles": {"depth": 6, "width": 24, "branch": 8, "budget": 150},
}
QUICK = (("qwen3_moe", "chains"), ("gpt_oss", "tiles"), ("gemma4_experts", "bushes"))


def asked(**params: Any) -> list[Any]:
    return [request(name, tokens, max_tokens=24, **params) for name, tokens in PROMPTS.items()]


@cache
def plain(family: str) -> Answers:
    """Return the answers of plain decoding."""
    return alone(load(checkpoint(family), PLAIN), asked(logprobs=2))


def copied(engine: Engine) -> dict[str, ExpertLayers]:
    """Return the copies of experts in an engine's draft, by their paths in its decoder."""
    modules = draft_model(engine).decoder.decoder.named_modules()
    return {path: own for path, own in modules if isinstance(own, ExpertLayers)}


@pytest.mark.parametrize(
    ("family", "shape"),
    variations(product(FAMILIES, SHAPES), quick=QUICK),
)
def test_answers_equal_plain_decoding_with_trees_of_every_shape(family: str, shape: str) -> None:
    engine = load(checkpoint(family), DraftSpec("subspec", **SHAPES[shape], tuned=False))
    assert copied(engine)
    draft_ahead(engine)
    found = run(engine, asked(logprobs=2))
    assert exact(found) == exact(plain(family))
    assert accepted(found) > 0.5
    check_idle(engine)


def test_more_is_accepted_than_of_n_grams() -> None:
    ngram = DraftSpec("ngram", **SMALL)
    found, other = (run(load(checkpoint("qwen3_moe"), own), asked()) for own in (SUBSPEC, ngram))
    assert accepted(found) > 1 > 4 * accepted(other)


def test_answers_of_sampled_requests_in_16_bits_do_not_depend_on_the_draft() -> None:
    folder = checkpoint("qwen3_moe", torch.bfloat16)
    messages = [*asked(), request("n", prompt(70, 4), n=3, temperature=1.0, seed=2, max_tokens=24)]
    want = exact(alone(load(folder, PLAIN), messages))
    assert exact(run(load(folder, SUBSPEC), messages)) == want


# Copies of experts


def units_of(
    folder: Path, kernel: Kernel, slice_bytes: int | None = None
) -> tuple[SubstituteUnits, WholeLayers, list[Any]]:
    """Return a checkpoint's substitutes, its own units, and its modules without weights."""
    model = build_on_meta(read_config(folder), torch.float32, strict=False)
    units = CheckpointUnits(folder, model, torch.float32, None, slice_bytes=slice_bytes)
    target = WholeLayers(units, units.layers)
    modules = [*decoder_layers(model), model.get_output_embeddings()]
    made = SubstituteUnits(
        target,
        [linear_paths(module) for module in modules],
        group=32,
        kernel=kernel,
        device=CPU,
        dtype=torch.float32,
        experts=find_experts(modules),
    )
    return made, target, modules


def read(units: Any, index: int) -> Mapping[str, Tensor]:
    layout = units.layouts[index]
    buffer = torch.zeros(layout.nbytes, dtype=torch.uint8)
    units.read(index, buffer)
    views: Mapping[str, Tensor] = layout.views(buffer)
    return views


@pytest.mark.parametrize("kernel", ["int4", "nf4"])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "nemotron_h", "llama4_text"])
def test_each_expert_has_the_copy_of_its_own_weight(
    family: str, kernel: Kernel, tmp_path: Path
) -> None:
    """Weights are stored with outputs or with inputs first, and with or without a gate.

    Of those with 32 or 96 inputs there are no copies in nf4.
    """
    is_other = family == "llama4_text"
    folder = save_structure(family, tmp_path) if is_other else checkpoint(family)
    units, target, modules = units_of(folder, kernel)
    index = next(i for i, module in enumerate(modules) if find_experts([module]).stacks)
    stacks = find_experts([modules[index]])
    own, stored = read(target, index), read(units, index)
    assert all(torch.equal(stored[name], own[name]) for name in stacks.others)
    module = substitute_unit(modules[index], stored, CPU)
    for name, is_turned in stacks.stacks.items():
        owner, _, last = name.rpartition(".")
        layers = getattr(module.get_submodule(owner), last)
        if isinstance(layers, nn.Parameter):
            assert kernel == "nf4" and torch.equal(layers, own[name])
            continue
        assert isinstance(layers, ExpertLayers) and len(layers) == len(own[name]) == 4
        for expert, weight in enumerate(own[name]):
            weight = weight.T.contiguous() if is_turned else weight
            want = substitute(weight, None, 32, CPU, kernel)
            inputs = torch.randn(3, weight.shape[1])
            assert isinstance(want, int4.Int4Linear | nf4.Nf4Linear)
            assert torch.equal(layers[expert](inputs), want(inputs)), (name, expert)
    tensors = {name: value.clone() for name, value in module.state_dict().items()}
    for field in stored.values():
        field.zero_()  # the buffer is used again for the next unit
    for name, value in module.state_dict().items():
        assert not isinstance(value, Tensor) or torch.equal(value, tensors[name]), name


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_copies_do_not_depend_on_slices(family: str) -> None:
    whole, sliced = (units_of(checkpoint(family), "int4", size)[0] for size in (None, 1))
    for index in range(len(whole.layouts)):
        own, other = read(whole, index), read(sliced, index)
        assert own.keys() == other.keys()
        assert all(torch.equal(own[name], other[name]) for name in own)


def test_the_second_load_reads_the_copies_and_a_damaged_one_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    folder = checkpoint("gpt_oss")

    def tensors() -> dict[str, Tensor]:
        made = load(folder, replace(SUBSPEC, calibrate=False))
        states = {path: own.state_dict() for path, own in copied(made).items()}
        return {f"{path}.{n}": t for path, own in states.items() for n, t in own.items()}

    fresh = tensors()
    with monkeypatch.context() as patch:
        patch.setattr(int4, "quantize", forbidden)
        found = [tensors()]
    (entry,) = packed_cache.entries()
    path = entry.path / unit_name(1)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    found.append(tensors())
    assert "00001.unit: wrong checksum" in caplog.text
    for own in found:
        assert own.keys() == fresh.keys()
        assert all(torch.equal(own[name], value) for name, value in fresh.items())


def forbidden(*_: Any) -> None:
    raise AssertionError("quantized again")


def test_resident_layers_with_experts_have_copies_and_others_are_shared() -> None:
    folder = checkpoint("deepseek_v3")  # its first layer is dense
    want = exact(alone(load(folder, PLAIN), asked()))
    engine = load(folder, SUBSPEC, stream=StreamSpec(tier="resident"))
    layers = [layer.inner for layer in draft_model(engine).decoder.decoder.layers]
    kinds = [{type(part) for part in layer.modules()} for layer in layers]
    assert [ExpertLayers in own for own in kinds] == [False, True, True]
    assert [int4.Int4Linear in own for own in kinds] == [False, True, True]
    assert exact(run(engine, asked())) == want


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "deepseek_v3", "granitemoehybrid"])
@pytest.mark.parametrize("resident", [0, 2])
def test_the_plan_counts_the_bytes_of_the_copies(family: str, resident: int) -> None:
    stream = StreamSpec(tier="ram", slots=2, resident=resident)
    engine = load(checkpoint(family, torch.bfloat16), SUBSPEC, stream=stream)
    decoder = draft_model(engine).decoder
    target = {tensor.data_ptr() for unit in range(len(engine._loaded.plan.tiers))
              if engine._loaded.stream.is_resident(unit)
              for tensor in engine._loaded.stream.resident(unit).values()}  # fmt: skip
    taken: dict[int, int] = {}
    for module in (*decoder.decoder.layers, decoder.output):
        for value in (*module.parameters(), *module.buffers()):
            if value.data_ptr() not in target:
                taken[value.data_ptr()] = value.nbytes
    # Norms, routers and what else is not copied is in the plan's bytes too.
    planned = engine._loaded.plan.draft_bytes
    assert 0.9 * planned <= sum(taken.values()) <= planned


# Importance


def test_an_expert_has_the_importance_of_its_own_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(importance, "TEXT_TOKENS", 8)
    folder = with_bos("qwen3_moe", tmp_path)
    fitted = load(folder, SUBSPEC)
    (entry,) = (e for e in packed_cache.entries() if "importance" in PackedUnits(e.path).key)
    found = read(PackedUnits(entry.path), 0)
    for name, width in (("gate_up_proj", 64), ("down_proj", 64)):
        own = found[f"mlp.experts.{name}"]
        assert own.shape == (4, width) and bool((own > 0).all())
        assert all(not torch.equal(own[0], other) for other in own[1:])
        # Rows are divided by their root mean square before.
        torch.testing.assert_close(own.mean(-1), torch.ones(4))
    others = load(folder, replace(SUBSPEC, calibrate=False))
    path = "layers.0.inner.mlp.experts.down_proj"
    tensors = [copied(made)[path].state_dict() for made in (fitted, others)]
    assert any(not torch.equal(tensors[0][name], own) for name, own in tensors[1].items())
    assert exact(run(fitted, asked(logprobs=2))) == exact(plain("qwen3_moe"))


def test_the_inputs_of_each_expert_are_seen_where_a_kernel_multiplies_with_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(int4_product, "is_usable", lambda device: True)
    units, _, modules = units_of(checkpoint("qwen3_moe"), "int4")
    module = substitute_unit(modules[0], read(units, 0), CPU)
    layers = module.get_submodule("mlp.experts.down_proj")
    assert isinstance(layers, ExpertLayers)
    grouped = [layers.is_grouped]
    with importance._mean_squares([{"mlp.experts.down_proj": layers}]) as squares:
        grouped.append(layers.is_grouped)
        found = squares[0]["mlp.experts.down_proj"]
        assert isinstance(found, list) and len(found) == len(layers) == 4
    assert [*grouped, layers.is_grouped] == [True, False, True]


def test_an_expert_without_rows_has_the_mean_of_the_others() -> None:
    squares = [importance._MeanSquare() for _ in range(3)]
    squares[0].total, squares[0].rows = torch.tensor([30.0, 10.0]), 20
    squares[2].total, squares[2].rows = torch.tensor([10.0, 30.0]), 20
    found = importance._importance(squares)
    assert found[1].tolist() == [1.0, 1.0]
    share = importance.EXPERT_ROWS / (20 + importance.EXPERT_ROWS)
    assert found[0].tolist() == pytest.approx([1.5 - 0.5 * share, 0.5 + 0.5 * share])
    nobody = importance._importance([importance._MeanSquare() for _ in range(2)])
    assert not nobody.any()


# What is refused, planned and coded


def test_experts_stored_in_fewer_bits_than_their_copies_are_refused_by_name(
    tmp_path: Path,
) -> None:
    mxfp4_checkpoint(tmp_path)
    add_tokenizer(tmp_path)
    with pytest.raises(ModelError, match=r"'gpt_oss' as it is stored.* 4\.25 bits .* have 5\. Use"):
        load(tmp_path, SUBSPEC)


def test_copies_that_do_not_fit_are_an_error_with_the_numbers() -> None:
    folder = checkpoint("qwen3_moe")
    little = MemorySpec(device=2 << 20)
    with pytest.raises(ModelError, match=r"memory.device: 2.0 MiB is .* too little.*draft \d"):
        load(folder, SUBSPEC, memory=little)


def test_experts_are_coded_by_their_exponents_beside_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(link_probe, "LEAST_CODED_BYTES", 0)
    monkeypatch.setattr(choice, "LEAST_GAIN", 0.0)
    folder = checkpoint("qwen3_moe", torch.bfloat16)
    want = exact(run(load(folder, PLAIN), asked()))
    engine = load(folder, SUBSPEC, stream=StreamSpec(tier="disk", slots=2))
    assert "lossless code" in engine.info.plan
    assert exact(run(engine, asked())) == want
    copies = draft_model(engine).copies
    assert copies is not None
    (entry,) = (e for e in packed_cache.entries() if "coded 1, copies" in PackedUnits(e.path).key)
    names = {field.name for field in PackedUnits(entry.path).layouts[0].fields}
    assert {"self_attn.q_proj.weight.cells", "mlp.experts.down_proj.exponents"} <= names
    layer = draft_model(engine).decoder.decoder.layers[0].inner
    known = find_copies({0: layer})
    assert known is not None and weight_name("mlp.experts.down_proj.0") not in known[0]
