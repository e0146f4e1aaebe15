"""Tests of the fingerprint of a loaded model, and of the tile that is computed for it."""

from typing import Any

import pytest
import torch

from engine.runtime import load as loading
from engine.runtime.reference_tile import reference_hash
from engine.spec import DraftSpec, MemorySpec, StreamSpec, TargetSpec
from engine.streaming.cpu_link import CpuDevice
from tests.engine.models import PLAIN, SUBSPEC, checkpoint, load, prompt, request, run

SAME: dict[str, dict[str, Any]] = {
    "resident": {"stream": StreamSpec(tier="resident")},
    "disk": {"stream": StreamSpec(tier="disk", slots=1)},
    "more slots": {"stream": StreamSpec(tier="ram", slots=4)},
    "a draft model": {"draft": SUBSPEC},
    "a look-up": {"draft": DraftSpec("ngram")},
    "more memory": {"memory": MemorySpec(device=1 << 30)},
}
OTHER: dict[str, dict[str, Any]] = {
    "weights": {"folder": ("llama", {"seed": 1})},
    "layers": {"folder": ("llama", {"layers": 2})},
    "type": {"folder": ("llama", {"dtype": torch.bfloat16})},
    "numerics": {"numerics": "fast"},
}


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the hash of each tile that a load computes."""
    found: list[str] = []

    def compute(*arguments: Any) -> str:
        found.append(reference_hash(*arguments))
        return found[-1]

    monkeypatch.setattr(loading, "reference_hash", compute)
    return found


def fingerprint(
    family: str = "llama", folder: Any = None, draft: DraftSpec = PLAIN, **changes: Any
) -> str:
    family, fields = folder or (family, {})
    return load(checkpoint(family, **fields), draft, **changes).info.fingerprint


@pytest.mark.parametrize("change", SAME)
def test_it_does_not_depend_on_where_weights_are_or_on_the_draft(change: str) -> None:
    assert fingerprint(**SAME[change]) == fingerprint()


@pytest.mark.parametrize("family", ["gpt_oss", "phi3_longrope"])
def test_other_structures_have_a_tile_and_models_of_one_layer(
    family: str, tiles: list[str]
) -> None:
    for tier in ("resident", "disk"):
        fingerprint(family, stream=StreamSpec(tier=tier, slots=1))
    assert len(set(tiles)) == 1
    fingerprint(folder=(family, {"layers": 1}))
    assert len(set(tiles)) == 2


@pytest.mark.parametrize("change", OTHER)
def test_it_depends_on_what_is_computed(change: str) -> None:
    assert fingerprint(**OTHER[change]) != fingerprint()


def test_it_depends_on_quantization() -> None:
    target = TargetSpec(str(checkpoint("llama")), quantize="nf4")
    assert fingerprint(target=target) != fingerprint()


def test_api_20_it_depends_on_versions_device_and_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [fingerprint()]
    for name, value in (
        ("engine.runtime.target_files.__version__", "another"),
        ("engine.runtime.target_files.version", lambda library: f"another {library}"),
        ("engine.runtime.load.reference_hash", lambda *_: "other bits"),
        ("engine.runtime.target_files.is_ordered_on", lambda device: False),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(name, value)
            found.append(fingerprint())
    with monkeypatch.context() as changed:
        changed.setattr(CpuDevice, "arithmetic", "cpu AVX9")
        found.append(fingerprint())
    assert len(set(found)) == 6
    assert fingerprint() == found[0]


def test_the_tile_depends_on_the_weights(
    tiles: list[str],
) -> None:
    for seed in (0, 1):
        fingerprint(folder=("llama", {"seed": seed}))
    assert len(set(tiles)) == 2


@pytest.mark.parametrize("numerics", ["strict", "fast"])
def test_the_tile_does_not_depend_on_the_number_of_threads(tiles: list[str], numerics: Any) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            fingerprint(numerics=numerics)
    finally:
        torch.set_num_threads(before)
    assert len(set(tiles)) == 1


def test_the_tile_leaves_stream_and_cache_as_they_were() -> None:
    engine = load(checkpoint("llama"), PLAIN)
    assert engine._loaded.stream.stats.units == 0
    assert engine._cache.num_free_pages == engine._cache.num_pages
    answer = run(engine, [request("r", prompt(70))])["r", 0]
    with torch.inference_mode():
        reference_hash(engine._decoder, engine._loaded.stream, engine._cache)
    assert run(engine, [request("r", prompt(70))])["r", 0].ids == answer.ids
