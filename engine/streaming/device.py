"""The device that computes: what the engine needs of it beyond torch's own operations.

`choose_device` finds a device by its name. A new device needs only the file
`engine/streaming/<type>_link.py`, named after torch's type of the device, and its kernels. The
docstring of `engine.streaming.link` contains a complete example.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules

import torch
from torch import Tensor

import engine.streaming
from engine.errors import ModelError
from engine.streaming.idle import HostMoment, Moment
from engine.streaming.link import Link, Meters
from engine.streaming.page_store import PageStore
from engine.streaming.pinned import Unpin
from engine.streaming.side_stream import SideStream
from engine.weights.layout import UnitReader

log = logging.getLogger(__name__)

Work = Callable[[], Tensor]
Capture = Callable[[Work], Work]  # returns a function that replays the work


class DeviceMissing(ModelError):
    """This machine does not have the device, so `auto` passes over it without a warning."""


@dataclass(frozen=True)
class OwnMemory:
    """Sizes of a device's own memory, in bytes."""

    free: int
    runtime: int  # what the driver and the libraries use
    stream_workspace: int = 0  # what libraries keep for each stream that computes
    held: int = 0  # what this process has taken for tensors, freed ones that it keeps included


class Device:
    """A device. The defaults suit one that computes in RAM and has no streams.

    A subclass implements `open_link`. Its module has a function
    `open_device(torch.device) -> Device`, which raises `DeviceMissing` if the machine does not have
    the device, and `ModelError` if it is there and cannot be used.
    """

    # Whether calls only launch work, so that the host waits when it reads a result.
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
    def arithmetic(self) -> str:
        """Return what decides how the device rounds: its model, or its set of instructions."""
        return self.kind

    @property
    def can_decode(self) -> bool:
        """Return whether its link decodes coded units into slots (`UnitReader.decode`)."""
        return False

    @property
    def has_own_memory(self) -> bool:
        """Return whether the device has memory of its own beside the RAM."""
        return self.own_memory() is not None

    def open_link(
        self,
        reader: UnitReader,
        meters: Meters,
        num_readers: int,
        staged: Sequence[int],
        sent: Sequence[int],
        num_copiers: int,
    ) -> Link:
        """Open a link that moves the units of `reader` into slots.

        Args:
            num_readers: the number of threads that read from the disk.
            staged: the units that are read into slots, not into host buffers.
            sent: the units that are sent to slots from host buffers.
            num_copiers: the number of threads that copy host buffers which the device refused to
                pin; 0 if there are none.
        """
        raise NotImplementedError

    def with_simulated_link(self, gbps: float) -> "Device":
        """Return the same device with a link of this simulated bandwidth.

        Raises `ModelError` if the device has a real link.
        """
        raise ModelError(
            f"stream.simulate_gbps is {gbps}, but {self} has a link of its own: "
            "remove it, or set device to cpu."
        )

    def own_memory(self) -> OwnMemory | None:
        """Return the sizes of the device's own memory; None if it computes in RAM."""
        return None

    def give_back_freed(self) -> None:
        """Give the memory that the allocator keeps of freed tensors back to the driver."""

    def pin(self, memory: Tensor) -> Unpin | None:
        """Pin host memory, so that the device can read it directly.

        Return the function that unpins it, or None if the system refuses to pin the memory.
        """
        return None

    def synchronize(self) -> None:
        """Wait until all work launched so far has been computed."""

    def moment(self) -> Moment:
        """Return the present moment in the work that the calling thread launches."""
        return HostMoment()

    def page_store(self, pool: Tensor, num_places: int) -> PageStore:
        """Make a store of idle KV pages for `pool`, [2 L, pages, values of a page and layer].

        Raises `ModelError` when memory is refused.
        """
        return PageStore(pool, num_places, self.pin)

    def side_stream(self) -> SideStream:
        """Return the stream on which drafting ahead runs beside a pass."""
        return SideStream()

    def capture(self) -> Capture | None:
        """Return the function that captures work as a graph; None if the device has no graphs."""
        return None

    def use_compute_stream(self) -> None:
        """Make this thread compute, from now on, at a higher priority than drafting ahead."""


def choose_device(name: str | None, simulate_gbps: float | None = None) -> Device:
    """Return the device of this name, or the first accelerator, else the CPU, if it is None.

    An accelerator that is there and cannot be used is logged with the reason before the CPU is
    returned. `simulate_gbps` is the bandwidth of a simulated link. Raises `ModelError` if the named
    device does not exist, cannot be used, or is not supported, or if the device has a link that
    cannot be simulated.
    """
    device = _automatic() if name is None else _named(name)
    return device if simulate_gbps is None else device.with_simulated_link(simulate_gbps)


def _automatic() -> Device:
    for kind in sorted(_kinds() - {"cpu"}):
        try:
            return _named(f"{kind}:0")
        except DeviceMissing:
            continue
        except ModelError as error:
            log.warning(
                "%s. The CPU is used instead, which is slower: write `device: cpu` in the model's "
                "file if that is meant.",
                error,
            )
    return _named("cpu")


def _named(name: str) -> Device:
    try:
        wanted = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"device: {name!r} is not a device; use auto, cpu or cuda:0") from error
    if wanted.type not in _kinds():
        raise ModelError(f"device: {name!r} is not supported; use auto, cpu or cuda:0")
    device: Device = import_module(f"engine.streaming.{wanted.type}_link").open_device(wanted)
    return device


def _kinds() -> set[str]:
    """Return torch's types of the devices that have a file in this package."""
    names = [module.name for module in iter_modules(engine.streaming.__path__)]
    return {name.removesuffix("_link") for name in names if name.endswith("_link")}
