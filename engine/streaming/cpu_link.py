"""The device of `device: cpu`: its slots are ordinary memory, filled from the disk or from RAM.

A copy from RAM may be slowed down to a simulated bandwidth.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue

import torch
from torch import Tensor

from engine.streaming.coded import CODED_STAGING
from engine.streaming.device import Device
from engine.streaming.link import Arrival, Meters
from engine.streaming.meter import Meter
from engine.streaming.pinned import HostBuffer, allocate_pages, copy_bytes
from engine.streaming.workers import JobBatch, Workers
from engine.weights.layout import UnitReader


class CpuDevice(Device):
    """The CPU. `simulate_gbps` is the bandwidth of a simulated link between RAM and slots."""

    def __init__(
        self, torch_device: torch.device | None = None, simulate_gbps: float | None = None
    ) -> None:
        super().__init__(torch_device or torch.device("cpu"))
        self._simulate_gbps = simulate_gbps

    @property
    def can_decode(self) -> bool:
        return True

    @property
    def arithmetic(self) -> str:
        return f"{self.kind} {torch.backends.cpu.get_cpu_capability()}"

    def with_simulated_link(self, gbps: float) -> "CpuDevice":
        return CpuDevice(self.torch_device, gbps)

    def open_link(
        self,
        reader: UnitReader,
        meters: Meters,
        num_readers: int,
        staged: Sequence[int],
        sent: Sequence[int],
        num_copiers: int,
    ) -> "CpuLink":
        return CpuLink(reader, meters, num_readers, staged, self._simulate_gbps)


def open_device(device: torch.device) -> CpuDevice:
    """Return the CPU as a device."""
    return CpuDevice(device)


class CpuLink:
    """A link whose threads read into slots directly; one more thread copies from RAM, in order.

    Coded units are read into staging buffers. The thread that ends the last read decodes the unit
    into its slot, while the others read the next one.
    """

    def __init__(
        self,
        reader: UnitReader,
        meters: Meters,
        num_readers: int,
        staged: Sequence[int],
        simulate_gbps: float | None,
    ) -> None:
        self._reader = reader
        self._meters = meters
        self._simulated = (
            None if simulate_gbps is None else SimulatedLink(simulate_gbps, meters.ram)
        )
        self._readers = Workers("weights-read", num_readers)
        self._copier = Workers("weights-copy", 1)
        coded = [reader.layouts[unit].nbytes for unit in staged if reader.is_coded(unit)]
        self._staging: SimpleQueue[Tensor] = SimpleQueue()
        for _ in range(CODED_STAGING if coded else 0):
            self._staging.put(allocate_pages(max(coded)))

    def slot(self, nbytes: int) -> "CpuSlot":
        """Allocate a slot. Raises `ModelError` if the system refuses the memory."""
        return CpuSlot(self, allocate_pages(nbytes))

    def host_buffer(self, unit: int) -> tuple[HostBuffer, Arrival]:
        buffer = HostBuffer(self._nbytes(unit))
        return buffer, self.read(unit, buffer.memory)

    def read_slot(self, unit: int, memory: Tensor) -> JobBatch:
        """Start to fill a slot from the reader, and to decode the unit if it is coded."""
        if not self._reader.is_coded(unit):
            return self.read(unit, memory)
        pieces = self._reader.pieces(unit)
        load = _CodedLoad(self._reader, unit, memory, len(pieces))
        context = self._stage(load, self._nbytes(unit))
        return self._readers.submit(*(partial(load.read, own) for own in pieces), context=context)

    def read(self, unit: int, memory: Tensor) -> JobBatch:
        """Start to fill `memory` from the reader, in pieces that threads take in order."""
        pieces = {p: memory[p.start : p.stop] for p in self._reader.pieces(unit)}
        jobs = [partial(self._reader.read_piece, unit, *piece) for piece in pieces.items()]
        return self._readers.submit(
            *jobs, context=self._meters.disk.time_transfer(self._nbytes(unit))
        )

    def send(self, unit: int, source: Tensor, memory: Tensor) -> JobBatch:
        """Start to copy or decode a unit from `source` to a slot, no faster than the link."""
        nbytes, meter = self._nbytes(unit), self._meters.ram
        if self._reader.is_coded(unit):
            copy = partial(self._reader.decode, unit, source[:nbytes], memory)
        else:
            copy = partial(copy_bytes, memory[:nbytes], source[:nbytes])
        if self._simulated is None:
            return self._copier.submit(copy, context=meter.time_transfer(nbytes))
        return self._copier.submit(partial(self._simulated.carry, nbytes, meter.clock(), copy))

    def close(self) -> None:
        self._readers.close()
        self._copier.close()

    @contextmanager
    def _stage(self, load: "_CodedLoad", nbytes: int) -> Iterator[None]:
        """Enter a block that reads `nbytes` into a staging buffer, and decodes them."""
        staging = self._staging.get()
        load.begin(staging)
        try:
            with self._meters.disk.time_transfer(nbytes):
                yield
        finally:
            self._staging.put(staging)

    def _nbytes(self, unit: int) -> int:
        return self._reader.layouts[unit].nbytes


class _CodedLoad:
    """A coded unit on its way into a slot, through a staging buffer."""

    def __init__(self, reader: UnitReader, unit: int, slot: Tensor, num_pieces: int) -> None:
        self._staging: Tensor
        self._reader = reader
        self._unit = unit
        self._slot = slot
        self._lock = threading.Lock()
        self._left = num_pieces  # pieces that have not arrived

    def begin(self, staging: Tensor) -> None:
        """Let the unit be read into this buffer."""
        self._staging = staging

    def read(self, piece: range) -> None:
        """Read a piece. Decode the unit after the last one."""
        self._reader.read_piece(self._unit, piece, self._staging[piece.start : piece.stop])
        with self._lock:
            self._left -= 1
            is_complete = self._left == 0
        if is_complete:
            self._reader.decode(self._unit, self._staging, self._slot)


class CpuSlot:
    """A slot in host memory.

    It is filled again only after the block that used it has ended, so no transfer has to wait.
    """

    def __init__(self, link: CpuLink, memory: Tensor) -> None:
        self.memory = memory
        self._link = link

    def read(self, unit: int) -> Arrival:
        return self._link.read_slot(unit, self.memory)

    def send(self, unit: int, buffer: HostBuffer) -> Arrival:
        return self._link.send(unit, buffer.memory, self.memory)

    def release(self) -> None:
        pass


class SimulatedLink:
    """A simulated link of `gbps` gigabytes (1e9) per second, which carries one transfer at a time.

    A transfer starts when it was requested or the link became free, and lasts as long as its bytes
    need at the bandwidth. The next one starts at this computed end, not when the sleep returned, so
    the bandwidth is met on average. It is never exceeded.
    """

    def __init__(
        self, gbps: float, meter: Meter, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        assert gbps > 0, f"a link of {gbps} GB/s carries nothing"
        self._seconds_per_byte = 1 / (gbps * 1e9)
        self._meter = meter
        self._sleep = sleep
        self._free_at = 0.0

    def carry(self, nbytes: int, requested_at: float, copy: Callable[[], None]) -> None:
        """Run `copy`, which moves `nbytes`, and return when the link would have carried them.

        `requested_at` is the time of the meter's clock at which the transfer could have begun.
        """
        clock = self._meter.clock
        start = max(requested_at, self._free_at)
        self._meter.begin(start)
        copy()
        self._free_at = max(start + nbytes * self._seconds_per_byte, clock())
        while (left := self._free_at - clock()) > 0:
            self._sleep(left)
        self._meter.end(self._free_at, nbytes)
