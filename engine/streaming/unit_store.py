"""The units that are kept in memory: resident ones on the device, others in host buffers."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import accumulate

from torch import Tensor

from engine.errors import ModelError
from engine.messages import LoadProgress, ReportProgress
from engine.streaming.device import Device
from engine.streaming.disk import READERS
from engine.streaming.link import Arrival, Meters
from engine.streaming.pinned import HostBuffer
from engine.weights.layout import UnitReader


class UnitStore:
    """The memory of the resident and ram tiers. One thread calls all methods.

    Attributes:
        resident: the device memory of each resident unit.
        waiting: the host buffer of each unit of the ram tier.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self.resident: dict[int, Tensor] = {}
        self.waiting: dict[int, HostBuffer] = {}

    def load(
        self,
        reader: UnitReader,
        resident: Sequence[int],
        waiting: Sequence[int],
        progress: ReportProgress,
    ) -> None:
        """Load units to the device and to host buffers, all of them or none.

        Args:
            reader: gives the units. Resident ones must not be coded on a CPU.
            progress: called after each unit.

        Raises `ModelError` if weights cannot be read or memory is refused.
        """
        memory: dict[int, Tensor] = {}
        buffers: dict[int, HostBuffer] = {}
        arrivals: dict[int, Arrival] = {}
        # Two links, so that threads that wait for a staging buffer do not keep the others from
        # filling host buffers.
        open_link = partial(
            self._device.open_link, reader, Meters(), READERS, sent=[], num_copiers=0
        )
        with (
            ExitStack() as undo,  # unless all units are loaded
            closing(open_link(staged=resident)) as staged,
            closing(open_link(staged=[])) as direct,
        ):
            for unit in sorted((*resident, *waiting)):
                if unit in waiting:
                    buffers[unit], arrivals[unit] = direct.host_buffer(unit)
                    undo.callback(buffers[unit].unpin)
                else:
                    slot = staged.slot(reader.slot_layouts[unit].nbytes)
                    memory[unit], arrivals[unit] = slot.memory, slot.read(unit)
            _await_all(reader, arrivals, progress)
            undo.pop_all()
        self.resident |= memory
        self.waiting |= buffers

    def free(self, units: Sequence[int]) -> None:
        """Free the memory of units. No work of the device and no transfer may use it any more."""
        for unit in units:
            self.resident.pop(unit, None)
            if (buffer := self.waiting.pop(unit, None)) is not None:
                buffer.unpin()

    def close(self) -> None:
        """Free all units."""
        self.free([*self.resident, *self.waiting])


def wait_for(arrival: Arrival, reader: UnitReader, unit: int) -> None:
    """Wait for the weights of a unit. An `OSError` becomes a `ModelError` that names it."""
    try:
        arrival.result()
    except OSError as error:
        raise ModelError(
            f"{reader.layouts[unit].name}: its weights could not be read ({error}). Check the "
            "disk and the model's files."
        ) from error


def _await_all(
    reader: UnitReader, arrivals: Mapping[int, Arrival], progress: ReportProgress
) -> None:
    sizes = [reader.layouts[unit].nbytes for unit in arrivals]
    for (unit, arrival), done in zip(arrivals.items(), accumulate(sizes), strict=True):
        wait_for(arrival, reader, unit)
        progress(LoadProgress("loading the weights", done, sum(sizes)))
