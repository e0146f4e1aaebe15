'''What the ring needs of a device: slots, and the link that fills them.

A device is one file of this package, `<type>_link.py` for torch's type of device, with a function
`open_device`. This is a complete one. It copies with memcpy into ordinary memory, on one thread:

    """A device whose memory is ordinary memory."""

    from functools import partial

    import torch

    from engine.streaming.device import Device
    from engine.streaming.pinned import Slab, allocate_pages, copy_bytes
    from engine.streaming.workers import Workers


    class MemcpySlot:
        """Memory for one unit."""

        def __init__(self, link, nbytes):
            self.memory = allocate_pages(nbytes)
            self._link = link

        def read(self, unit):
            return self._link.read(unit, self.memory)

        def send(self, unit, slab):
            return self._link.copy(unit, slab.memory, self.memory)

        def release(self):
            pass  # work is never launched ahead: the block that used the slot is over


    class MemcpyLink:
        """One thread fills slots and slabs, in the order in which they were asked for."""

        def __init__(self, reader, meters):
            self._reader, self._meters = reader, meters
            self._worker = Workers("memcpy", 1)

        def slot(self, nbytes):
            return MemcpySlot(self, nbytes)

        def slab(self, unit):
            slab = Slab(self._reader.layouts[unit].nbytes)
            return slab, self.read(unit, slab.memory)

        def read(self, unit, memory):
            job = partial(self._reader.read, unit, memory)
            return self._submit(job, unit, self._meters.disk)

        def copy(self, unit, source, memory):
            nbytes = self._reader.layouts[unit].nbytes
            job = partial(copy_bytes, memory, source[:nbytes])
            return self._submit(job, unit, self._meters.ram)

        def close(self):
            self._worker.close()

        def _submit(self, job, unit, meter):
            nbytes = self._reader.layouts[unit].nbytes
            return self._worker.submit(job, around=meter.carrying(nbytes))


    class MemcpyDevice(Device):
        """What a device must say of itself; everything else has a default."""

        def open_link(self, reader, meters, readers, staged, copiers):
            return MemcpyLink(reader, meters)


    def open_device(device: torch.device) -> Device:
        return MemcpyDevice(device)
'''

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from engine.streaming.meter import Meter
from engine.streaming.pinned import Slab


@dataclass(frozen=True)
class Meters:
    """One meter for each way weights travel."""

    ram: Meter = field(default_factory=Meter)
    disk: Meter = field(default_factory=Meter)


class Arrival(Protocol):
    """A unit on its way; `concurrent.futures.Future` is one."""

    def done(self) -> bool:
        """Return whether `result` would return, or raise, at once."""

    def result(self) -> None:
        """Wait for the bytes; what the caller launches from here on sees them.

        Raises what the reader raised, or `CancelledError`. Called once, or until it stops raising.
        """

    def cancel(self) -> bool:
        """Cancel the transfer if it has not begun; return False if it has."""


class Slot(Protocol):
    """Device memory for one unit. Each fill waits for the last `release`."""

    memory: Tensor  # uint8 on the device

    def read(self, unit: int) -> Arrival:
        """Fill the slot from the reader."""

    def send(self, unit: int, slab: Slab) -> Arrival:
        """Fill the slot from RAM."""

    def release(self) -> None:
        """Mark the slot as free: what was launched so far may use it, nothing later will."""


class Link(Protocol):
    """Makes slots and moves weights into them, with threads of its own."""

    def slot(self, nbytes: int) -> Slot:
        """Allocate device memory. Raises `ModelError` when there is no room."""

    def slab(self, unit: int) -> tuple[Slab, Arrival]:
        """Allocate host memory and start to fill it with the unit, pinned where that helps."""

    def close(self) -> None:
        """Wait for transfers begun, end the threads, free staging memory. May be called again.

        Slots and slabs stay valid; slabs are unpinned by their owner.
        """
