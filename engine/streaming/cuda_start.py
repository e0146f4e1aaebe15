"""The start of CUDA on a device, and the reason where it cannot be used.

Before CUDA has started, torch counts devices without asking whether the driver is new enough for
it. So CUDA is started and computes something before a plan is made for the device.
"""

# mypy: disallow-untyped-calls=False
# torch.cuda declares no types for its start.

import os
import re
import warnings
from pathlib import Path

import torch

from engine.errors import ModelError
from engine.streaming.device import DeviceMissing

ROOT = Path("/")  # of the system's files
# A driver or a container makes these files for a card; WSL 2 has the library instead.
_DRIVER_FILES = ("proc/driver/nvidia/gpus/*", "dev/nvidia[0-9]*", "usr/lib/wsl/lib/libcuda.so*")
_PCI_DEVICES = "sys/bus/pci/devices/*"
_NVIDIA = "0x10de"
_DISPLAY = "0x03"  # PCI class of display and 3D controllers
_INSTALL = "Install a build of PyTorch with CUDA that fits the driver and the GPU"
_ARCH = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")  # "sm_90a": version 9.0, only on that one


def start_cuda(device: torch.device) -> None:
    """Start CUDA and compute something on the device.

    Raises `DeviceMissing` if this machine does not have the device, and `ModelError` with the
    reason if it cannot be used.
    """
    name = f"device: {str(device)!r}"
    if _hides_all(os.environ.get("CUDA_VISIBLE_DEVICES")):
        raise DeviceMissing(f"{name} is hidden: CUDA_VISIBLE_DEVICES names no GPU. Unset it")
    if not torch.backends.cuda.is_built():
        _refuse(name, f"PyTorch {torch.__version__} was built without CUDA. {_INSTALL}")
    try:
        with warnings.catch_warnings():  # `_check_architecture` says it in one sentence
            warnings.simplefilter("ignore")
            torch.cuda.init()
    except (RuntimeError, torch.cuda.DeferredCudaCallError) as error:
        _refuse(name, f"CUDA did not start ({_first_line(error)}){_driver()}. {_advice()}")
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise DeviceMissing(f"{name} was not found: CUDA has {count} GPUs. Use auto or cpu")
    _check_architecture(device, name)
    try:
        torch.zeros(1, device=device).add_(1).item()
    except RuntimeError as error:
        raise ModelError(
            f"{name} cannot be used: its first operation failed ({_first_line(error)}). See with "
            "nvidia-smi whether other programs use it, and whether it works"
        ) from error


def has_card() -> bool:
    """Return whether this machine seems to have an NVIDIA GPU, with or without a driver."""
    if any(any(ROOT.glob(pattern)) for pattern in _DRIVER_FILES):
        return True
    return any(
        _read(card / "vendor") == _NVIDIA and _read(card / "class").startswith(_DISPLAY)
        for card in ROOT.glob(_PCI_DEVICES)
    )


def _refuse(name: str, reason: str) -> None:
    """Raise the error for a device that cannot be used, or that is not there at all."""
    if has_card():
        raise ModelError(
            f"{name} cannot be used, although this machine has an NVIDIA GPU: {reason}"
        )
    raise DeviceMissing(f"{name} was not found: {reason}, or use auto or cpu")


def _hides_all(visible: str | None) -> bool:
    """Return whether this value of CUDA_VISIBLE_DEVICES hides all devices on purpose."""
    return visible is not None and (not visible.strip() or visible.strip().startswith("-1"))


def _check_architecture(device: torch.device, name: str) -> None:
    """Raise `ModelError` if this build of PyTorch has no code for the device's architecture."""
    archs = torch.cuda.get_arch_list()
    own = torch.cuda.get_device_capability(device)
    if archs and not any(_runs_on(arch, own) for arch in archs):
        raise ModelError(
            f"{name} cannot be used: {torch.cuda.get_device_name(device)} has compute capability "
            f"{own[0]}.{own[1]}, and PyTorch {torch.__version__} was built for "
            f"{', '.join(archs)} only. {_INSTALL}"
        )


def _runs_on(arch: str, own: tuple[int, int]) -> bool:
    """Return whether code for `arch`, such as "sm_86", runs on a device of this capability.

    Machine code runs on its own major version, from its minor version on. A driver compiles PTX
    ("compute_90") for all later versions.
    """
    match = _ARCH.fullmatch(arch)
    if match is None:
        return True  # of an unknown kind: the first operation shows whether it runs
    kind, major, minor, only = match.groups()
    built = int(major), int(minor)
    if only == "a":
        return built == own
    if kind == "sm" or only:
        return built[0] == own[0] and built <= own
    return built <= own


def _driver() -> str:
    """Return the version of the loaded driver for a message, or nothing if it is not known."""
    match = re.search(r"\b\d+\.\d+(\.\d+)?\b", _read(ROOT / "proc/driver/nvidia/version"))
    return f", with driver {match[0]} and PyTorch for CUDA {torch.version.cuda}" if match else ""


def _advice() -> str:
    """Return what to do where CUDA does not start."""
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return f"Check that CUDA_VISIBLE_DEVICES={visible} names GPUs of this machine, or unset it"
    if any(ROOT.glob("dev/nvidia[0-9]*")):
        return "Update the driver, or install a build of PyTorch for an older CUDA"
    return (
        "Install the driver (nvidia-smi shows whether it works), and give a container the GPU "
        "(docker run --gpus all)"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


def _read(path: Path) -> str:
    """Return the text of a file of the system, empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
