"""The 16-bit types that a device multiplies fast."""

import torch

CAPABILITY = (8, 0)  # Ampere, the first CUDA cards whose tensor cores take bfloat16


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether products in bfloat16 are fast on this device.

    Older cards compute them by other instructions, many times slower, and some kernels do not run
    there at all.
    """
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= CAPABILITY


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return the 16-bit type in which 4-bit products compute on this device."""
    return torch.bfloat16 if has_fast_bfloat16(device) else torch.float16


def describe(device: torch.device) -> str:
    """Return the name of a CUDA device with its compute capability, for messages."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"{device} (compute capability {major}.{minor})"
