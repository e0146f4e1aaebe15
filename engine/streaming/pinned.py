"""Host memory for weights and idle KV pages, in whole pages, so that a device can pin it."""

import ctypes
import mmap
from collections.abc import Callable, Collection
from contextlib import suppress

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.weights.layout import PAGE_BYTES, round_up

Unpin = Callable[[], None]  # unpins memory
Pin = Callable[[Tensor], Unpin | None]  # pins memory; returns None if the system refuses that


def allocate_pages(nbytes: int, purpose: str = "weights") -> Tensor:
    """Return zeroed, page-aligned uint8 memory of at least one page, in huge pages if possible.

    Raises `ModelError`, which names the `purpose`, if the system refuses the memory.
    """
    length = round_up(max(nbytes, 1), PAGE_BYTES)
    try:
        pages = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise ModelError(
            f"The system refused {length / 2**20:.0f} MiB of host memory for {purpose} ({error}). "
            "Lower memory.ram, or set stream.tier to disk."
        ) from error
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux; halves the cost of the first touch
        with suppress(OSError):  # a kernel without huge pages uses small ones
            pages.madvise(mmap.MADV_HUGEPAGE)
    with torch.inference_mode(False):  # other threads write to it outside of inference mode
        return torch.frombuffer(pages, dtype=torch.uint8)


def copy_bytes(destination: Tensor, source: Tensor) -> None:
    """Copy all of `source` to the start of `destination`, both contiguous host memory.

    It uses one thread and releases the interpreter's lock. `Tensor.copy_` would start OpenMP
    threads, which compete with the ones that compute.
    """
    assert source.nbytes <= destination.nbytes
    ctypes.memmove(destination.data_ptr(), source.data_ptr(), source.nbytes)


class HostBuffer:
    """Host memory that a device may pin: for one unit, for staging, or for idle KV pages."""

    def __init__(self, nbytes: int, purpose: str = "weights") -> None:
        self.memory = allocate_pages(nbytes, purpose)
        self._unpin: Unpin | None = None

    @property
    def is_pinned(self) -> bool:
        """Whether the memory is pinned now."""
        return self._unpin is not None

    def pin(self, pin: Pin) -> bool:
        """Pin the memory by a device's function `pin`. Return False if the system refuses that."""
        self._unpin = pin(self.memory)
        return self.is_pinned

    def unpin(self) -> None:
        """Unpin the memory if it is pinned. No copy may be running."""
        if self._unpin is not None:
            self._unpin()
            self._unpin = None


def unpin_for_staging(buffers: Collection[HostBuffer]) -> bool:
    """Return whether some of these buffers could not be pinned.

    If so, unpin another one, so that staging buffers can be pinned.
    """
    pinned = [buffer for buffer in buffers if buffer.is_pinned]
    refused = len(pinned) < len(buffers)
    if refused and pinned:
        pinned[-1].unpin()
    return refused
