"""Host memory for weights and idle KV: whole pages, which a device may pin and copy fast."""

import ctypes
import mmap
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.weights.layout import PAGE_BYTES, round_up

Unpin = Callable[[], None]  # gives pinned pages back to the system's paging
Pin = Callable[[Tensor], Unpin | None]  # pins memory; None where that is refused


def allocate_pages(nbytes: int, purpose: str = "weights") -> Tensor:
    """Allocate zeroed, page-aligned uint8 memory of at least one page, in huge pages if possible.

    Raises `ModelError`, which names the `purpose`, when the system refuses it.
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
        with suppress(OSError):  # a kernel built without huge pages serves small ones
            pages.madvise(mmap.MADV_HUGEPAGE)
    with torch.inference_mode(False):  # other threads write into it outside of inference mode
        return torch.frombuffer(pages, dtype=torch.uint8)


def copy_bytes(destination: Tensor, source: Tensor) -> None:
    """Copy all of `source` to the start of `destination`, both contiguous host memory.

    One thread and no lock of the interpreter: `Tensor.copy_` would start a team of OpenMP threads
    beside the ones that compute.
    """
    assert source.nbytes <= destination.nbytes
    ctypes.memmove(destination.data_ptr(), source.data_ptr(), source.nbytes)


class Slab:
    """Host memory of one unit, a staging buffer or idle KV; a device may pin it."""

    def __init__(self, nbytes: int, purpose: str = "weights") -> None:
        self.memory = allocate_pages(nbytes, purpose)
        self._unpin: Unpin | None = None

    @property
    def is_pinned(self) -> bool:
        return self._unpin is not None

    def pin(self, pin: Pin) -> bool:
        """Pin the memory by a device's `pin`; return False if that is refused."""
        self._unpin = pin(self.memory)
        return self.is_pinned

    def unpin(self) -> None:
        """Give the pages back to the system's paging; no copy may be under way."""
        if self._unpin is not None:
            self._unpin()
            self._unpin = None
