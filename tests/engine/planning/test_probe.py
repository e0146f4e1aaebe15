"""Measurements before a model is loaded: the number of threads, and expanding packed weights."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from engine.planning import probe
from engine.planning.blueprint import Blueprint
from engine.spec import ModelSpec, TargetSpec
from engine.streaming.cpu_link import CpuDevice
from engine.streaming.device import Device
from engine.weights.hub import resolve
from tests.engine.checkpoints import save_tiny
from tests.engine.gguf_files import Array, Kind, write_gguf
from tests.engine.weights.formats.quantized_files import write as write_scaled
from tests.engine.weights.formats.test_linear import mxfp4_checkpoint, quantize_checkpoint


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("seconds", "settled"),
    [
        ({8: 1.0, 4: 2.0, 2: 0.5, 1: 0.1}, 8),  # halving stops as soon as it is not faster
        ({8: 1.0, 4: 0.9, 2: 0.9, 1: 0.1}, 4),
        ({8: 1.0, 4: 0.9, 2: 0.8, 1: 0.7}, 1),
    ],
)
def test_the_fastest_number_of_threads_is_chosen(
    seconds: dict[int, float], settled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fastest(step: Callable[[], object], device: Device) -> float:
        step()
        return seconds[torch.get_num_threads()]

    tried: list[int] = []
    monkeypatch.setattr(probe, "fastest", fastest)
    probe.choose_threads(lambda: tried.append(torch.get_num_threads()), CpuDevice())
    assert torch.get_num_threads() == settled
    assert tried[0] == 8 and all(a == 2 * b for a, b in itertools.pairwise(tried))


def nf4(folder: Path) -> Path:
    save_tiny("qwen3_moe", folder, layers=1, max_shard_size="1GB")
    quantize_checkpoint(folder, nested=False)
    return folder


def mxfp4(folder: Path) -> Path:
    mxfp4_checkpoint(folder)
    return folder


def blocks(folder: Path) -> Path:
    original = save_tiny("gpt_oss", folder, layers=1)
    path = write_gguf(original, folder / "m.gguf", block_type)
    return resolve(str(path), None, lambda *_: None).folder


def block_type(name: str, values: Array) -> Kind:
    if values.ndim == 1 or values.shape[-1] % 32:
        return Kind.F32
    return Kind.Q4_0 if "exps" in name else Kind.Q8_0


def scaled(kind: str, family: str) -> Callable[[Path], Path]:
    return lambda folder: write_scaled(kind, family, folder)[0]


@pytest.mark.parametrize("weights", [1, 1 << 20])
@pytest.mark.parametrize(
    "write",
    [
        nf4,
        mxfp4,
        blocks,
        scaled("fp8-block-whole", "llama"),
        scaled("gptq4-order", "qwen3_moe"),
        scaled("ct-nvfp4", "qwen3_moe"),
    ],
)
def test_every_packing_of_a_model_is_timed(
    write: Callable[[Path], Path],
    weights: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "PROBE_WEIGHTS", weights)  # one expert, or all of them
    folder = write(tmp_path)
    blueprint = Blueprint(ModelSpec("m", TargetSpec(str(folder))), folder)
    found = probe.expanding_times(blueprint, CpuDevice())
    assert found.keys() == blueprint.expansions.keys() and len(found) == (
        2 if write is blocks else 1
    )
    assert all(seconds > 0 for seconds in found.values())
