"""`device: cuda`: large asynchronous copies on a stream of their own.

Three orders are kept here. A copy into a slot waits, on the device, for the work that was using
the slot (`free`). Compute waits for the copy (`ready`). A thread that refills a staging buffer
waits until the copy out of it is done (`drained`). The host never waits for the device except in
`Arrival.result`, which keeps it at most as many units ahead as there are slots.
"""

# mypy: disallow-untyped-calls=False
# torch.cuda declares no types for streams, events and cudart.

import logging
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.layout import UnitReader
from engine.pinned import Slab, copy_bytes
from engine.slots import Arrival, Meters
from engine.workers import Workers

logger = logging.getLogger(__name__)

PIECE_BYTES = 16 * 2**20  # staging for RAM that cannot be pinned
PIECES_PER_COPIER = 2  # one is filled while the other drains


class CudaLink:
    """Pinned slabs go straight to the device; what is not pinned goes through staging buffers.

    `readers` threads read units of at most `staged_bytes` from the disk; `copiers` threads copy
    slabs that could not be pinned, in pieces.
    """

    def __init__(
        self,
        reader: UnitReader,
        meters: Meters,
        *,
        device: torch.device,
        readers: int,
        copiers: int,
        staged_bytes: int,
    ) -> None:
        self.device = device
        self.meters = meters
        self.stream = torch.cuda.Stream(device)
        self._reader = reader
        self._pinning = threading.Lock()
        self._pinning_refused = False
        self._readers = Workers("weights-read", readers)
        self._copiers = Workers("weights-copy", copiers)
        self._whole = _Staging(readers if staged_bytes else 0, staged_bytes, device)
        self._pieces = _Staging(copiers * PIECES_PER_COPIER, PIECE_BYTES, device)

    def slot(self, nbytes: int) -> "CudaSlot":
        try:
            with torch.inference_mode(False):
                memory = torch.empty(nbytes, dtype=torch.uint8, device=self.device)
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"{self.device} has no room for {nbytes / 2**20:.0f} MiB of weights ({error}). "
                "Lower memory.device, stream.resident or stream.slots."
            ) from error
        return CudaSlot(self, memory)

    def slab(self, unit: int) -> tuple[Slab, Arrival]:
        slab = Slab(self._nbytes(unit))

        def fill() -> None:
            self._reader.read(unit, slab.memory[: self._nbytes(unit)])
            self._pin(slab)

        return slab, self._readers.submit(fill)

    def read(self, unit: int, slot: "CudaSlot") -> Arrival:
        """Fill a slot from the disk, through a staging buffer as large as the unit."""
        nbytes = self._nbytes(unit)

        def job() -> None:
            with self._whole.buffer() as (memory, drained):
                with self.meters.disk.transfer() as arrive:
                    self._reader.read(unit, memory[:nbytes])
                    arrive(nbytes)
                slot.fill(((0, memory[:nbytes], drained),))

        return _Staged(self._readers.submit(job), slot)

    def send(self, unit: int, slab: Slab, slot: "CudaSlot") -> Arrival:
        """Fill a slot from RAM: one copy if the slab is pinned, else piece by piece."""
        source = slab.memory[: self._nbytes(unit)]
        if slab.pinned:
            slot.fill(((0, source, None),))
            return _Direct(slot, source.nbytes)
        return _Staged(self._copiers.submit(partial(self._send_pieces, source, slot)), slot)

    def close(self) -> None:
        self._readers.close()
        self._copiers.close()
        self.stream.synchronize()
        self._whole.close()
        self._pieces.close()

    def _pin(self, slab: Slab) -> None:
        with self._pinning:  # several readers: the refusal is told once
            if not self._pinning_refused and not slab.pin(self.device):
                self._pinning_refused = True
                logger.warning(
                    "The system refused to pin more RAM: the remaining units travel through a "
                    "pinned staging buffer, more slowly. Raise the locked-memory limit "
                    "(ulimit -l, or the container's) if the machine has the RAM."
                )

    def _send_pieces(self, source: Tensor, slot: "CudaSlot") -> None:
        with self.meters.ram.transfer() as arrive:
            slot.fill(self._staged_pieces(source))
            arrive(source.nbytes)

    def _staged_pieces(self, source: Tensor) -> Iterator["_Piece"]:
        for first in range(0, source.nbytes, PIECE_BYTES):
            part = source[first : first + PIECE_BYTES]
            with self._pieces.buffer() as (memory, drained):
                copy_bytes(memory, part)
                yield first, memory[: part.nbytes], drained

    def _nbytes(self, unit: int) -> int:
        return self._reader.layouts[unit].nbytes


# Where the bytes go in the slot, the bytes, and what to record once the copy has read them.
_Piece = tuple[int, Tensor, "torch.cuda.Event | None"]


class CudaSlot:
    """Device memory, with the events that order its users."""

    def __init__(self, link: CudaLink, memory: Tensor) -> None:
        self.memory = memory
        self.link = link
        self.began = torch.cuda.Event(enable_timing=True)
        self.ready = torch.cuda.Event(enable_timing=True, blocking=True)
        self._free = torch.cuda.Event()
        self.release()  # the allocator may hand out memory that earlier kernels still use

    def read(self, unit: int) -> Arrival:
        return self.link.read(unit, self)

    def send(self, unit: int, slab: Slab) -> Arrival:
        return self.link.send(unit, slab, self)

    def release(self) -> None:
        self._free.record(torch.cuda.current_stream(self.link.device))

    def fill(self, pieces: Iterable[_Piece]) -> None:
        """Launch the copies of a unit, after the work that was using the slot. Any thread."""
        stream = self.link.stream
        stream.wait_event(self._free)
        self.began.record(stream)
        with torch.cuda.stream(stream):
            for first, part, drained in pieces:
                self.memory[first : first + part.nbytes].copy_(part, non_blocking=True)
                if drained is not None:
                    drained.record(stream)
        self.ready.record(stream)


class _Direct:
    """The copy is launched; the device says when it is through and how long it took."""

    def __init__(self, slot: CudaSlot, nbytes: int) -> None:
        self._slot = slot
        self._nbytes = nbytes

    def done(self) -> bool:
        return bool(self._slot.ready.query())

    def cancel(self) -> bool:
        return False

    def result(self) -> None:
        _wait(self._slot)
        seconds = self._slot.began.elapsed_time(self._slot.ready) / 1e3
        self._slot.link.meters.ram.credit(seconds, self._nbytes)


class _Staged:
    """A thread launches the copy when it has the bytes."""

    def __init__(self, launched: Future[None], slot: CudaSlot) -> None:
        self._launched = launched
        self._slot = slot

    def done(self) -> bool:
        return self._launched.done() and self._slot.ready.query()

    def cancel(self) -> bool:
        return self._launched.cancel()

    def result(self) -> None:
        self._launched.result()
        _wait(self._slot)


def _wait(slot: CudaSlot) -> None:
    """The host waits, so that it does not run ahead of the ring; so does what it launches next."""
    slot.ready.synchronize()
    torch.cuda.current_stream(slot.link.device).wait_event(slot.ready)


class _Staging:
    """Pinned buffers that are borrowed, filled, copied out of, and refilled."""

    def __init__(self, count: int, nbytes: int, device: torch.device) -> None:
        self._device = device
        self._slabs = [Slab(nbytes) for _ in range(count)]
        self._waiting: SimpleQueue[tuple[Slab, torch.cuda.Event]] = SimpleQueue()
        if not all(slab.pin(device) for slab in self._slabs):
            logger.warning("The system refused to pin the staging buffers: copies will be slow.")
        for slab in self._slabs:
            self._waiting.put((slab, torch.cuda.Event(blocking=True)))

    @contextmanager
    def buffer(self) -> Iterator[tuple[Tensor, torch.cuda.Event]]:
        """A buffer no copy reads any more, and the event to record after the copy out of it."""
        slab, drained = self._waiting.get()
        try:
            drained.synchronize()
            yield slab.memory, drained
        finally:
            self._waiting.put((slab, drained))

    def close(self) -> None:
        for slab in self._slabs:
            slab.unpin(self._device)
        self._slabs = []
