"""The device of `device: cpu`: its slots are ordinary memory, filled from the disk or from RAM.

A copy from RAM may be slowed down to a simulated bandwidth.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from functools import partial

import torch
from torch import Tensor

from engine.streaming.device import Device
from engine.streaming.link import Arrival, Meters
from engine.streaming.meter import Meter
from engine.streaming.pinned import HostBuffer, allocate_pages, copy_bytes
from engine.streaming.slots import num_coded_buffers
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

    Coded units are read into staging buffers, in the order of the requests, and decoded by the
    thread that uses them. Other threads would take turns with it on the same cores, and both would
    take longer than one after the other. So slots ahead of the units in use need no memory of
    their own.
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
        coded = [self._nbytes(unit) for unit in staged if self.is_coded(unit)]
        self._staging_bytes = max(coded, default=0)
        self._has_coded = any(map(self.is_coded, range(len(reader.layouts))))
        self._num_slots = 0
        self._num_staging = 0
        self._staging: list[Tensor] = []  # buffers that are free
        self._waiting: deque[_CodedRead] = deque()  # for a buffer
        self._decoded: dict[int, list[Tensor]] = {}  # free memory for decoded units, by its size

    def slot(self, nbytes: int) -> "CpuSlot":
        """Allocate a slot. Raises `ModelError` if the system refuses the memory."""
        self._num_slots += 1
        wanted = num_coded_buffers(self._num_slots) if self._staging_bytes else 0
        for _ in range(wanted - self._num_staging):
            self._staging.append(allocate_pages(self._staging_bytes))
        self._num_staging = wanted
        return CpuSlot(self, nbytes, None if self._has_coded else allocate_pages(nbytes))

    def host_buffer(self, unit: int) -> tuple[HostBuffer, Arrival]:
        buffer = HostBuffer(self._nbytes(unit))
        return buffer, self.read(unit, buffer.memory)

    def is_coded(self, unit: int) -> bool:
        return self._reader.is_coded(unit)

    def read(self, unit: int, memory: Tensor) -> JobBatch:
        """Start to fill `memory` from the reader, in pieces that threads take in order."""
        pieces = {p: memory[p.start : p.stop] for p in self._reader.pieces(unit)}
        jobs = [partial(self._reader.read_piece, unit, *piece) for piece in pieces.items()]
        return self._readers.submit(
            *jobs, context=self._meters.disk.time_transfer(self._nbytes(unit))
        )

    def read_coded(self, unit: int) -> "_CodedRead":
        """Start to read a coded unit as soon as there is a staging buffer."""
        read = _CodedRead(self, unit)
        self._waiting.append(read)
        self._start_waiting()
        return read

    def send(self, unit: int, source: Tensor, memory: Tensor | None) -> JobBatch:
        """Start to copy a unit from `source` to a slot, no faster than the link.

        Args:
            memory: of the slot; None: the unit is coded, and will be decoded from `source`.
        """
        nbytes, meter = self._nbytes(unit), self._meters.ram
        copy = _do_nothing
        if memory is not None:
            copy = partial(copy_bytes, memory[:nbytes], source[:nbytes])
        if self._simulated is None:
            return self._copier.submit(copy, context=meter.time_transfer(nbytes))
        return self._copier.submit(partial(self._simulated.carry, nbytes, meter.clock(), copy))

    def decode(self, unit: int, memory: Tensor, slot: Tensor) -> None:
        """Decode a unit into a slot."""
        self._reader.decode(unit, memory[: self._nbytes(unit)], slot)

    def take_memory(self, nbytes: int) -> Tensor:
        """Return memory for a unit in use. There is some for each unit that is used at a time."""
        free = self._decoded.setdefault(nbytes, [])
        return free.pop() if free else allocate_pages(nbytes)

    def give_memory(self, memory: Tensor) -> None:
        """Take back what `take_memory` returned."""
        self._decoded[len(memory)].append(memory)

    def give_staging(self, buffer: Tensor) -> None:
        """Take back a staging buffer, and read the next unit that waits for one into it."""
        self._staging.append(buffer)
        self._start_waiting()

    def drop(self, read: "_CodedRead") -> bool:
        """Remove a read that waits for a buffer. Return False if it has begun."""
        if read not in self._waiting:
            return False
        self._waiting.remove(read)
        return True

    def close(self) -> None:
        self._readers.close()
        self._copier.close()

    def _start_waiting(self) -> None:
        while self._waiting and self._staging:
            self._waiting.popleft().begin(self._staging.pop())

    def _nbytes(self, unit: int) -> int:
        return self._reader.layouts[unit].nbytes


def _do_nothing() -> None:
    """Stand for the copy of a unit that is decoded where it lies."""


class _CodedRead:
    """The read of a coded unit into a staging buffer. One thread calls all methods."""

    def __init__(self, link: CpuLink, unit: int) -> None:
        self._link = link
        self._unit = unit
        self._buffer: Tensor | None = None
        self._batch: JobBatch | None = None  # None: it waits for a buffer, or was cancelled then
        self._is_cancelled = False

    def begin(self, buffer: Tensor) -> None:
        """Start to read into this buffer."""
        self._buffer = buffer
        self._batch = self._link.read(self._unit, buffer)

    def done(self) -> bool:
        return self._batch is not None and self._batch.done()

    def result(self) -> None:
        if self._batch is None:  # units are used in order, so those before it have been given back
            raise CancelledError
        try:
            self._batch.result()
        finally:
            if self._is_cancelled:  # nothing asks for the unit any more
                self._give_back()

    def cancel(self) -> bool:
        self._is_cancelled = True
        return self._link.drop(self) if self._batch is None else self._batch.cancel()

    def decode(self, slot: Tensor) -> None:
        """Decode the unit, which has arrived, and give the buffer back."""
        assert self._buffer is not None, "the unit has not arrived"
        self._link.decode(self._unit, self._buffer, slot)
        self._give_back()

    def _give_back(self) -> None:
        """Give the staging buffer back, if it is still held. No thread writes to it."""
        if self._buffer is not None:
            buffer, self._buffer = self._buffer, None
            self._link.give_staging(buffer)


class CpuSlot:
    """A slot in host memory.

    It is filled again only after the block that used it has ended, so no transfer has to wait. A
    coded unit is decoded when its memory is first asked for.

    Args:
        memory: of the slot; None: it is taken from the link while the slot is in use.
    """

    def __init__(self, link: CpuLink, nbytes: int, memory: Tensor | None) -> None:
        self._link = link
        self._nbytes = nbytes
        self._own = memory
        self._taken: Tensor | None = None
        self._read: _CodedRead | None = None  # of a unit that is not decoded yet
        self._sent: tuple[int, Tensor] | None = None  # such a unit, and its bytes in RAM

    @property
    def memory(self) -> Tensor:
        """The memory with the unit that has arrived."""
        memory = self._memory()
        if self._read is not None:
            self._read.decode(memory)
        elif self._sent is not None:
            self._link.decode(*self._sent, memory)
        self._read = self._sent = None
        return memory

    def read(self, unit: int) -> Arrival:
        self._read = self._sent = None
        if not self._link.is_coded(unit):
            return self._link.read(unit, self._memory())
        self._read = self._link.read_coded(unit)
        return self._read

    def send(self, unit: int, buffer: HostBuffer) -> Arrival:
        self._read = self._sent = None
        if not self._link.is_coded(unit):
            return self._link.send(unit, buffer.memory, self._memory())
        self._sent = unit, buffer.memory
        return self._link.send(unit, buffer.memory, None)

    def release(self) -> None:
        if self._taken is not None:
            self._link.give_memory(self._taken)
            self._taken = None

    def _memory(self) -> Tensor:
        if self._own is not None:
            return self._own
        if self._taken is None:
            self._taken = self._link.take_memory(self._nbytes)
        return self._taken


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
