"""Small copies between host and device that do not make the host wait.

A copy of ordinary memory to a CUDA device may wait for the stream, and one to the host always does.
Pinned memory is copied by the device itself, later and in the order of the stream; torch keeps it
for the next copy.
"""

# mypy: disallow-untyped-calls=False
# torch.cuda declares no types for events.

import torch
from torch import Tensor


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on a device. Work launched from now on sees its values.

    On a CPU it is the tensor itself.
    """
    if device.type == "cpu":
        return values
    return values.pin_memory().to(device, non_blocking=True)


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
