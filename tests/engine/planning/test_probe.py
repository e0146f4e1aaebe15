"""Measurements before a model is loaded: the number of threads."""

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch

from engine.planning import probe
from engine.streaming.cpu_link import CpuDevice
from engine.streaming.device import Device


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
