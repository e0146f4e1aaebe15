"""Measurements of reading weights from a disk or from RAM, and of decoding coded ones."""

import logging
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from engine.compiled.compiler import is_available
from engine.planning.blueprint import Blueprint
from engine.planning.probe import fastest
from engine.streaming.device import Device
from engine.streaming.disk import UnitFile, read_gbps
from engine.streaming.pinned import HostBuffer
from engine.weights.coding import cells, coded, exponents
from engine.weights.formats.joined import weight_copy
from engine.weights.formats.linear import linear, store, stored_tensors
from engine.weights.shards import weight_files

log = logging.getLogger(__name__)

LEAST_CODED_BYTES = 64 << 20  # of a model whose weights may be coded: measuring takes a second
LEAST_FILE_BYTES = 64 << 20  # of a file by which a disk is measured
SHAPE = (1024, 2048)  # of the weight that is decoded
DEVICE_SHAPE = (8192, 4096)  # on a GPU, in whose cache it must not stay
COPIED_BYTES = 128 << 20


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


def uses_codes(blueprint: Blueprint) -> bool:
    """Return whether the model's weights may travel in a lossless code, and are worth measuring."""
    nbytes = sum(unit.nbytes for unit in blueprint.outlines[False].layouts)
    is_large = blueprint.dtype == torch.bfloat16 and nbytes >= LEAST_CODED_BYTES
    return is_large and blueprint.spec.stream.coding == "auto"


def decoding_gbps(blueprint: Blueprint, device: Device) -> Mapping[bool, float]:
    """Return how fast the device decodes weights, as `Machine.decoding_gbps` has it.

    It is empty if the device or the model has no use for coded weights, or if weights are decoded
    to other bits, which is logged. A normally distributed weight is coded on the CPU, by compiled
    code, and decoded on the device.
    """
    if not (uses_codes(blueprint) and is_available() and device.can_decode):
        return {}
    here, group = device.torch_device, blueprint.spec.draft.group
    shape = DEVICE_SHAPE if device.has_own_memory else SHAPE
    weight = torch.empty(shape, dtype=torch.bfloat16)
    weight.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    specs = stored_tensors("weight", (weight.dtype, shape), group, here, "int4")
    fields = {name: torch.empty(size, dtype=dtype) for name, (dtype, size) in specs.items()}
    store(weight, "weight", fields)
    codes: dict[bool, tuple[dict[str, Tensor] | None, cells.Substitute | None]] = {}
    codes[False] = exponents.encode(weight), None
    copy = cells.find_substitute(fields, "weight")
    kept = weight_copy(linear(fields, "", here))
    if copy is not None and kept is not None:
        codes[True] = (cells.encode(weight, copy), kept)
    out, found = torch.empty(shape, dtype=weight.dtype, device=here), dict[bool, float]()
    for has_copy, (code, own) in codes.items():
        if code is not None:
            moved = {name: field.to(here) for name, field in code.items()}
            run = partial(coded.decode, moved, own, out)
            run()  # the first call may compile code, or read it from the disk
            if not torch.equal(out.view(torch.int16).cpu(), weight.view(torch.int16)):
                log.error("%s decodes coded weights to other bits: they travel plain", device)
                return {}
            found[has_copy] = weight.nbytes / fastest(run, device) / 1e9
    return found


def copy_gbps(device: Device) -> float:
    """Return the speed of one large copy from RAM to the device, in 1e9 bytes a second.

    The RAM is pinned if the system allows it.
    """
    buffer = HostBuffer(COPIED_BYTES)
    buffer.pin(device.pin)
    copied = torch.empty(COPIED_BYTES, dtype=torch.uint8, device=device.torch_device)
    seconds = fastest(lambda: copied.copy_(buffer.memory, non_blocking=True), device)
    buffer.unpin()
    return COPIED_BYTES / seconds / 1e9
