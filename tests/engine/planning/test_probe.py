"""Measurements before a model is loaded: of passes, and of expanding packed weights."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.planning import probe
from engine.planning.blueprint import Blueprint
from engine.spec import DraftSpec, ModelSpec, TargetSpec
from engine.streaming.cpu_link import CpuDevice
from engine.streaming.device import Capture, Device, OwnMemory, Work
from engine.weights.formats.int4 import Int4Linear
from engine.weights.hub import resolve
from engine.weights.stored_format import packings
from tests.engine.checkpoints import HIDDEN, save_tiny
from tests.engine.gguf_files import Array, Kind, write_gguf
from tests.engine.weights.formats.quantized_files import write as write_scaled
from tests.engine.weights.formats.test_linear import mxfp4_checkpoint, quantize_checkpoint


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


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


def test_the_time_to_compile_code_is_not_the_time_to_expand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def expand(suffix: str, *_: torch.Tensor) -> None:
        calls.append(suffix)

    def time_runs(run: Callable[[], None], count: int) -> list[float]:
        is_first = not calls
        for _ in range(count):
            run()
        return [1e12 if is_first else 1.0] * count

    known = {
        suffix: replace(packing, expand=partial(expand, suffix))
        for suffix, packing in packings().items()
    }
    monkeypatch.setattr(probe, "packings", lambda: known)
    monkeypatch.setattr(probe, "time_runs", time_runs)
    folder = mxfp4(tmp_path)
    blueprint = Blueprint(ModelSpec("m", TargetSpec(str(folder))), folder)
    found = probe.expanding_times(blueprint, CpuDevice())
    assert found and all(seconds < 1.0 for seconds in found.values())


class Card(CpuDevice):
    """The CPU as if it had memory and graphs of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.num_captured = 0

    def own_memory(self) -> OwnMemory:
        return OwnMemory(free=1 << 30, runtime=0)

    def capture(self) -> Capture:
        def capture(work: Work) -> Work:
            self.num_captured += 1
            return work

        return capture


@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("device", [CpuDevice(), Card()], ids=["cpu", "card"])
def test_the_products_that_a_draft_runs_are_timed(
    device: CpuDevice, group: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[int, int, int, int]] = []  # rows, outputs, inputs, group
    forward = Int4Linear.forward

    def counted(product: Int4Linear, rows: torch.Tensor) -> torch.Tensor:
        ran.append((len(rows), product.out_features, product.in_features, product.group))
        return forward(product, rows)

    def fastest(step: Callable[[], object], device: Device) -> float:
        before = len(ran)
        step()
        return float(len(ran) - before)  # a second for each product

    monkeypatch.setattr(Int4Linear, "forward", counted)
    monkeypatch.setattr(probe, "fastest", fastest)
    monkeypatch.setattr(probe, "CACHED_BYTES", 20_000)
    folder = save_tiny("llama", tmp_path, layers=3, vocab_size=192, width=2)
    draft = DraftSpec("subspec", group=group)
    blueprint = Blueprint(ModelSpec("m", TargetSpec(str(folder)), draft=draft), folder)
    times = probe.substitute_times(blueprint, device, width=3)
    assert {own[3] for own in ran} == {group} and {own[0] for own in ran} == {1, 3, 24}
    size, wide = 2 * HIDDEN, 4 * HIDDEN
    # q, k and v joined; o; gate and up joined; down; the head.
    shapes = {(2 * size, size), (size, size), (2 * wide, size), (size, wide), (192, size)}
    assert {own[1:3] for own in ran} == shapes
    # A second for each of four products in three layers, and for the head.
    assert times.expect(1) == times.expect(24) == 3 * 4 + 1
    if isinstance(device, Card):
        copies = -(-20_000 // (size * size // 2 + size * size // group * 4))
        assert ran.count((1, size, size, group)) == copies > 1, "no weight is in a cache"
        assert device.num_captured > 0


def test_a_slice_of_a_large_product_counts_for_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny("llama", tmp_path, layers=1, vocab_size=1024)
    blueprint = Blueprint(ModelSpec("m", TargetSpec(str(folder))), folder)
    monkeypatch.setattr(probe, "fastest", lambda step, device: 1.0)
    whole = probe.substitute_times(blueprint, CpuDevice(), width=3).expect(1)
    monkeypatch.setattr(probe, "PROBE_WEIGHTS", 4 * 256 * HIDDEN)  # of four products
    sliced = probe.substitute_times(blueprint, CpuDevice(), width=3).expect(1)
    assert whole == 5 and sliced == 4 + 1024 / 256
