"""The device of `device: cuda`: asynchronous copies of weights on a stream of their own.

Events keep three orders. A copy into a slot waits, on the device, for the work that was using the
slot (`free`). Compute waits for the copy (`ready`). A thread that refills a staging buffer waits
until the copy out of it is done (`drained`). The computing thread waits for the device only in
`Arrival.result`, so it is never further ahead of the device than there are slots. Units are copied
in pieces by threads, and a transfer can be cancelled between two of them.

Coded units are copied into a buffer on the device. A kernel on another stream decodes them from
there into the slot, and `ready` is recorded after it (`cuda_staging`).
"""

# mypy: disallow-untyped-calls=False
# torch.cuda declares no types for streams, events and cudart.

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from engine.streaming.cuda_copies import CopyWindow
from engine.streaming.cuda_pages import CudaPageStore
from engine.streaming.cuda_staging import (
    CodedCopy,
    DeviceStaging,
    HostStaging,
    Target,
    allocate_on,
    launch_copy,
)
from engine.streaming.cuda_start import start_cuda
from engine.streaming.cuda_streams import CudaCapture, CudaMoment, CudaSideStream
from engine.streaming.device import Device, OwnMemory
from engine.streaming.disk import PIECE_BYTES, num_staging_buffers, split_pieces
from engine.streaming.link import Arrival, Meters
from engine.streaming.meter import Meter
from engine.streaming.page_store import PageStore
from engine.streaming.pinned import HostBuffer, Unpin, copy_bytes
from engine.streaming.workers import JobBatch, Workers
from engine.triton_kernels import weight_decoder
from engine.weights.layout import UnitReader

logger = logging.getLogger(__name__)

BUFFERS_PER_COPIER = 2  # one is filled while the other is copied from
LARGEST_CONTEXT = 1 << 30  # bytes that CUDA itself takes of a device; more is other programs'
# Bytes that torch gives to cuBLAS for each stream, by the least compute capability.
WORKSPACES = {(9, 0): 32 << 20, (0, 0): (8 << 20) + (128 << 10)}
_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every device's context
_SUCCESS = 0


class CudaDevice(Device):
    """A CUDA GPU: it has memory of its own, streams and graphs."""

    is_asynchronous = True

    def __init__(self, torch_device: torch.device) -> None:
        super().__init__(torch_device)
        # cuDNN's attention is asked first on some cards, and builds a plan for each new length,
        # which takes longer than a draft step. The other kernels take any length.
        torch.backends.cuda.enable_cudnn_sdp(False)

    @property
    def arithmetic(self) -> str:
        return f"{torch.cuda.get_device_name(self.torch_device)}, CUDA {torch.version.cuda}"

    @property
    def can_decode(self) -> bool:
        return weight_decoder.is_usable(self.torch_device)

    def open_link(
        self,
        reader: UnitReader,
        meters: Meters,
        num_readers: int,
        staged: Sequence[int],
        sent: Sequence[int],
        num_copiers: int,
    ) -> "CudaLink":
        return CudaLink(self, reader, meters, num_readers, staged, sent, num_copiers)

    def own_memory(self) -> OwnMemory:
        free, total = torch.cuda.mem_get_info(self.torch_device)
        held = torch.cuda.memory_reserved(self.torch_device)
        taken = total - free - held
        capability = torch.cuda.get_device_capability(self.torch_device)
        workspace = next(size for first, size in WORKSPACES.items() if capability >= first)
        # What other programs use is a part of `taken`.
        return OwnMemory(free, min(taken, LARGEST_CONTEXT), workspace, held)

    def give_back_freed(self) -> None:
        torch.cuda.empty_cache()

    def pin(self, memory: Tensor) -> Unpin | None:
        """Pin host memory by `cudaHostRegister`.

        torch's own pinned allocator rounds sizes up to powers of two.
        """
        cudart = torch.cuda.cudart()
        address, nbytes = memory.data_ptr(), memory.nbytes
        if self._call(lambda: cudart.cudaHostRegister(address, nbytes, _PORTABLE)) != _SUCCESS:
            return None

        def unpin() -> None:
            code = self._call(lambda: cudart.cudaHostUnregister(address))
            assert code == _SUCCESS, f"cudaHostUnregister failed with CUDA error {code}"

        return unpin

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.torch_device)

    def moment(self) -> CudaMoment:
        return CudaMoment(torch.cuda.current_stream(self.torch_device))

    def page_store(self, pool: Tensor, num_places: int) -> PageStore:
        if not num_places:
            return super().page_store(pool, num_places)
        return CudaPageStore(pool, num_places, self)

    def side_stream(self) -> CudaSideStream:
        return CudaSideStream(self.torch_device)

    def capture(self) -> CudaCapture:
        return CudaCapture(self.torch_device)

    def use_compute_stream(self) -> None:
        before = torch.cuda.current_stream(self.torch_device)
        if before.priority < 0:
            return  # the thread already has such a stream
        stream = torch.cuda.Stream(self.torch_device, priority=-1)
        stream.wait_stream(before)
        torch.cuda.set_stream(stream)

    def _call(self, function: Callable[[], int]) -> int:
        """Return the CUDA error code of a call made on a thread of its own.

        CUDA stores the error of a refused call per thread, and torch would raise it at that
        thread's next kernel launch. The error is gone when its thread ends.
        """

        def run() -> int:
            with torch.cuda.device(self.torch_device):
                return int(function())

        with ThreadPoolExecutor(1, "weights-pin") as thread:
            return thread.submit(run).result()


def open_device(device: torch.device) -> CudaDevice:
    """Start CUDA on the GPU and return it.

    Raises `DeviceMissing` or `ModelError` as `start_cuda` does.
    """
    start_cuda(device)
    return CudaDevice(device)


class CudaLink:
    """A link that copies pinned host buffers directly, and all else through staging buffers.

    Args:
        num_readers: the most threads that read from the disk, into host or staging buffers.
        staged: the units that are read through staging buffers. Then no host buffers are filled.
        sent: the units that are sent from host buffers.
        num_copiers: threads that copy host buffers which could not be pinned.
    """

    def __init__(
        self,
        device: CudaDevice,
        reader: UnitReader,
        meters: Meters,
        num_readers: int,
        staged: Sequence[int],
        sent: Sequence[int],
        num_copiers: int,
    ) -> None:
        self.device = device
        self.meters = meters
        self.stream = torch.cuda.Stream(device.torch_device)
        self._reader = reader
        self._pin_lock = threading.Lock()
        self._pinning_refused = False
        sizes = [len(piece) for unit in staged for piece in reader.pieces(unit)]
        largest = max(sizes, default=0)
        buffers = num_staging_buffers(largest, len(sizes))
        if staged:  # further threads would only wait for a buffer
            num_readers = min(num_readers, buffers)
        # Device memory first: where it is refused, no buffer is pinned and no thread was started.
        coded = [self._nbytes(unit) for unit in (*staged, *sent) if reader.is_coded(unit)]
        self._decoding: DeviceStaging | None = None
        if coded:
            self._decoding = DeviceStaging(device, reader, self.stream, max(coded))
        self._window = CopyWindow(self.stream)
        self._read_into = HostStaging(buffers, largest, device)
        self._copied_into = HostStaging(num_copiers * BUFFERS_PER_COPIER, PIECE_BYTES, device)
        self._readers = Workers("weights-read", num_readers)
        self._copiers = Workers("weights-copy", num_copiers)
        self._sender = Workers("weights-send", 1)

    def slot(self, nbytes: int) -> "CudaSlot":
        """Allocate a slot. Raises `ModelError` when the device has too little memory."""
        return CudaSlot(self, allocate_on(self.device, nbytes))

    def host_buffer(self, unit: int) -> tuple[HostBuffer, Arrival]:
        buffer = HostBuffer(self._nbytes(unit))
        pieces = {p: buffer.memory[p.start : p.stop] for p in self._reader.pieces(unit)}
        jobs = [partial(self._reader.read_piece, unit, *piece) for piece in pieces.items()]
        return buffer, self._readers.submit(*jobs, context=self._pinning(buffer))

    def read(self, unit: int, slot: "CudaSlot") -> Arrival:
        """Start to fill a slot from the disk, through staging buffers."""
        fill = partial(self._reader.read_piece, unit)
        through = self._read_into, self._readers, self.meters.disk
        return self._stage(unit, self._reader.pieces(unit), fill, slot, *through)

    def send(self, unit: int, buffer: HostBuffer, slot: "CudaSlot") -> Arrival:
        """Start to fill a slot from RAM, in pieces: directly from pinned memory, else staged."""
        source = buffer.memory[: self._nbytes(unit)]
        pieces = split_pieces(source.nbytes)
        if buffer.is_pinned:
            target = self._target(unit, slot)
            jobs = [partial(self._send_piece, piece, source, target) for piece in pieces]
            launched = self._sender.submit(*jobs, context=target.filling())
            return _PinnedCopy(launched, slot, target.copied, source.nbytes)

        def fill(piece: range, memory: Tensor) -> None:
            copy_bytes(memory, source[piece.start : piece.stop])

        through = self._copied_into, self._copiers, self.meters.ram
        return self._stage(unit, pieces, fill, slot, *through)

    def compute_stream(self) -> torch.cuda.Stream:
        """Return the stream that the calling thread computes on."""
        return torch.cuda.current_stream(self.device.torch_device)

    def close(self) -> None:
        self._readers.close()
        self._copiers.close()
        self._sender.close()
        self.stream.synchronize()
        if self._decoding is not None:
            self._decoding.synchronize()
        self._read_into.close()
        self._copied_into.close()

    def _target(self, unit: int, slot: "CudaSlot") -> Target:
        """Return what a unit is copied into: the slot, or a buffer from which it is decoded."""
        if not self._reader.is_coded(unit):
            return slot
        assert self._decoding is not None, f"the link was opened for other units than {unit}"
        return CodedCopy(unit, slot, self._decoding)

    def _send_piece(self, piece: range, source: Tensor, target: Target) -> None:
        with self._window.piece(is_first=piece.start == 0):
            target.copy(piece.start, source[piece.start : piece.stop])

    def _stage(
        self,
        unit: int,
        pieces: Sequence[range],
        fill: Callable[[range, Tensor], None],
        slot: "CudaSlot",
        staging: HostStaging,
        workers: Workers,
        meter: Meter,
    ) -> Arrival:
        """Let threads fill staging buffers with pieces of a unit and launch copies to the slot."""
        target = self._target(unit, slot)

        def job(piece: range) -> None:
            with staging.buffer() as (memory, drained):
                fill(piece, memory[: len(piece)])
                target.copy(piece.start, memory[: len(piece)], drained)

        timed = _fill_timed(pieces[-1].stop, meter, target)
        return _Copy(workers.submit(*(partial(job, own) for own in pieces), context=timed), slot)

    @contextmanager
    def _pinning(self, buffer: HostBuffer) -> Iterator[None]:
        """Enter a block that fills the buffer; pin the buffer if the block succeeds."""
        yield
        with self._pin_lock:  # several readers: one warning is enough
            if not self._pinning_refused and not buffer.pin(self.device.pin):
                self._pinning_refused = True
                logger.warning(
                    "The system refused to pin more RAM: the remaining units travel through a "
                    "pinned staging buffer, more slowly. Raise the locked-memory limit "
                    "(ulimit -l, or the container's) if the machine has the RAM."
                )

    def _nbytes(self, unit: int) -> int:
        return self._reader.layouts[unit].nbytes


@contextmanager
def _fill_timed(nbytes: int, meter: Meter, target: Target) -> Iterator[None]:
    """Enter a block that launches the copies of `nbytes`, and count it as a transfer.

    The wait for a buffer of the device is not counted.
    """
    with target.filling(), meter.time_transfer(nbytes):
        yield


class CudaSlot:
    """Device memory for one unit, with the events that order its uses."""

    def __init__(self, link: CudaLink, memory: Tensor) -> None:
        self.memory = memory
        self.link = link
        self.began = torch.cuda.Event(enable_timing=True)
        self.ready = torch.cuda.Event(enable_timing=True, blocking=True)
        self._free = torch.cuda.Event()
        self.release()  # the allocator may return memory that earlier kernels still use

    def read(self, unit: int) -> Arrival:
        return self.link.read(unit, self)

    def send(self, unit: int, buffer: HostBuffer) -> Arrival:
        return self.link.send(unit, buffer, self)

    def release(self) -> None:
        self._free.record(self.link.compute_stream())

    def wait_until_free(self, stream: torch.cuda.Stream) -> None:
        """Let a stream wait until no other work uses the slot."""
        stream.wait_event(self._free)
        stream.wait_event(self.ready)  # a decoding that failed may still write

    @property
    def copied(self) -> torch.cuda.Event:
        return self.ready

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Enter a block that launches copies into the slot, to run after the work that used it."""
        stream = self.link.stream
        self.wait_until_free(stream)
        self.began.record(stream)
        try:
            yield
        finally:
            self.ready.record(stream)

    def copy(self, first: int, part: Tensor, drained: "torch.cuda.Event | None" = None) -> None:
        """Launch the copy of `part` to byte `first`; record `drained` after it, if given."""
        launch_copy(self.link.stream, self.memory[first : first + part.nbytes], part, drained)


class _Copy:
    """The arrival of a unit whose copies are launched by threads."""

    def __init__(self, launched: JobBatch, slot: CudaSlot) -> None:
        self._launched = launched
        self._slot = slot

    def done(self) -> bool:
        return self._launched.done() and self._slot.ready.query()

    def cancel(self) -> bool:
        return self._launched.cancel()

    def result(self) -> None:
        self._launched.result()
        _wait(self._slot)


class _PinnedCopy(_Copy):
    """The arrival of a unit from pinned memory; the device's clock times it."""

    def __init__(
        self, launched: JobBatch, slot: CudaSlot, copied: torch.cuda.Event, nbytes: int
    ) -> None:
        super().__init__(launched, slot)
        self._copied = copied
        self._nbytes = nbytes

    def result(self) -> None:
        super().result()
        seconds = self._slot.began.elapsed_time(self._copied) / 1e3
        self._slot.link.meters.ram.add_transfer(seconds, self._nbytes)


def _wait(slot: CudaSlot) -> None:
    """Wait until a slot is filled, on the host and on the compute stream.

    The host waits so that it does not run further ahead than the ring has slots.
    """
    slot.ready.synchronize()
    slot.link.compute_stream().wait_event(slot.ready)
