"""Host memory for weights and idle KV: whole pages, which CUDA may pin and copy at full speed."""

# mypy: disallow-untyped-calls=False
# torch.cuda declares no types for streams, events and cudart.

import ctypes
import mmap
import threading
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.weights.layout import PAGE_BYTES, round_up

_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every device's context
_SUCCESS = 0


def allocate_pages(nbytes: int, purpose: str = "weights") -> Tensor:
    """Zeroed uint8 memory of at least one page, page-aligned, in huge pages where there are any.

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
    """Host memory of one unit, a staging buffer or idle KV; `pinned` once `pin` succeeded."""

    def __init__(self, nbytes: int, purpose: str = "weights") -> None:
        self.memory = allocate_pages(nbytes, purpose)
        self.pinned = False

    def pin(self, device: torch.device) -> bool:
        """Pin the memory, so that `device` reads it directly; False if the system refuses.

        torch's own pinned allocator rounds sizes up to powers of two, hence `cudaHostRegister`.
        """
        cudart = torch.cuda.cudart()
        address, nbytes = self.memory.data_ptr(), self.memory.nbytes
        code = _call(device, lambda: int(cudart.cudaHostRegister(address, nbytes, _PORTABLE)))
        self.pinned = code == _SUCCESS
        return self.pinned

    def unpin(self, device: torch.device) -> None:
        """Give the pages back to the system's paging; no copy may be under way."""
        if self.pinned:
            cudart, address = torch.cuda.cudart(), self.memory.data_ptr()
            code = _call(device, lambda: int(cudart.cudaHostUnregister(address)))
            assert code == _SUCCESS, f"cudaHostUnregister failed with CUDA error {code}"
            self.pinned = False


def _call(device: torch.device, function: Callable[[], int]) -> int:
    """The CUDA error code of a call made on a thread of its own.

    CUDA remembers a refused call per thread and torch would raise it at that thread's next kernel
    launch, whatever that is; a thread that ends takes it away.
    """
    codes: list[int] = []

    def run() -> None:
        with torch.cuda.device(device):
            codes.append(function())

    thread = threading.Thread(target=run, name="weights-pin", daemon=True)
    thread.start()
    thread.join()
    assert codes, "the CUDA call raised instead of returning its error code"
    return codes[0]
