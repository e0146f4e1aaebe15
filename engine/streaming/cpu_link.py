"""`device: cpu`: slots are ordinary memory, filled from the disk or, at a simulated speed, RAM."""

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from engine.streaming.device import Device
from engine.streaming.link import Arrival, Meters
from engine.streaming.meter import Meter
from engine.streaming.pinned import Slab, allocate_pages, copy_bytes
from engine.streaming.workers import Batch, Workers
from engine.weights.layout import UnitReader


class CpuDevice(Device):
    """The CPU. `simulate_gbps` is the bandwidth of a simulated link between RAM and slots."""

    def __init__(
        self, torch_device: torch.device | None = None, simulate_gbps: float | None = None
    ) -> None:
        super().__init__(torch_device or torch.device("cpu"))
        self._simulate_gbps = simulate_gbps

    def simulating(self, gbps: float) -> "CpuDevice":
        return CpuDevice(self.torch_device, gbps)

    def open_link(
        self, reader: UnitReader, meters: Meters, readers: int, staged: Sequence[int], copiers: int
    ) -> "CpuLink":
        return CpuLink(reader, meters, readers, self._simulate_gbps)


def open_device(device: torch.device) -> CpuDevice:
    return CpuDevice(device)


class CpuLink:
    """Readers fill slots straight from the disk; one thread copies from RAM, in order."""

    def __init__(
        self, reader: UnitReader, meters: Meters, readers: int, simulate_gbps: float | None
    ) -> None:
        self._reader = reader
        self._meters = meters
        self._simulated = (
            None if simulate_gbps is None else SimulatedLink(simulate_gbps, meters.ram)
        )
        self._readers = Workers("weights-read", readers)
        self._copier = Workers("weights-copy", 1)

    def slot(self, nbytes: int) -> "CpuSlot":
        return CpuSlot(self, allocate_pages(nbytes))

    def slab(self, unit: int) -> tuple[Slab, Arrival]:
        slab = Slab(self._nbytes(unit))
        return slab, self.read(unit, slab.memory)

    def read(self, unit: int, memory: Tensor) -> Batch:
        """Fill `memory` from the reader, in pieces that threads take in order."""
        pieces = {p: memory[p.start : p.stop] for p in self._reader.pieces(unit)}
        jobs = [partial(self._reader.read_piece, unit, *piece) for piece in pieces.items()]
        return self._readers.submit(*jobs, around=self._meters.disk.carrying(self._nbytes(unit)))

    def send(self, unit: int, source: Tensor, memory: Tensor) -> Batch:
        """Fill `memory` from a slab, no faster than the simulated link."""
        nbytes, meter = self._nbytes(unit), self._meters.ram
        copy = partial(copy_bytes, memory[:nbytes], source[:nbytes])
        if self._simulated is None:
            return self._copier.submit(copy, around=meter.carrying(nbytes))
        return self._copier.submit(partial(self._simulated.carry, nbytes, meter.clock(), copy))

    def close(self) -> None:
        self._readers.close()
        self._copier.close()

    def _nbytes(self, unit: int) -> int:
        return self._reader.layouts[unit].nbytes


class CpuSlot:
    """A slot of host memory. Fills are started after the block that used it: none has to wait."""

    def __init__(self, link: CpuLink, memory: Tensor) -> None:
        self.memory = memory
        self._link = link

    def read(self, unit: int) -> Arrival:
        return self._link.read(unit, self.memory)

    def send(self, unit: int, slab: Slab) -> Arrival:
        return self._link.send(unit, slab.memory, self.memory)

    def release(self) -> None:
        pass


class SimulatedLink:
    """RAM behind a link of `gbps` gigabytes (1e9) a second. Carries one transfer at a time.

    A transfer takes its bytes over the bandwidth from when it was asked for or the link became
    free. The next one starts from that computed end, not from when the sleep returned, so the
    bandwidth is met on average; it is never exceeded.
    """

    def __init__(
        self, gbps: float, meter: Meter, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        assert gbps > 0, f"a link of {gbps} GB/s carries nothing"
        self._seconds_per_byte = 1 / (gbps * 1e9)
        self._meter = meter
        self._sleep = sleep
        self._free_at = 0.0

    def carry(self, nbytes: int, asked: float, copy: Callable[[], None]) -> None:
        """Run `copy`, which moves `nbytes`, and return when the link would have carried them.

        `asked` is the time of the meter's clock at which the transfer could have begun.
        """
        clock = self._meter.clock
        start = max(asked, self._free_at)
        self._meter.begin(start)
        copy()
        self._free_at = max(start + nbytes * self._seconds_per_byte, clock())
        while (left := self._free_at - clock()) > 0:
            self._sleep(left)
        self._meter.end(self._free_at, nbytes)
