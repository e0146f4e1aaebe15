"""`device: cpu`: slots are ordinary memory; the link is the disk, or RAM at a pretended speed."""

from functools import partial

from torch import Tensor

from engine.streaming.disk import read_piece, unit_pieces
from engine.streaming.link import Arrival, Meters
from engine.streaming.pinned import Slab, allocate_pages, copy_bytes
from engine.streaming.simulated_link import SimulatedLink
from engine.streaming.workers import Batch, Workers
from engine.weights.layout import UnitReader


class HostLink:
    """Readers fill slots straight from the disk; one thread copies from RAM, in order."""

    def __init__(
        self,
        reader: UnitReader,
        meters: Meters,
        *,
        readers: int,
        simulate_gbps: float | None = None,
    ) -> None:
        self._reader = reader
        self._meters = meters
        self._simulated = (
            None if simulate_gbps is None else SimulatedLink(simulate_gbps, meters.ram)
        )
        self._readers = Workers("weights-read", readers)
        self._copier = Workers("weights-copy", 1)

    def slot(self, nbytes: int) -> "HostSlot":
        return HostSlot(self, allocate_pages(nbytes))

    def slab(self, unit: int) -> tuple[Slab, Arrival]:
        slab = Slab(self._nbytes(unit))
        return slab, self.read(unit, slab.memory)

    def read(self, unit: int, memory: Tensor) -> Batch:
        """Fill `memory` from the reader, in pieces that threads take in order."""
        pieces = unit_pieces(self._reader, unit)
        jobs = [partial(self._read, unit, piece, memory) for piece in pieces]
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

    def _read(self, unit: int, piece: range, memory: Tensor) -> None:
        read_piece(self._reader, unit, piece, memory[piece.start : piece.stop])

    def _nbytes(self, unit: int) -> int:
        return self._reader.layouts[unit].nbytes


class HostSlot:
    """A slot of host memory. A fill is asked for after the block that used it: nothing to wait."""

    def __init__(self, link: HostLink, memory: Tensor) -> None:
        self.memory = memory
        self._link = link

    def read(self, unit: int) -> Arrival:
        return self._link.read(unit, self.memory)

    def send(self, unit: int, slab: Slab) -> Arrival:
        return self._link.send(unit, slab.memory, self.memory)

    def release(self) -> None:
        pass
