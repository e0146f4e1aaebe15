"""Small copies between host and device that do not make the host wait.

A copy of ordinary memory to a CUDA device may wait for the stream, and one to the host always does.
Pinned memory is copied by the device itself, later and in the order of the stream; torch keeps it
for the next copy.
"""

# mypy: disallow-untyped-calls=False
# torch.cuda declares no types for events.

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

ALIGNED = 256  # bytes: as the device's allocator aligns tensors


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on a device. Work launched from now on sees its values.

    On a CPU it is the tensor itself.
    """
    if device.type == "cpu":
        return values
    return values.pin_memory().to(device, non_blocking=True)


def upload_all(values: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Return tensors of the host on a device, moved by one copy, as `upload` moves one.

    Beside large copies each further one would wait its turn, and cost the host a launch.
    """
    if device.type == "cpu":
        return list(values)
    ends = list(accumulate(-(-own.nbytes // ALIGNED) * ALIGNED for own in values))
    staged = torch.empty(ends[-1] if ends else 0, dtype=torch.uint8, pin_memory=True)
    for view, own in zip(_views(staged, values, ends), values, strict=True):
        view.copy_(own)
    return list(_views(staged.to(device, non_blocking=True), values, ends))


def _views(memory: Tensor, values: Sequence[Tensor], ends: Sequence[int]) -> Iterator[Tensor]:
    """Yield the places in `memory` of tensors like `values`, whose bytes end before `ends`."""
    for own, first in zip(values, (0, *ends), strict=False):
        yield memory[first : first + own.nbytes].view(own.dtype).view(own.shape)


class Download:
    """A copy of a tensor to the host that has been launched on the current stream."""

    def __init__(self, values: Tensor) -> None:
        self._host = values
        self._copied: torch.cuda.Event | None = None
        if values.device.type != "cpu":
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def result(self) -> Tensor:
        """Return the copy. Wait for it, if the device has not got that far."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._host
