"""The seam between the stream's ring and the device: slots, and the link that fills them."""

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
        """Whether `result` would return, or raise, at once."""

    def result(self) -> None:
        """Wait for the bytes; what the caller launches from here on sees them.

        Raises what the reader raised, or `CancelledError`. Called once, or until it stops raising.
        """

    def cancel(self) -> bool:
        """Give up the transfer if it has not begun."""


class Slot(Protocol):
    """Device memory for one unit. Each fill waits for the last `release`."""

    memory: Tensor  # uint8 on the device

    def read(self, unit: int) -> Arrival:
        """Fill the slot from the reader."""

    def send(self, unit: int, slab: Slab) -> Arrival:
        """Fill the slot from RAM."""

    def release(self) -> None:
        """What the caller has launched so far may still use the slot; nothing later will."""


class Link(Protocol):
    """Makes slots and moves weights into them, with threads of its own."""

    def slot(self, nbytes: int) -> Slot:
        """New device memory. Raises `ModelError` when there is no room."""

    def slab(self, unit: int) -> tuple[Slab, Arrival]:
        """New host memory that is being filled with the unit, pinned where that helps."""

    def close(self) -> None:
        """Wait for transfers begun, end the threads, free staging memory. May be called again.

        Slots and slabs stay valid; slabs are unpinned by their owner.
        """
