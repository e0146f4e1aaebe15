"""The choice of the faster 4-bit kernel, which depends on the machine and a step's rows."""

import statistics
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from engine.streaming.device import Device
from engine.weights.formats.linear import Kernel, substitute, supports

# A larger weight is measured by a slice of its rows. An asynchronous device takes a larger slice,
# so that it is not idle between two launches.
_PROBE_WEIGHTS = 1 << 22
_ASYNCHRONOUS_PROBE_WEIGHTS = 1 << 24


def fastest_kernel(
    shapes: Sequence[tuple[int, int]], rows: int, device: Device, group: int = 32
) -> Kernel:
    """Return the kernel that is fastest over weights of `shapes` [(out, in)] for `rows` rows.

    A kernel that supports fewer of the shapes is not chosen. Measuring takes some tenths of a
    second at most.
    """
    kernels: tuple[Kernel, Kernel] = ("int4", "nf4")
    taken = {
        kernel: [s for s in shapes if supports(s[1], s[0], group, device.torch_device, kernel)]
        for kernel in kernels
    }
    if len(taken["int4"]) != len(taken["nf4"]):
        return max(kernels, key=lambda kernel: len(taken[kernel]))
    if not taken["int4"]:
        return "int4"  # nothing can be substituted; either name will do
    out_features, in_features = max(taken["int4"], key=lambda shape: shape[0] * shape[1])
    most = _ASYNCHRONOUS_PROBE_WEIGHTS if device.is_asynchronous else _PROBE_WEIGHTS
    out_features = min(out_features, max(64, most // in_features // 64 * 64))
    here = device.torch_device
    weight = torch.randn(out_features, in_features, device=here, dtype=torch.bfloat16)
    inputs = torch.randn(rows, in_features, device=here, dtype=torch.bfloat16)
    times = {
        kernel: _median_seconds(substitute(weight, None, group, here, kernel), inputs, device)
        for kernel in kernels
    }
    return min(kernels, key=lambda kernel: times[kernel])


def _median_seconds(layer: nn.Module, inputs: Tensor, device: Device) -> float:
    """Return the median time of a call; the first one, which packs the weight, does not count."""
    layer(inputs)
    return statistics.median(device.kernel_seconds(partial(layer, inputs)))
