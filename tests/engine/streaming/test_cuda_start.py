"""Tests of choosing a CUDA device on pretended machines: what is used, refused and logged."""

import logging
import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.errors import ModelError
from engine.streaming import cuda_start
from engine.streaming.cpu_link import CpuDevice
from engine.streaming.cuda_link import CudaDevice
from engine.streaming.cuda_start import has_card
from engine.streaming.device import DeviceMissing, choose_device

OLD_DRIVER = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU "
    "driver by downloading and installing a new version."
)
ARCHS = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
DEVICE_FILE = {"dev/nvidia0": ""}
DRIVER = {
    **DEVICE_FILE,
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.82.01\n",
}
ON_THE_BUS = {
    "sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
    "sys/bus/pci/devices/0000:01:00.0/class": "0x030200\n",
}


@dataclass(frozen=True)
class Machine:
    """What a machine has, and how PyTorch answers on it."""

    files: tuple[tuple[str, str], ...] = tuple(DRIVER.items())
    is_built: bool = True
    failure: Exception | None = None  # of the start of CUDA
    count: int = 1
    capability: tuple[int, int] = (8, 9)
    archs: tuple[str, ...] = ARCHS
    trial: Exception | None = None  # of the first operation
    visible: str | None = None  # CUDA_VISIBLE_DEVICES


GOOD = Machine()
WITHOUT = Machine(
    files=(),
    failure=RuntimeError("Found no NVIDIA driver on your system."),
)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return the function that makes this machine another one."""

    def become(machine: Machine) -> None:
        for name, text in machine.files:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

        def init() -> None:
            warnings.warn("torch's own words on an architecture", stacklevel=1)
            if machine.failure is not None:
                raise machine.failure

        def zeros(count: int, *, device: torch.device) -> Tensor:
            assert device.type == "cuda"
            if machine.trial is not None:
                raise machine.trial
            return torch.ones(count) - 1

        monkeypatch.setattr(cuda_start, "ROOT", tmp_path)
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: machine.is_built)
        monkeypatch.setattr(torch.cuda, "init", init)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: machine.count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Card 9000")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: machine.capability)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(machine.archs))
        monkeypatch.setattr(torch, "zeros", zeros)
        if machine.visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", machine.visible)

    return become


@pytest.mark.parametrize("name", [None, "cuda", "cuda:0"])
@pytest.mark.parametrize(
    "machine",
    [
        GOOD,
        replace(GOOD, visible="0"),
        replace(GOOD, archs=()),  # a build that does not say
        replace(GOOD, capability=(12, 1)),  # from the PTX
        replace(GOOD, capability=(9, 0), archs=("sm_90a",)),
        replace(GOOD, archs=("gfx1100",)),  # of another kind
    ],
)
def test_a_device_that_computes_is_chosen(
    pretend: Any, machine: Machine, name: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(machine)
    found = choose_device(name)
    assert isinstance(found, CudaDevice)
    assert str(found) == (name or "cuda:0")
    assert caplog.messages == []


UNUSABLE: tuple[tuple[Machine, str], ...] = (
    (
        replace(GOOD, failure=RuntimeError(OLD_DRIVER)),
        r"too old \(found version 11040\).*driver 470\.82\.01.*Update the driver",
    ),
    (
        replace(GOOD, failure=torch.cuda.DeferredCudaCallError("CUDA call failed lazily")),
        "CUDA call failed lazily",
    ),
    (
        replace(WITHOUT, files=tuple(ON_THE_BUS.items())),
        r"Found no NVIDIA driver.*Install the driver.*--gpus all",
    ),
    (
        replace(WITHOUT, files=(("usr/lib/wsl/lib/libcuda.so.1", ""),)),
        "Found no NVIDIA driver",
    ),
    (
        replace(GOOD, failure=RuntimeError("No CUDA GPUs are available"), visible="7"),
        "CUDA_VISIBLE_DEVICES=7 names GPUs",
    ),
    (replace(GOOD, is_built=False), "was built without CUDA.*Install a build"),
    (
        replace(GOOD, capability=(6, 1)),
        r"Card 9000 has compute capability 6\.1.*sm_75, sm_80.*Install a build",
    ),
    (replace(GOOD, capability=(12, 1), archs=("sm_90", "sm_120a")), r"capability 12\.1"),
    (replace(GOOD, capability=(8, 0), archs=("sm_86",)), r"capability 8\.0"),
    (
        replace(GOOD, trial=torch.OutOfMemoryError("CUDA out of memory.\nMore words")),
        r"operation failed \(CUDA out of memory\)\. See with nvidia-smi",
    ),
    (
        replace(GOOD, trial=RuntimeError("CUDA-capable device(s) is/are busy or unavailable")),
        "busy or unavailable",
    ),
)


@pytest.mark.parametrize(("machine", "reason"), UNUSABLE)
def test_a_card_that_cannot_be_used_is_refused_by_name_and_logged_by_auto(
    pretend: Any, machine: Machine, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(machine)
    with pytest.raises(ModelError, match=rf"^device: 'cuda:0' cannot be used.*{reason}") as raised:
        choose_device("cuda:0")
    assert not isinstance(raised.value, DeviceMissing)
    assert "\n" not in str(raised.value)
    with caplog.at_level(logging.WARNING):
        assert isinstance(choose_device(None), CpuDevice)
    (message,) = caplog.messages
    assert re.search(reason, message)
    assert "The CPU is used instead" in message


MISSING: tuple[tuple[Machine, str, str], ...] = (
    (WITHOUT, "cuda:0", "Found no NVIDIA driver"),
    (replace(WITHOUT, is_built=False), "cuda:0", "was built without CUDA"),
    (replace(GOOD, visible=""), "cuda:0", "CUDA_VISIBLE_DEVICES"),
    (replace(GOOD, visible="-1"), "cuda:0", "CUDA_VISIBLE_DEVICES"),
    (replace(GOOD, count=2), "cuda:2", "CUDA has 2 GPUs"),
)


@pytest.mark.parametrize(("machine", "name", "reason"), MISSING)
def test_a_machine_without_the_device_is_no_reason_for_a_warning(
    pretend: Any, machine: Machine, name: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(machine)
    with pytest.raises(DeviceMissing, match=f"^device: '{name}'.*{reason}"):
        choose_device(name)
    if machine.count == 1:
        assert isinstance(choose_device(None), CpuDevice)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, False),
        (DEVICE_FILE, True),
        ({"dev/nvidiactl": ""}, False),
        ({"proc/driver/nvidia/gpus/0000:01:00.0/information": ""}, True),
        ({"usr/lib/wsl/lib/libcuda.so.1": ""}, True),
        (ON_THE_BUS, True),
        ({**ON_THE_BUS, "sys/bus/pci/devices/0000:01:00.0/class": "0x040300\n"}, False),  # audio
        ({**ON_THE_BUS, "sys/bus/pci/devices/0000:01:00.0/vendor": "0x1002\n"}, False),
    ],
)
def test_signs_of_a_card(pretend: Any, files: dict[str, str], expected: bool) -> None:
    pretend(replace(GOOD, files=tuple(files.items())))
    assert has_card() is expected
