"""Substitutes are made once; the next start reads the same bytes from the cache."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.cache_files import unit_name
from engine.drafting.model.substitutes import SubstituteUnits, linear_paths, substitute_unit
from engine.errors import ModelError
from engine.model.library import build_on_meta
from engine.runtime.engine import Engine
from engine.spec import DraftSpec, MemorySpec, StreamSpec, TargetSpec
from engine.streaming import packed_cache
from engine.weights import packing
from engine.weights.family import read_config
from engine.weights.formats import int4, nf4
from engine.weights.formats.joined import Part
from engine.weights.formats.linear import Kernel, linear, substitute
from engine.weights.units import CheckpointUnits
from tests.engine import int4_codes, models
from tests.engine.checkpoints import save_tiny
from tests.engine.models import (
    PLAIN,
    SMALL,
    SUBSPEC,
    alone,
    checkpoint,
    draft_model,
    exact,
    model_spec,
    prompt,
    request,
    run,
)
from tests.variations import variations

CPU = torch.device("cpu")
KERNELS: tuple[Kernel, ...] = ("int4", "nf4")
GROUPS = (32, 64)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


_opened: list[Engine] = []


@pytest.fixture(autouse=True)
def closing() -> Iterator[None]:
    yield
    while _opened:
        _opened.pop().close()


def load(*arguments: Any, **changes: Any) -> Engine:
    """Load an engine that is closed at the end of the test."""
    _opened.append(models.load(*arguments, **changes))
    return _opened[-1]


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Callable[[Kernel], None]:
    """A function that sets the kernel of the next starts."""
    return lambda kernel: monkeypatch.setattr(
        "engine.drafting.model.self_draft.best_kernel", lambda *_: kernel
    )


def group_of(group: Any) -> DraftSpec:
    return replace(SUBSPEC, group=group)


def draft_tensors(engine: Engine) -> dict[str, Tensor]:
    """Return all weights of the draft by name, in the form that its kernels use."""
    decoder = draft_model(engine).decoder
    found: dict[str, Tensor] = {}
    for name, module in [("layers", decoder.decoder.layers), ("head", decoder.output)]:
        found |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    return {key: value for key, value in found.items() if isinstance(value, Tensor)}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() and found
    for name in found:
        assert torch.equal(found[name], expected[name]), name


def forbid_quantizing(monkeypatch: pytest.MonkeyPatch) -> None:
    def quantize(*_: Any) -> None:
        raise AssertionError("quantized again")

    monkeypatch.setattr(int4, "quantize", quantize)
    monkeypatch.setattr(nf4, "quantize", quantize)


def units_of(
    family: str, kernel: Kernel, group: int = 32, packed: Any = None, **options: Any
) -> tuple[SubstituteUnits, CheckpointUnits, Any]:
    """Return a tiny checkpoint's substitutes, its own units, and its modules without weights."""
    folder = checkpoint(family, **options)
    model = build_on_meta(read_config(folder), torch.float32, strict=False)
    target = CheckpointUnits(folder, model, torch.float32, packed)
    modules = [*model.get_decoder().layers, model.get_output_embeddings()]
    paths = [linear_paths(module) for module in modules]
    made = SubstituteUnits(
        target, paths, group=group, kernel=kernel, device=CPU, dtype=torch.float32
    )
    return made, target, modules


def read(units: Any, index: int, fill: int = 0) -> dict[str, Tensor]:
    layout = units.layouts[index]
    buffer = torch.full((layout.nbytes,), fill, dtype=torch.uint8)
    units.read(index, buffer)
    found: dict[str, Tensor] = layout.views(buffer)
    return found


# Making and caching


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("group", GROUPS)
def test_the_second_load_quantizes_nothing_and_has_equal_tensors(
    kernel: Kernel,
    group: int,
    choose: Callable[[Kernel], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choose(kernel)
    fresh = draft_tensors(load(checkpoint("llama"), group_of(group)))
    forbid_quantizing(monkeypatch)
    assert_equal(draft_tensors(load(checkpoint("llama"), group_of(group))), fresh)


def test_another_group_checkpoint_or_precision_makes_another_entry() -> None:
    load(checkpoint("llama"), group_of(32))
    assert len(packed_cache.entries()) == 1
    load(checkpoint("llama"), group_of(64))
    assert len(packed_cache.entries()) == 2
    load(checkpoint("llama", seed=3), SUBSPEC)
    assert len(packed_cache.entries()) == 3
    folder = checkpoint("llama")
    load(folder, SUBSPEC, target=TargetSpec(str(folder), dtype="bfloat16"))
    assert len(packed_cache.entries()) == 4


def test_a_changed_checkpoint_makes_another_entry(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("llama"), tmp_path / "model"))
    before = draft_tensors(load(folder, SUBSPEC))
    save_tiny("llama", folder, seed=5)
    for path in folder.glob("*.safetensors"):
        os.utime(path, (1, 1))  # certainly another time, however coarse the clock
    after = draft_tensors(load(folder, SUBSPEC))
    assert len(packed_cache.entries()) == 2
    assert not torch.equal(before["head.weight"], after["head.weight"])


def test_progress_is_reported_for_making_and_loading() -> None:
    def load_and_report() -> dict[str, tuple[int, int]]:
        last: dict[str, tuple[int, int]] = {}
        spec = model_spec(checkpoint("llama"), SUBSPEC)
        engine = Engine.load(spec, lambda own: last.update({own.what: (own.done, own.total)}))
        engine.close()
        return last

    first, second = load_and_report(), load_and_report()
    done, total = first["making the 4-bit copies"]
    assert done == total > 0
    assert first["loading the 4-bit copies"] == second["loading the 4-bit copies"] == (done, total)
    assert "making the 4-bit copies" not in second


# Failures


def test_a_damaged_unit_is_made_again(caplog: pytest.LogCaptureFixture) -> None:
    fresh = draft_tensors(load(checkpoint("llama"), SUBSPEC))
    (entry,) = packed_cache.entries()
    path = entry.path / unit_name(1)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    assert_equal(draft_tensors(load(checkpoint("llama"), SUBSPEC)), fresh)
    assert "00001.unit: wrong checksum" in caplog.text
    data[100] ^= 1
    assert path.read_bytes() == data


def test_a_truncated_entry_is_made_again() -> None:
    fresh = draft_tensors(load(checkpoint("llama"), SUBSPEC))
    (entry,) = packed_cache.entries()
    os.truncate(entry.path / unit_name(0), 4096)
    assert_equal(draft_tensors(load(checkpoint("llama"), SUBSPEC)), fresh)


def test_the_size_limit_of_the_cache_holds() -> None:
    limited = MemorySpec(device=256 << 20, cache=20_000)
    with pytest.raises(ModelError, match=r"memory\.cache.*packing tiny needs.*Raise the limit"):
        load(checkpoint("llama"), SUBSPEC, memory=limited)
    assert packed_cache.entries() == []


def test_a_cache_that_cannot_be_written_is_refused(root: Path) -> None:
    root.write_text("a file where the folder should be")
    with pytest.raises(ModelError, match="cannot be written"):
        load(checkpoint("llama"), SUBSPEC)


# Units and modules made of them


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "gemma2"])
def test_a_unit_is_quantized_to_the_same_bytes_each_time(
    family: str, kernel: Kernel, group: int
) -> None:
    units, target, _ = units_of(family, kernel, group)
    for index in range(len(target.layouts)):
        assert_equal(read(units, index, fill=0), read(units, index, fill=255))
    suffix = {"int4": int4.PACKED, "nf4": nf4.PACKED}[kernel]
    assert f"self_attn.o_proj.weight{suffix}" in read(units, 0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("group", GROUPS)
def test_modules_of_a_read_unit_compute_what_direct_substitutes_compute(
    kernel: Kernel, group: int
) -> None:
    """The model, qwen2, has biases; its head is a unit that is one linear layer."""
    units, target, modules = units_of("qwen2", kernel, group)
    for index, module in ((0, modules[0]), (3, modules[3])):
        own = read(target, index)
        paths = linear_paths(module)
        replacement = substitute_unit(module, read(units, index), CPU)
        for path in paths:
            part = replacement.get_submodule(path)
            prefix = f"{path}." if path else ""
            weight, bias = own[f"{prefix}weight"], own.get(f"{prefix}bias")
            inputs = torch.randn(3, weight.shape[1])
            expected = substitute(weight, bias, group, CPU, kernel)
            product = part.joined.product if isinstance(part, Part) else part
            assert type(product) is type(expected)
            assert torch.equal(part(inputs), expected(inputs)), path
            if bias is not None:
                without = substitute(weight, None, group, CPU, kernel)
                assert not torch.equal(part(inputs), without(inputs)), path
    assert "self_attn.q_proj.bias" in read(target, 0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_module_shares_no_memory_with_the_buffer(kernel: Kernel) -> None:
    """The buffer is used again for the next unit."""
    units, _, modules = units_of("qwen2", kernel)
    fields = read(units, 0)
    replacement = substitute_unit(modules[0], fields, CPU)
    tensors = {name: t for name, t in replacement.state_dict().items() if isinstance(t, Tensor)}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    for field in fields.values():
        field.zero_()
    assert_equal(tensors, before)


def test_two_codes_are_stored_in_a_byte() -> None:
    units, target, _ = units_of("llama", "int4")
    pairs = read(units, 0)[f"mlp.up_proj.weight{int4.PACKED}"]
    weight = read(target, 0)["mlp.up_proj.weight"]
    assert pairs.shape == (weight.shape[0], weight.shape[1] // 2)
    codes = int4_codes.quantize(weight, 32).codes
    assert torch.equal(pairs[:, 0], codes[:, 0] * 16 + codes[:, 1])
    assert torch.equal(pairs[:, -1], codes[:, -2] * 16 + codes[:, -1])


@pytest.mark.parametrize("kernel", KERNELS)
def test_substitutes_of_an_nf4_target_are_made_of_its_expanded_weights(kernel: Kernel) -> None:
    units, target, _ = units_of("llama", kernel, packed="nf4")
    packed = read(target, 0)
    fields = read(units, 0)
    dense = torch.empty(packing.dense_layout(target.layouts[0], torch.float32).nbytes).byte()
    views = packing.dense_layout(target.layouts[0], torch.float32).views(dense)
    weight = packing.expand(packed, views)["self_attn.q_proj.weight"]
    expected = substitute(weight, None, 32, CPU, kernel)
    found = linear(fields, "self_attn.q_proj", CPU)
    inputs = torch.randn(3, weight.shape[1])
    assert torch.equal(found(inputs), expected(inputs))
    dense_head = read(target, 3)["weight"]
    head = linear(read(units, 3), "", CPU)
    hidden = torch.randn(2, dense_head.shape[1])
    assert torch.equal(head(hidden), substitute(dense_head, None, 32, CPU, kernel)(hidden))


# Engines with substitutes


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("family", variations(["llama", "qwen2", "gemma3"], quick=["gemma3"]))
def test_a_cached_draft_emits_what_plain_decoding_emits(
    family: str, kernel: Kernel, choose: Callable[[Kernel], None]
) -> None:
    choose(kernel)
    asked = [
        request("greedy", prompt(20, 1)),
        request("drawn", prompt(9, 2), temperature=1.0, seed=3),
    ]
    want = exact(alone(load(checkpoint(family), PLAIN), asked))
    fresh = run(load(checkpoint(family), SUBSPEC), asked)
    cached = run(load(checkpoint(family), SUBSPEC), asked)
    assert exact(fresh) == exact(cached) == want
    for key, answer in fresh.items():
        stats, again = answer.stats, cached[key].stats
        assert stats is not None and again is not None
        assert stats.passes == again.passes, "the trees are the same"


@pytest.mark.parametrize("tier", ["ram", "disk"])
def test_an_nf4_target_has_substitutes_too(tier: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint("llama")
    changes: dict[str, Any] = {
        "target": TargetSpec(str(folder), quantize="nf4"),
        "stream": StreamSpec(tier=tier, slots=2),
    }
    asked = [request("r", prompt(20, 1))]
    want = exact(run(load(folder, PLAIN, **changes), asked))
    fresh = load(folder, SUBSPEC, **changes)
    assert len(packed_cache.entries()) == 2  # the target's own packed weights, and the substitutes
    forbid_quantizing(monkeypatch)
    cached = load(folder, SUBSPEC, **changes)
    assert_equal(draft_tensors(cached), draft_tensors(fresh))
    assert exact(run(cached, asked)) == want


def test_a_target_quantized_at_load_is_quantized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its substitutes are made from the packed copy, not again from the checkpoint."""
    folder = checkpoint("llama")
    calls: list[int] = []
    real = nf4.quantize

    def counted(weight: Tensor, packed: Tensor, absmax: Tensor) -> None:
        calls.append(1)
        real(weight, packed, absmax)

    monkeypatch.setattr(nf4, "quantize", counted)
    monkeypatch.setattr(nf4, "QUANTIZATION", replace(nf4.QUANTIZATION, quantize=counted))
    load(folder, SUBSPEC, target=TargetSpec(str(folder), quantize="nf4"))
    packed = CheckpointUnits(
        folder,
        build_on_meta(read_config(folder), torch.float32, strict=False),
        torch.float32,
        "nf4",
    )
    fields = [field.name for layout in packed.layouts for field in layout.fields]
    assert len(calls) == sum(name.endswith(nf4.PACKED) for name in fields) > 0


def memory_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def test_resident_layers_are_shared_not_copied() -> None:
    folder = checkpoint("llama")
    some = StreamSpec(tier="ram", slots=2, resident=1)
    for engine in (load(folder, SUBSPEC, stream=some), load(folder, SUBSPEC, stream=some)):
        decoder, stream = draft_model(engine).decoder, engine._loaded.stream
        units: list[nn.Module] = [layer.inner for layer in decoder.decoder.layers]
        resident = [i for i, unit in enumerate([*units, decoder.output]) if stream.is_resident(i)]
        assert 0 < len(resident) < 4
        for index in resident:
            module = [*units, decoder.output][index]
            shared = {memory_of(tensor) for tensor in stream.resident(index).values()}
            used = {memory_of(own) for own in (*module.parameters(), *module.buffers())}
            assert used and used <= shared
        asked = [request("r", prompt(20, 1))]
        assert exact(run(engine, asked)) == exact(run(load(folder, PLAIN), asked))


def test_the_draft_has_a_head_of_its_own_where_the_exact_one_is_resident(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.planning.plan._Planner._large_head", lambda *_: {3})
    engine = load(checkpoint("llama", torch.bfloat16), SUBSPEC)
    assert [engine._loaded.stream.is_resident(index) for index in range(4)] == [False] * 3 + [True]
    assert isinstance(draft_model(engine).decoder.output, int4.Int4Linear)


def test_a_resident_target_makes_no_substitutes() -> None:
    folder = checkpoint("llama")
    engine = load(folder, DraftSpec("subspec", **SMALL), stream=StreamSpec(tier="resident"))
    assert all(engine._loaded.stream.is_resident(index) for index in range(4))
    assert packed_cache.entries() == []
    assert run(engine, [request("r", prompt(20, 1))])[("r", 0)].stats is not None
