"""Tests of timing kernels by the device's clock, without the time of launching them."""

from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.streaming.cuda_link import CudaDevice


class Device:
    """A fake of torch.cuda with a clock in milliseconds, which work moves on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.launched: list[str] = []
        device = self

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = device.now
                device.launched.append("event")

            def synchronize(self) -> None:
                device.launched.append("wait")

            def elapsed_time(self, end: Any) -> float:
                return float(end.at - self.at)

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
        monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: self.launched.append("sleep"))

    def layer(self, *milliseconds: float) -> nn.Module:
        """Return a layer whose calls take these times, one after another."""
        times = list(milliseconds)
        device = self

        class Layer(nn.Module):
            def forward(self, rows: Tensor) -> Tensor:
                device.now += times.pop(0)
                device.launched.append("call")
                return rows

        return Layer()


def test_calls_are_launched_while_the_device_sleeps_and_then_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = Device(monkeypatch)
    layer = device.layer(3.0, 1.0, *[2.0] * 7)
    seconds = CudaDevice(torch.device("cuda:0")).kernel_seconds(partial(layer, torch.zeros(1, 1)))
    assert seconds == pytest.approx([0.003, 0.001, *[0.002] * 7])
    assert device.launched == ["sleep", "event", *["call", "event"] * 9, "wait"]
