"""The link: copies in pieces of several sizes, both ways, pinned or not, beside busy kernels."""

# mypy: disallow-untyped-calls=False
# torch.cuda declares no types for cudart.

import time

import numpy as np
import torch
from torch import Tensor

from benchmarks.first_gpu_run.lab import MIB, Lab, gbps
from benchmarks.first_gpu_run.record import Results

PIECES_MIB = (1, 4, 8, 16, 32, 64, 128, 256, 512)


def run(lab: Lab, out: Results) -> None:
    """Measure the link's bandwidth under all conditions that the weight stream meets."""
    total = lab.choose(1 << 30, 2 * MIB)
    source, target = lab.pinned(total), lab.allocate(total)
    rates: dict[int, float] = {}
    for piece in lab.choose(PIECES_MIB, (1,)):
        size = piece * MIB

        def copy(size: int = size) -> None:
            for begin in range(0, total, size):
                target[begin : begin + size].copy_(source[begin : begin + size], non_blocking=True)

        rates[piece] = gbps(total, lab.wall_seconds(copy, times=4))
        out["to_device_gbps_by_piece_mib"] = rates
    back = lab.wall_seconds(lambda: source.copy_(target, non_blocking=True), times=3)
    out["from_device_gbps"] = gbps(total, back)
    half = target[: total // 2]
    pageable = torch.ones(total // 2, dtype=torch.uint8)
    seconds = lab.wall_seconds(lambda: half.copy_(pageable), times=3)
    out["pageable_gbps"] = gbps(pageable.nbytes, seconds)
    if lab.is_dry:
        return
    out["both_ways_gbps"] = _both_ways(lab, source, half)
    out["beside_kernels_gbps"] = _beside_kernels(lab, source, target)
    _measure_registration(lab, out, target)


def _both_ways(lab: Lab, source: Tensor, half: Tensor) -> float:
    down, up = lab.stream(), lab.stream()
    host, other = lab.pinned(half.nbytes), torch.empty_like(half)

    def both() -> None:
        with lab.on(down):
            half.copy_(source[: half.nbytes], non_blocking=True)
        with lab.on(up):
            host.copy_(other, non_blocking=True)

    return gbps(2 * half.nbytes, lab.wall_seconds(both, times=3))


def _beside_kernels(lab: Lab, source: Tensor, target: Tensor) -> float:
    """Return the link's GB/s while kernels use all of the device memory's bandwidth."""
    big = lab.allocate(1 << 30).fill_(1)
    other, copies = torch.empty_like(big), lab.stream()
    lab.synchronize()
    begin, end = lab.event(timed=True), lab.event(timed=True)
    with lab.on(copies):
        begin.record()
        target.copy_(source, non_blocking=True)
        end.record()
    for _ in range(100):
        other.copy_(big)
    lab.synchronize()
    return gbps(source.nbytes, begin.elapsed_time(end) / 1e3)


def _measure_registration(lab: Lab, out: Results, target: Tensor) -> None:
    """Measure the pinning of memory that was written before, as a buffer of weights is."""
    buffer = np.empty(target.nbytes, dtype=np.uint8)
    gigabytes = buffer.nbytes / 1e9
    began = time.perf_counter()
    buffer[:] = 1
    out["first_write_seconds_per_gb"] = round((time.perf_counter() - began) / gigabytes, 3)
    runtime = torch.cuda.cudart()
    began = time.perf_counter()
    status = int(runtime.cudaHostRegister(buffer.ctypes.data, buffer.nbytes, 0))
    out["register_seconds_per_gb"] = round((time.perf_counter() - began) / gigabytes, 3)
    out["register_status"] = status
    if status:
        return
    tensor = torch.from_numpy(buffer)
    seconds = lab.wall_seconds(lambda: target.copy_(tensor, non_blocking=True), times=3)
    out["registered_gbps"] = gbps(buffer.nbytes, seconds)
    runtime.cudaHostUnregister(buffer.ctypes.data)
