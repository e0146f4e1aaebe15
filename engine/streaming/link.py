'''What the weight stream needs of a device: slots, and the link that fills them.

A device is one file of this package, `<type>_link.py` for torch's type of device, with a function
`open_device`. This is a complete example. It copies by memcpy into ordinary memory, on one thread:

    """A device whose memory is ordinary memory."""

    from functools import partial

    import torch

    from engine.streaming.device import Device
    from engine.streaming.pinned import HostBuffer, allocate_pages, copy_bytes
    from engine.streaming.workers import Workers


    class MemcpySlot:
        """Memory for one unit."""

        def __init__(self, link, nbytes):
            self.memory = allocate_pages(nbytes)
            self._link = link

        def read(self, unit):
            return self._link.read(unit, self.memory)

        def send(self, unit, buffer):
            return self._link.copy(unit, buffer.memory, self.memory)

        def release(self):
            pass  # work is never launched ahead: the block that used the slot has ended


    class MemcpyLink:
        """A link whose only thread fills slots and host buffers in the order of the requests."""

        def __init__(self, reader, meters):
            self._reader, self._meters = reader, meters
            self._worker = Workers("memcpy", 1)

        def slot(self, nbytes):
            return MemcpySlot(self, nbytes)

        def host_buffer(self, unit):
            buffer = HostBuffer(self._reader.layouts[unit].nbytes)
            return buffer, self.read(unit, buffer.memory)

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
            return self._worker.submit(job, context=meter.time_transfer(nbytes))


    class MemcpyDevice(Device):
        """A device that implements only what has no default."""

        def open_link(self, reader, meters, num_readers, staged, sent, num_copiers):
            return MemcpyLink(reader, meters)


    def open_device(device: torch.device) -> Device:
        return MemcpyDevice(device)
'''

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from engine.streaming.meter import Meter
from engine.streaming.pinned import HostBuffer


@dataclass(frozen=True)
class Meters:
    """The meters of the two transfers of weights: RAM to device, and disk to host memory."""

    ram: Meter = field(default_factory=Meter)
    disk: Meter = field(default_factory=Meter)


class Arrival(Protocol):
    """The transfer of a unit into a slot or host buffer; `concurrent.futures.Future` is one."""

    def done(self) -> bool:
        """Return whether `result` would return or raise without waiting."""

    def result(self) -> None:
        """Wait for the bytes. Work that the caller launches afterwards sees them.

        Raise the error of the reader, or `CancelledError`. It is called once, or again after it has
        raised.
        """

    def cancel(self) -> bool:
        """Cancel the transfer if it has not begun. Return False if it has."""


class Slot(Protocol):
    """Device memory for one unit. Each transfer into it waits for the last `release`."""

    @property
    def memory(self) -> Tensor:
        """The memory, uint8 on the device. A caller that uses a coded unit may decode it here."""

    def read(self, unit: int) -> Arrival:
        """Start to fill the slot with a unit from the reader.

        Here and in `send`, a unit that the reader calls coded is decoded into the slot. Only
        devices whose `can_decode` is true are given such units.
        """

    def send(self, unit: int, buffer: HostBuffer) -> Arrival:
        """Start to fill the slot with a unit from the RAM in `buffer`."""

    def release(self) -> None:
        """Mark the slot as free. Only work that was launched before may still use it."""


class Link(Protocol):
    """An allocator of slots and host buffers that fills them with threads of its own."""

    def slot(self, nbytes: int) -> Slot:
        """Allocate device memory. Raises `ModelError` when there is too little."""

    def host_buffer(self, unit: int) -> tuple[HostBuffer, Arrival]:
        """Allocate host memory, pinned where that helps, and start to fill it with the unit."""

    def close(self) -> None:
        """Wait for running transfers, end the threads, free staging memory. May be called again.

        Slots and host buffers stay valid; the owner of a host buffer unpins it.
        """
