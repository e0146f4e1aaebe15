"""Memory through which units pass on their way to a CUDA device: on the host, and on the device."""

# mypy: disallow-untyped-calls=False
# torch.cuda declares no types for streams and events.

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Protocol

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.streaming.coded import CODED_STAGING
from engine.streaming.device import Device
from engine.streaming.pinned import HostBuffer
from engine.weights.layout import UnitReader

logger = logging.getLogger(__name__)


def allocate_on(device: Device, nbytes: int) -> Tensor:
    """Return device memory for weights. Raises `ModelError` when the device has too little."""
    try:
        with torch.inference_mode(False):
            return torch.empty(nbytes, dtype=torch.uint8, device=device.torch_device)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{device} has no room for {nbytes / 2**20:.0f} MiB of weights ({error}). "
            "Lower memory.device, stream.resident or stream.slots."
        ) from error


class HostStaging:
    """A set of pinned buffers, each of which is borrowed, filled, copied from and used again."""

    def __init__(self, count: int, nbytes: int, device: Device) -> None:
        self._host_buffers = [HostBuffer(nbytes) for _ in range(count)]
        self._waiting: SimpleQueue[tuple[HostBuffer, torch.cuda.Event]] = SimpleQueue()
        if not all(buffer.pin(device.pin) for buffer in self._host_buffers):
            logger.warning("The system refused to pin the staging buffers: copies will be slow.")
        for buffer in self._host_buffers:
            self._waiting.put((buffer, torch.cuda.Event(blocking=True)))

    @contextmanager
    def buffer(self) -> Iterator[tuple[Tensor, torch.cuda.Event]]:
        """Yield a buffer that no copy reads, and the event to record after the copy out of it."""
        buffer, drained = self._waiting.get()
        try:
            drained.synchronize()
            yield buffer.memory, drained
        finally:
            self._waiting.put((buffer, drained))

    def close(self) -> None:
        for buffer in self._host_buffers:
            buffer.unpin()
        self._host_buffers = []


class Target(Protocol):
    """What a unit is copied into."""

    @property
    def copied(self) -> torch.cuda.Event:
        """Return the event after the last copy of a block that has ended."""

    def filling(self) -> AbstractContextManager[None]:
        """Return a block that launches copies of one unit."""

    def copy(self, first: int, part: Tensor, drained: torch.cuda.Event | None = None) -> None:
        """Launch the copy of `part` to byte `first`; record `drained` after it, if given."""


class DecodedSlot(Protocol):
    """What decoding needs of a slot."""

    memory: Tensor
    began: torch.cuda.Event
    ready: torch.cuda.Event

    def wait_until_free(self, stream: torch.cuda.Stream) -> None:
        """Let a stream wait until no other work uses the slot."""


@dataclass(frozen=True)
class _Buffer:
    memory: Tensor
    drained: torch.cuda.Event  # after the last decoding out of it


class DeviceStaging:
    """Buffers on the device for coded units, and the stream on which units are decoded into slots.

    Decoding has a stream of its own. On the stream of copies, the next unit would wait until this
    one is decoded, and the link would be idle meanwhile. On the compute stream, decoding would wait
    for the layers that compute. Its priority is the lowest: it is short, and computing waits for it
    only when nothing else is left to compute.

    Args:
        copies: the stream on which units are copied into the buffers.
        nbytes: of the largest coded unit.
    """

    def __init__(
        self, device: Device, reader: UnitReader, copies: torch.cuda.Stream, nbytes: int
    ) -> None:
        self.copies = copies
        self.stream = torch.cuda.Stream(device.torch_device)
        self._reader = reader
        self._waiting: SimpleQueue[_Buffer] = SimpleQueue()
        compute = torch.cuda.current_stream(device.torch_device)
        for _ in range(CODED_STAGING):
            buffer = _Buffer(allocate_on(device, nbytes), torch.cuda.Event())
            # The allocator may return memory that earlier kernels still use.
            buffer.drained.record(compute)
            self._waiting.put(buffer)

    @contextmanager
    def buffer(self) -> Iterator[_Buffer]:
        """Yield a buffer when the decoding out of it has been launched, and wait until then.

        Those who have a buffer never wait for another one.
        """
        buffer = self._waiting.get()
        try:
            yield buffer
        finally:
            self._waiting.put(buffer)

    def decode(
        self, unit: int, buffer: _Buffer, copied: torch.cuda.Event, slot: DecodedSlot
    ) -> None:
        """Launch the decoding of a unit into a slot, to run after its copy into the buffer."""
        self.stream.wait_event(copied)
        slot.wait_until_free(self.stream)
        try:
            with torch.cuda.stream(self.stream):
                coded = buffer.memory[: self._reader.layouts[unit].nbytes]
                self._reader.decode(unit, coded, slot.memory)
        finally:  # also after an error, because some of its kernels may run
            buffer.drained.record(self.stream)
            slot.ready.record(self.stream)

    def synchronize(self) -> None:
        """Wait until all units are decoded whose decoding has been launched."""
        self.stream.synchronize()


class CodedCopy:
    """The copy of a coded unit into a buffer on the device, and its decoding into a slot."""

    def __init__(self, unit: int, slot: DecodedSlot, staging: DeviceStaging) -> None:
        self.copied = torch.cuda.Event(enable_timing=True)
        self._memory: Tensor
        self._slot = slot
        self._staging = staging
        self._decode = partial(staging.decode, unit)

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Enter a block that launches copies of the unit. Its decoding is launched after them.

        A unit of which not all copies were launched is not decoded.
        """
        copies = self._staging.copies
        with self._staging.buffer() as buffer:
            self._memory = buffer.memory
            copies.wait_event(buffer.drained)
            self._slot.began.record(copies)
            yield
            self.copied.record(copies)
            self._decode(buffer, self.copied, self._slot)

    def copy(self, first: int, part: Tensor, drained: torch.cuda.Event | None = None) -> None:
        """Launch the copy of `part` to byte `first`; record `drained` after it, if given."""
        launch_copy(self._staging.copies, self._memory[first : first + part.nbytes], part, drained)


def launch_copy(
    stream: torch.cuda.Stream, target: Tensor, source: Tensor, drained: torch.cuda.Event | None
) -> None:
    """Launch a copy on a stream; record `drained` after it, if given."""
    with torch.cuda.stream(stream):
        target.copy_(source, non_blocking=True)
    if drained is not None:
        drained.record(stream)
