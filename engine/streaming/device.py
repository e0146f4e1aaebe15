"""The device that computes: what the engine asks of it beyond torch's own operations.

`choose_device` finds a device by its name. The file `engine/streaming/<type>_link.py`, for torch's
type of device, is all that a new one needs, besides what its kernels need. The docstring of
`engine.streaming.link` contains a complete example.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules

import torch
from torch import Tensor

import engine.streaming
from engine.errors import ModelError
from engine.streaming.ahead_stream import Aside
from engine.streaming.link import Link, Meters
from engine.streaming.page_store import PageStore
from engine.streaming.pinned import Unpin
from engine.timing import time_runs
from engine.weights.layout import UnitReader

KERNEL_RUNS = 9
KERNEL_SECONDS = 0.1  # of timing a kernel, at most

Work = Callable[[], Tensor]
Capture = Callable[[Work], Work]  # work, and the same work replayed into the same tensor


@dataclass(frozen=True)
class OwnMemory:
    """Memory that only the device has, in bytes."""

    free: int
    runtime: int  # what the driver and the libraries hold of it


class Device:
    """A device. The defaults suit one without streams that computes in RAM.

    A subclass implements `open_link`. Its module has a function
    `open_device(torch.device) -> Device`, which raises `ModelError` when the device is not there.
    """

    # Whether calls only launch work, so that reading a result waits for the device.
    is_asynchronous = False

    def __init__(self, torch_device: torch.device) -> None:
        self.torch_device = torch_device

    def __str__(self) -> str:
        return str(self.torch_device)

    @property
    def kind(self) -> str:
        """Return the type of the device, which quantized copies in the cache depend on."""
        return self.torch_device.type

    @property
    def has_own_memory(self) -> bool:
        """Return whether the device has memory of its own beside the RAM."""
        return self.own_memory() is not None

    def open_link(
        self, reader: UnitReader, meters: Meters, readers: int, staged: Sequence[int], copiers: int
    ) -> Link:
        """Open a link that moves the units of `reader` into slots.

        Args:
            readers: threads that read from the disk.
            staged: the units that are read straight into slots, without a slab.
            copiers: threads that copy slabs which the device refused to pin; 0 if there are none.
        """
        raise NotImplementedError

    def simulating(self, gbps: float) -> "Device":
        """Return the same device behind a simulated link. Raises `ModelError` for a real link."""
        raise ModelError(
            f"stream.simulate_gbps is {gbps}, but {self} has a link of its own: "
            "remove it, or set device to cpu."
        )

    def own_memory(self) -> OwnMemory | None:
        """Return what there is of the device's own memory; None if it uses the RAM."""
        return None

    def pin(self, memory: Tensor) -> Unpin | None:
        """Pin host memory, so that the device reads it directly; None if that is refused.

        Returns the function that gives the pages back to the system's paging.
        """
        return None

    def synchronize(self) -> None:
        """Wait until everything launched so far has been computed."""

    def kernel_seconds(self, step: Callable[[], object]) -> list[float]:
        """Return the seconds of some runs of a step, without the cost of launching it."""

        def run() -> None:
            step()
            self.synchronize()

        return time_runs(run, KERNEL_RUNS, KERNEL_SECONDS)

    def page_store(self, pool: Tensor, num_places: int) -> PageStore:
        """Make a store of idle KV pages for `pool`, [2 L, pages, values of a page and layer].

        Raises `ModelError` when memory is refused.
        """
        return PageStore(pool, num_places, self.pin)

    def ahead_stream(self) -> Aside:
        """Return where drafting ahead runs, beside a pass."""
        return Aside()

    def capture(self) -> Capture | None:
        """Return what records work as a graph; None if the device has no graphs."""
        return None

    def use_compute_stream(self) -> None:
        """Compute on this thread, from now on, at a higher priority than drafting ahead."""


def choose_device(name: str | None, simulate_gbps: float | None = None) -> Device:
    """Return the device of this name; None means the first accelerator, else the CPU.

    `simulate_gbps` is the bandwidth of a simulated link. Raises `ModelError`.
    """
    device = _automatic() if name is None else _named(name)
    return device if simulate_gbps is None else device.simulating(simulate_gbps)


def _automatic() -> Device:
    for kind in sorted(_kinds() - {"cpu"}):
        with suppress(ModelError):  # it is not there
            return _named(f"{kind}:0")
    return _named("cpu")


def _named(name: str) -> Device:
    try:
        wanted = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"device: {name!r} is no device; use auto, cpu or cuda:0") from error
    if wanted.type not in _kinds():
        raise ModelError(f"device: {name!r} is not supported; use auto, cpu or cuda:0")
    device: Device = import_module(f"engine.streaming.{wanted.type}_link").open_device(wanted)
    return device


def _kinds() -> set[str]:
    """Return torch's types of the devices that have a file in this package."""
    names = [module.name for module in iter_modules(engine.streaming.__path__)]
    return {name.removesuffix("_link") for name in names if name.endswith("_link")}
