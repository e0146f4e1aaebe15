"""The machine: device, driver, link, packages, and the rates that nothing on the device exceeds."""

# mypy: disallow-untyped-calls=False
# torch.cuda declares no types for the properties of devices.

import ctypes
import importlib.metadata
import os
import platform
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.first_gpu_run.lab import MIB, Lab, gbps
from benchmarks.first_gpu_run.record import Results
from benchmarks.runs import ROOT, describe_machine

PACKAGES = (
    "torch", "triton", "transformers", "tokenizers", "safetensors", "numpy", "numba",
    "bitsandbytes", "llguidance", "fastapi", "pydantic", "pytest",
)  # fmt: skip
ASKED = (
    "name,driver_version,memory.total,pcie.link.gen.max,pcie.link.gen.current,"
    "pcie.link.width.max,pcie.link.width.current,clocks.sm,clocks.mem,power.limit"
)
ATTRIBUTES = {  # name -> number in CUdevice_attribute
    "async_engines": 40, "l2_bytes": 38, "memory_clock_khz": 36, "bus_bits": 37,
    "shared_bytes_per_sm": 81, "shared_bytes_per_block_optin": 97, "multiprocessors": 16,
    "stream_priorities": 78, "integrated": 18, "float64_ratio": 87,
}  # fmt: skip


def run(lab: Lab, out: Results) -> None:
    """Describe the machine and measure its ceilings."""
    out["machine"] = describe_machine()
    out["commit"] = _command("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    out["packages"] = {name: _version(name) for name in PACKAGES}
    out["kernel"] = platform.release()
    out["processors"] = len(os.sched_getaffinity(0))
    out["memory"] = Path("/proc/meminfo").read_text().splitlines()[:3]
    out["numa_nodes"] = len(list(Path("/sys/devices/system/node").glob("node[0-9]*")))
    out["c_compiler"] = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    out["locked_memory_limit"] = _command("bash", "-c", "ulimit -l")
    out["cuda"], out["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
    if not lab.is_dry:
        _describe_device(lab, out)
    _measure_ceilings(lab, out)


def _describe_device(lab: Lab, out: Results) -> None:
    out["nvidia_smi"] = _command("nvidia-smi", f"--query-gpu={ASKED}", "--format=csv")
    out["topology"] = _command("nvidia-smi", "topo", "-m")
    out["device"] = str(torch.cuda.get_device_properties(lab.device))
    out["capability"] = torch.cuda.get_device_capability(lab.device)
    out["free_and_total_bytes"] = torch.cuda.mem_get_info(lab.device)
    out["attributes"] = _driver_attributes(lab.device.index or 0)


def _measure_ceilings(lab: Lab, out: Results) -> None:
    out["copy_read_and_write_gbps"] = gbps(lab.memory_bandwidth(), 1.0)
    out["read_gbps"] = _read_gbps(lab)
    sizes = {torch.bfloat16: 8192, torch.float32: 4096, torch.float64: 4096}
    for dtype, real in sizes.items():
        size = lab.choose(real, 64)
        one, other = (lab.random(size, size, dtype=dtype) for _ in range(2))
        seconds = lab.device_seconds([partial(torch.matmul, one, other)], times=3)
        out[f"{str(dtype)[6:]}_tflops"] = round(2 * size**3 / seconds / 1e12, 2)


def _read_gbps(lab: Lab) -> float:
    """Return the GB/s at which a reduction reads device memory."""
    nbytes = lab.choose(2 << 30, MIB)
    words = lab.allocate(nbytes).fill_(1).view(torch.int32)
    return gbps(nbytes, lab.device_seconds([lambda: torch.amax(words)]))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _command(*words: str) -> str:
    """Return the output of a command, or why it could not be run."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return repr(error)
    return (done.stdout + done.stderr).strip()[:2000]


def _driver_attributes(index: int) -> dict[str, Any]:
    driver = ctypes.CDLL("libcuda.so.1")
    driver.cuInit(0)
    version, value, device = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    driver.cuDeviceGet(ctypes.byref(device), index)
    found: dict[str, Any] = {"driver_cuda_version": version.value}
    for name, number in ATTRIBUTES.items():
        status = driver.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        found[name] = value.value if status == 0 else f"error {status}"
    return found
