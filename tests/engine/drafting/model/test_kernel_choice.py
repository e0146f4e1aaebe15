"""The choice of the 4-bit kernel that substitutes use."""

import pytest

from engine.drafting.model.kernel_choice import fastest_kernel
from engine.streaming.cpu_link import CpuDevice
from engine.weights.formats import nf4

CPU = CpuDevice()


def test_the_kernel_that_supports_more_shapes_is_chosen() -> None:
    assert fastest_kernel([(16, 96), (16, 32)], 4, CPU) == "int4"  # nf4 supports neither
    assert fastest_kernel([(128, 128)], 4, CPU) in ("int4", "nf4")


def test_without_bitsandbytes_int4_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nf4, "is_available", lambda: False)
    assert fastest_kernel([(128, 128)], 4, CPU) == "int4"


def test_the_faster_kernel_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"Int4Linear": 2.0, "Nf4Linear": 1.0}
    monkeypatch.setattr(
        "engine.drafting.model.kernel_choice._median_seconds",
        lambda layer, inputs, device: seconds[type(layer).__name__],
    )
    assert fastest_kernel([(128, 128)], 4, CPU) == "nf4"
    seconds["Nf4Linear"] = 3.0
    assert fastest_kernel([(128, 128)], 4, CPU) == "int4"
