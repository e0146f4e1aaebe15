"""Measurements of reading weights from a disk, and of decoding coded ones."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from engine.compiled.compiler import is_available
from engine.planning.blueprint import Blueprint
from engine.planning.probe import RUNS
from engine.streaming.device import Device
from engine.streaming.disk import UnitFile, read_gbps
from engine.timing import time_runs
from engine.weights.coding import cells, coded, exponents
from engine.weights.formats.joined import weight_copy
from engine.weights.formats.linear import linear, store, stored_tensors
from engine.weights.shards import weight_files

LEAST_CODED_BYTES = 64 << 20  # of a model whose weights may be coded: measuring takes a second
LEAST_FILE_BYTES = 64 << 20  # of a file by which a disk is measured
SHAPE = (1024, 2048)  # of the weight that is decoded
GROUP = 32  # weights that share a scale


def disk_gbps(blueprint: Blueprint) -> float | None:
    """Return the measured speed of reading the checkpoint, in 1e9 bytes a second.

    Return None if it is not there, or small.
    """
    files = [path.resolve() for path in weight_files(blueprint.folder)]
    largest = max(files, key=lambda path: path.stat().st_size, default=None)
    if largest is None or largest.stat().st_size < LEAST_FILE_BYTES:
        return None
    file = UnitFile(largest)
    try:
        return read_gbps(file)
    finally:
        file.close()


def decoding_gbps(blueprint: Blueprint, device: Device) -> Mapping[bool, float]:
    """Return how fast the device decodes weights, as `Machine.decoding_gbps` has it.

    It is empty if the device or the model has no use for coded weights. A normally distributed
    weight is coded and decoded.
    """
    spec, nbytes = blueprint.spec, sum(unit.nbytes for unit in blueprint.outlines[False].layouts)
    is_useful = blueprint.dtype == torch.bfloat16 and nbytes >= LEAST_CODED_BYTES
    can_decode = spec.stream.coding == "auto" and device.can_decode and is_available()
    if not (is_useful and can_decode):
        return {}
    weight = torch.empty(SHAPE, dtype=torch.bfloat16)
    weight.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    out, found = torch.empty_like(weight), dict[bool, float]()
    specs = stored_tensors("weight", (weight.dtype, SHAPE), GROUP, device.torch_device, "int4")
    fields = {name: torch.empty(shape, dtype=dtype) for name, (dtype, shape) in specs.items()}
    store(weight, "weight", fields)
    codes: dict[bool, tuple[dict[str, Tensor] | None, cells.Substitute | None]] = {}
    codes[False] = exponents.encode(weight), None
    copy = cells.find_substitute(fields, "weight")
    kept = weight_copy(linear(fields, "", device.torch_device))
    if copy is not None and kept is not None:
        codes[True] = (cells.encode(weight, copy), kept)
    for has_copy, (code, own) in codes.items():
        if code is not None:
            # At the first calls, pages of the code may have to be read from the disk.
            seconds = min(time_runs(partial(coded.decode, code, own, out), RUNS))
            found[has_copy] = weight.nbytes / seconds / 1e9
    return found
