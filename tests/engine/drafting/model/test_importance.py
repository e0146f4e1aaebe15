"""Substitutes are calibrated at the first start: their scales are fitted to their inputs."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from engine.cache_files import unit_name
from engine.drafting.model import importance
from engine.drafting.model.importance import TEXT_TOKENS, measure_importance
from engine.drafting.model.substitutes import linear_paths, weight_name
from engine.errors import ModelError
from engine.kv.cache import KVCache
from engine.kv.page_pool import PAGE, PagePool
from engine.model.decoder import Decoder
from engine.model.library import build_on_meta
from engine.runtime.engine import Engine
from engine.spec import StreamSpec
from engine.streaming import packed_cache
from engine.streaming.cpu_link import CpuDevice
from engine.streaming.packed import PackedUnits
from engine.weights.family import kv_shape, read_config
from engine.weights.formats import int4
from engine.weights.units import CheckpointUnits
from tests.engine.models import (
    PLAIN,
    SUBSPEC,
    checkpoint,
    draft_model,
    exact,
    load,
    prompt,
    request,
    run,
)

UNCALIBRATED = replace(SUBSPEC, calibrate=False)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(importance, "TEXT_TOKENS", 8)


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    return with_bos("llama", tmp_path)


def with_bos(family: str, parent: Path) -> Path:
    """Return a copy of a tiny checkpoint whose tokenizer has a token that begins a text."""
    folder = Path(shutil.copytree(checkpoint(family), parent / family))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = "!"
    tokenizer.save_pretrained(folder)
    return folder


def weights(engine: Engine) -> dict[str, Tensor]:
    """Return the draft's tensors."""
    decoder = draft_model(engine).decoder
    found = {**decoder.decoder.layers.state_dict(), **decoder.output.state_dict()}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def forbid_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*_: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("engine.drafting.model.self_draft.measure_importance", measure)


def stored_importance() -> PackedUnits:
    """Return the cache entry with the importance of the model's channels."""
    (entry,) = (e for e in packed_cache.entries() if "importance" in PackedUnits(e.path).key)
    return PackedUnits(entry.path)


# What is measured


@pytest.fixture(name="unfused")
def _unfused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the draft keep the library's modules, whose linear layers have the weights' names."""
    monkeypatch.setattr("engine.drafting.model.self_draft.fuse", lambda *_: None)


def linears_of(decoder: Decoder, folder: Path) -> list[dict[str, nn.Module]]:
    model = build_on_meta(read_config(folder), torch.float32, strict=False)
    modules = [*model.get_decoder().layers, model.get_output_embeddings()]
    own = [*(layer.inner for layer in decoder.decoder.layers), decoder.output]
    return [
        {weight_name(path): part.get_submodule(path) for path in linear_paths(module)}
        for module, part in zip(modules, own, strict=True)
    ]


def measure(engine: Engine, folder: Path, cache: KVCache) -> tuple[list[dict[str, Tensor]], int]:
    """Measure importance in the draft; return it and the number of rows that its layers ran.

    Only the rows of the texts count, which come after those of the starts.
    """
    decoder = draft_model(engine).decoder
    linears = linears_of(decoder, folder)
    inputs: dict[int, list[Tensor]] = {}
    handles = [
        layer.register_forward_pre_hook(
            lambda layer, rows: inputs.setdefault(id(layer), []).append(rows[0].flatten(0, -2))
        )
        for own in linears
        for layer in own.values()
    ]
    with torch.inference_mode():
        measured = measure_importance(decoder, cache, linears, [1, 2, 3], lambda *_: None)
    for handle in handles:
        handle.remove()
    for own, found in zip(linears, measured, strict=True):
        for name, layer in own.items():
            written = torch.cat(inputs[id(layer)][-importance.TEXT_TOKENS :]).float()
            squares = written.square() / written.square().mean(-1, keepdim=True)
            assert torch.allclose(found[name], squares.mean(0), rtol=1e-4), name
    first = next(iter(linears[0].values()))
    return measured, sum(map(len, inputs[id(first)]))


@pytest.mark.usefixtures("unfused")
def test_the_mean_square_of_the_inputs_of_written_tokens_is_measured(folder: Path) -> None:
    engine = load(folder, SUBSPEC)
    cache = engine._loaded.cache
    free = cache.num_free_pages
    measured, rows = measure(engine, folder, cache)
    assert rows == importance.NUM_TEXTS * (3 + 8)
    assert cache.num_free_pages == free
    assert [len(own) for own in measured] == [7, 7, 7, 1]
    again, _ = measure(engine, folder, cache)
    for own, other in zip(measured, again, strict=True):
        assert all(torch.equal(own[name], other[name]) for name in own)


@pytest.mark.usefixtures("unfused")
def test_a_small_cache_has_room_for_fewer_texts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(folder, SUBSPEC)
    shape = kv_shape(read_config(folder))

    def cache(pages: int) -> KVCache:
        return KVCache(PagePool.of_shape(shape, pages, torch.float32, CpuDevice()))

    assert measure(engine, folder, cache(2))[1] == 2 * (3 + 8)
    monkeypatch.setattr(importance, "TEXT_TOKENS", PAGE)
    with pytest.raises(ModelError, match="no room for a text"):
        measure(engine, folder, cache(1))


def test_texts_fit_few_pages() -> None:
    assert TEXT_TOKENS + importance.LONGEST_START <= 4 * PAGE


# What is stored and used


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3_longrope", "gemma3"])
def test_every_linear_weight_has_its_importance_in_the_cache(family: str, tmp_path: Path) -> None:
    folder = with_bos(family, tmp_path)
    load(folder, SUBSPEC)
    units = stored_importance()
    model = build_on_meta(read_config(folder), torch.float32, strict=False)
    modules = [*model.get_decoder().layers, model.get_output_embeddings()]
    for index, (layout, module) in enumerate(zip(units.layouts, modules, strict=True)):
        buffer = torch.zeros(layout.nbytes, dtype=torch.uint8)
        units.read(index, buffer)
        views = layout.views(buffer)
        assert list(views) == [weight_name(path) for path in linear_paths(module)]
        for path, view in zip(linear_paths(module), views.values(), strict=True):
            assert view.shape == (module.get_submodule(path).in_features,)
            assert (view > 0).any(), path


def test_the_next_start_measures_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = weights(load(folder, SUBSPEC))
    plain = weights(load(folder, UNCALIBRATED))
    assert any(not torch.equal(fresh[name], plain[name]) for name in fresh)
    forbid_measuring(monkeypatch)
    cached = weights(load(folder, SUBSPEC))
    assert all(torch.equal(cached[name], fresh[name]) for name in fresh)
    load(folder, replace(SUBSPEC, group=64))  # other substitutes, by the same importance


def test_answers_do_not_depend_on_the_calibration(folder: Path) -> None:
    asked = [request("a", prompt(20, 1)), request("b", prompt(9, 2), temperature=1.0, seed=3)]
    answers = [exact(run(load(folder, own), asked)) for own in (PLAIN, SUBSPEC, UNCALIBRATED)]
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("resident", [0, 2])
def test_the_checkpoint_is_read_twice_at_most(
    resident: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: Counter[int] = Counter()
    read = CheckpointUnits.read

    def counted(units: CheckpointUnits, index: int, buffer: Tensor) -> None:
        reads[index] += 1
        read(units, index, buffer)

    monkeypatch.setattr(CheckpointUnits, "read", counted)
    stream = StreamSpec(tier="ram", slots=2, resident=resident)
    load(folder, PLAIN, stream=stream)
    for_target = Counter(reads)
    reads.clear()
    load(folder, SUBSPEC, stream=stream)
    assert max((reads - for_target).values()) == 2


def test_a_damaged_substitute_is_made_again_by_the_stored_importance(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = weights(load(folder, SUBSPEC))
    forbid_measuring(monkeypatch)
    (entry,) = (e for e in packed_cache.entries() if "fitted" in PackedUnits(e.path).key)
    path = entry.path / unit_name(1)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    cached = weights(load(folder, SUBSPEC))
    assert all(torch.equal(cached[name], fresh[name]) for name in fresh)


# When it cannot be measured


def test_a_tokenizer_without_a_beginning_is_logged_and_nothing_is_fitted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = weights(load(checkpoint("llama"), UNCALIBRATED))
    assert not caplog.records
    found = weights(load(checkpoint("llama"), SUBSPEC))
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    (record,) = caplog.records
    expected = "not calibrated: the tokenizer has no token with which a text begins"
    assert expected in record.getMessage()
    assert len(packed_cache.entries()) == 1


def test_infinite_inputs_are_logged_and_nothing_is_fitted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    quantize = int4.quantize

    def broken(weight: Tensor, pairs: Tensor, scales_and_zeros: Tensor, *_: Any) -> None:
        quantize(weight, pairs, scales_and_zeros)
        scales_and_zeros.fill_(torch.nan)

    monkeypatch.setattr(int4, "quantize", broken)
    load(folder, SUBSPEC)
    assert "not calibrated: the 4-bit copies compute infinite numbers" in caplog.text
    assert len(packed_cache.entries()) == 1
