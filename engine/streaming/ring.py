"""The weight stream: it prefetches a model's units, in the order of a pass, into device slots.

    with stream.unit(i) as weights:
        ...

Units that are not resident are streamed through a ring of slots. When the block of a streamed unit
ends, free slots are filled with the next streamed units that have no slot yet; after the last unit
of a pass these are the first ones of the next pass. The parts of a layer are borrowed together, in
blocks inside each other (`engine.streaming.slots`). The computing thread decides which unit goes
into which slot, and the device's link fills the slots (`engine.streaming.link`).
"""

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

from torch import Tensor

from engine.errors import ModelError
from engine.messages import LoadProgress, ReportProgress
from engine.spec import Tier
from engine.streaming.device import Device
from engine.streaming.disk import READERS
from engine.streaming.idle import IdleTimes
from engine.streaming.link import Arrival, Meters, Slot
from engine.streaming.meter import LinkStats, Meter, spare_seconds
from engine.streaming.pinned import HostBuffer, unpin_for_staging
from engine.streaming.slots import ring_slots, unit_places
from engine.weights.layout import LayerUnits, UnitReader

COPIERS = 2  # threads that copy host buffers which could not be pinned
MEASURED_PASSES = 3  # the most passes of `measure_link`; a small model needs no more

OnWait = Callable[[float], bool]  # gets the seconds it may use; returns whether it did work


@dataclass
class _Load:
    """A unit that is in a slot, or is being copied into it."""

    position: int  # among the streamed units of a pass
    unit: int
    slot: Slot
    arrival: Arrival
    requested_at: float
    failed: bool = False


class LayerStream:
    """A lender of weights: it gives the tensors of each unit, in order, while a block runs.

    One thread calls all methods. The constructor loads the units of the resident and ram tiers. It
    raises `ModelError` if weights cannot be read or memory is refused.

    Args:
        tiers: where each unit is stored: on the device, in RAM, or on disk.
        slots: one device slot for the units in use, and one for each unit copied ahead of them.
        layers: the units of each layer; None: no layer has several parts.
        progress: called after each unit that was loaded.
        starts_later: load only resident units; `start` loads and streams the others.
    """

    def __init__(
        self,
        reader: UnitReader,
        tiers: Sequence[Tier],
        *,
        device: Device,
        slots: int,
        layers: Sequence[LayerUnits] | None = None,
        progress: ReportProgress = lambda step: None,
        starts_later: bool = False,
    ) -> None:
        assert len(tiers) == len(reader.layouts) > 0, "one tier for each unit"
        assert slots >= 1, f"at least one slot is needed, not {slots}"
        self._layouts = reader.slot_layouts
        self._travelling = reader.layouts
        self._tiers = tuple(tiers)
        self._device = device
        self._slots = slots
        self._ring = [unit for unit, tier in enumerate(tiers) if tier != "resident"]
        self._meters = Meters()
        self._loads: deque[_Load] = deque()
        self._next = 0  # the unit that must be requested next
        self._ahead = 0  # the position, among streamed units, of the load to start next
        self._num_borrowed = 0  # units whose blocks run
        self._layers = layers = layers or ()
        self._places = unit_places(layers, len(tiers))  # each has its own slots
        self._free: dict[int, deque[Slot]] = {place: deque() for place in set(self._places)}
        # For the parts of a layer: how many of them are borrowed before any is given back.
        parts = {unit: layer.parts for layer in layers for unit in layer.parts}
        self._num_left = [parts[u].stop - u if u in parts else 1 for u in range(len(tiers))]
        self._idle = IdleTimes(device.moment)
        self._callback_seconds = 0.0
        self._units = 0
        self._views: dict[tuple[int, int], dict[str, Tensor]] = {}  # by address and unit
        self._resident: dict[int, Tensor] = {}
        self._host_buffers: dict[int, HostBuffer] = {}
        with ExitStack() as stack:
            loaded: Sequence[Tier] = ("resident",) if starts_later else ("resident", "ram")
            self._load_units(reader, loaded, stack, progress)
            if not starts_later:
                self._start_ring(reader, stack)
            self._opened: ExitStack | None = stack.pop_all()

    def start(self, reader: UnitReader, progress: ReportProgress = lambda step: None) -> None:
        """Load the units of the ram tier and begin to stream, after a constructor that did not.

        `reader` has the same units as that of the constructor, which may be coded here. Raises
        `ModelError` as the constructor does.
        """
        assert self._opened is not None and not self._loads, "it has begun, or was closed"
        self._travelling = reader.layouts
        with ExitStack() as stack:
            self._load_units(reader, ("ram",), stack, progress)
            self._start_ring(reader, stack)
            self._opened.push(stack.pop_all())

    def _start_ring(self, reader: UnitReader, stack: ExitStack) -> None:
        """Open the link and fill the slots. The stack closes the link."""
        staged = self._units_in("disk")
        if staged:  # after the reads that happen only once
            reader.prepare(staged)
        readers = READERS if staged else 0
        copiers = COPIERS if unpin_for_staging(self._host_buffers.values()) else 0
        link = self._device.open_link(
            reader, self._meters, num_readers=readers, staged=staged, num_copiers=copiers
        )
        stack.enter_context(closing(link))
        sizes = [layout.nbytes for layout in self._layouts]
        slots = ring_slots(sizes, self._layers, set(self._ring), self._slots)
        for place, kind in slots.items():
            needed = sum(self._places[unit] == place for unit in self._ring)
            self._free[place] += [link.slot(kind.nbytes) for _ in range(min(kind.count, needed))]
        self._fill()

    @contextmanager
    def unit(self, index: int, on_wait: OnWait | None = None) -> Iterator[dict[str, Tensor]]:
        """Give the tensors of unit `index` by name; they are valid inside the block.

        Units must be requested in order, and parts of a layer inside the block of the one before.
        While the weights are being copied, `on_wait` is called
        with the seconds that it may use without slowing the pass down, or with 0 if these are not
        known. It is called again while it returns True and time is left. The end of the block frees
        the slot, without waiting for the device.

        Raises `ModelError` if the unit could not be read. Then call `seek` before the next unit.
        """
        assert self._opened is not None, f"unit {index} was requested after close"
        assert not self._num_borrowed or self._places[index], (
            f"unit {index} was requested inside another unit's block"
        )
        assert index == self._next, (
            f"unit {index} was requested, but unit {self._next} is next: request units in order, "
            "and call seek after a pass that ended early"
        )
        load = None if self.is_resident(index) else self._loads[0]
        if load is not None:
            self._await(load, on_wait)
            self._loads.popleft()
        memory = self._resident[index] if load is None else load.slot.memory
        self._next = (index + 1) % len(self._tiers)
        self._units += 1
        self._num_borrowed += 1
        try:
            yield self._views_in(memory, index)
        finally:
            self._num_borrowed -= 1
            if load is not None and self._opened is not None:
                load.slot.release()
                self._free[self._places[index]].append(load.slot)
                if not self._num_borrowed:
                    self._fill()

    def seek(self, index: int = 0) -> None:
        """Continue with unit `index` after a cancelled or failed pass.

        Prefetched units that are still needed stay in their slots. For the other slots, this waits
        until no transfer writes into them any more.
        """
        assert self._opened is not None, "seek after close"
        assert not self._num_borrowed, "seek inside a unit's block"
        assert 0 <= index < len(self._tiers), f"no unit {index}"
        self._next = index
        self._idle.end_pass()
        if not self._ring:
            return
        wanted = bisect_left(self._ring, index) % len(self._ring)
        kept = deque(self._loads)
        while kept and (kept[0].position != wanted or kept[0].failed):
            kept.popleft()
        dropped = len(self._loads) - len(kept)
        self._drop([self._loads.popleft() for _ in range(dropped)])
        if not self._loads:
            self._ahead = wanted
        self._fill()

    def is_resident(self, index: int) -> bool:
        """Return whether the unit stays on the device, so that its tensors never change."""
        return self._tiers[index] == "resident"

    def resident(self, index: int) -> dict[str, Tensor]:
        """Return the tensors of a unit that stays on the device. They must not be written to.

        They share their memory with those of `unit`, and keep it alive.
        """
        return self._layouts[index].views(self._resident[index])

    @property
    def stats(self) -> LinkStats:
        """The figures since the last reset. A transfer is counted when it has ended."""
        return LinkStats(
            self._meters.ram.traffic(),
            self._meters.disk.traffic(),
            self._idle.stall_seconds,
            self._units,
            self._callback_seconds,
        )

    def reset_stats(self) -> None:
        """Set all figures of `stats` back to zero."""
        self._meters.ram.reset()
        self._meters.disk.reset()
        self._idle.reset_stall()
        self._units, self._callback_seconds = 0, 0.0

    def measure_link(self, seconds: float = 1.0) -> float:
        """Return the link's bandwidth in GB/s (1e9); 0 if nothing is streamed.

        It runs through the units without computing, for about `seconds` or for `MEASURED_PASSES`
        passes, but for at least one streamed unit. The meters time the transfers themselves, which
        overlap. Afterwards the first unit is next and `stats` begin at zero.

        Raises `ModelError` if a unit could not be read.
        """
        if not self._ring:
            return 0.0
        self.reset_stats()
        until = time.perf_counter() + seconds
        try:
            for index in [*range(len(self._tiers))] * MEASURED_PASSES:
                with self.unit(index):
                    pass
                if time.perf_counter() > until and self.stats.bytes:
                    break
            stats = self.stats
        finally:
            self.seek(0)
            self.reset_stats()
            self._idle.forget_compute()  # these times are not of computing
        taken = max(stats.ram.seconds, stats.disk.seconds)  # both links work at the same time
        return stats.bytes / taken / 1e9 if taken else 0.0

    def close(self) -> None:
        """Wait for running transfers, end the threads, unpin the RAM. It may be called again."""
        if self._opened is None:
            return
        opened, self._opened = self._opened, None
        with opened:
            self._drop(list(self._loads))
            self._loads.clear()
        self._views.clear()
        self._resident.clear()
        self._host_buffers.clear()
        self._free.clear()

    def _views_in(self, memory: Tensor, index: int) -> dict[str, Tensor]:
        """Return the tensors of a unit in a slot. They are created once and used in all passes."""
        views = self._views.get((memory.data_ptr(), index))
        if views is None:
            views = self._layouts[index].views(memory)
            self._views[memory.data_ptr(), index] = views
        return views

    def _await(self, load: _Load, on_wait: OnWait | None) -> None:
        """Wait until the load has arrived, calling `on_wait` meanwhile."""
        began = time.perf_counter()
        requested = self._idle.request(in_pass=load.position > 0)
        try:
            if on_wait is not None and not load.arrival.done():
                self._call_while_waiting(on_wait, load)
            used_seconds = time.perf_counter() - began
            self._callback_seconds += used_seconds
            waited = not load.arrival.done()
            load.failed = True  # if anything is raised, seek starts the load again
            self._wait(load.arrival, load.unit)
            load.failed = False
        finally:
            got = self._idle.get()
        if waited:
            self._idle.add_stall(requested, got, used_seconds)

    def _call_while_waiting(self, on_wait: OnWait, load: _Load) -> None:
        """Call `on_wait` until the load has arrived, time has run out, or it returns False."""
        did = True
        while did and not load.arrival.done():
            seconds = self._spare_seconds(load)
            did = on_wait(seconds) and seconds > 0

    def _spare_seconds(self, load: _Load) -> float:
        """Return the seconds that the caller may use for other work before it needs the load."""
        now = time.perf_counter()
        free = {meter: meter.ended for meter in (self._meters.ram, self._meters.disk)}
        due: list[float] = []
        for requested in self._loads:  # a link carries one unit after another
            meter = self._meter(requested.unit)
            if not requested.arrival.done():
                began = max(requested.requested_at, free[meter])
                free[meter] = max(now, began + self._transfer_seconds(requested.unit))
            due.append(free[meter])
        later = [self._transfer_seconds(unit) for unit in self._ring[load.position + 1 :]]
        num_left = self._num_left[load.unit]
        return spare_seconds(now, due, later, self._idle.compute_seconds, num_left)

    def _transfer_seconds(self, unit: int) -> float:
        """Return the expected seconds of a unit's transfer; 0 before the first transfer."""
        return self._travelling[unit].nbytes * self._meter(unit).seconds_per_byte

    def _meter(self, unit: int) -> Meter:
        """Return the meter of the link that carries a streamed unit."""
        return self._meters.ram if self._tiers[unit] == "ram" else self._meters.disk

    def _wait(self, arrival: Arrival, unit: int) -> None:
        """Wait for the weights of a unit. An `OSError` becomes a `ModelError` that names it."""
        try:
            arrival.result()
        except OSError as error:
            raise ModelError(
                f"{self._layouts[unit].name}: its weights could not be read ({error}). Check the "
                "disk and the model's files."
            ) from error

    def _fill(self) -> None:
        """Start to fill free slots with the next streamed units that have no slot, in order."""
        while self._ring and (free := self._free[self._places[self._ring[self._ahead]]]):
            self._start(free.popleft())

    def _start(self, slot: Slot) -> None:
        """Start to fill a free slot with the next streamed unit that has no slot."""
        position = self._ahead
        unit = self._ring[position]
        self._ahead = (position + 1) % len(self._ring)
        requested_at = time.perf_counter()
        arrival = (
            slot.send(unit, self._host_buffers[unit])
            if unit in self._host_buffers
            else slot.read(unit)
        )
        self._loads.append(_Load(position, unit, slot, arrival, requested_at))

    def _drop(self, loads: Sequence[_Load]) -> None:
        """Cancel loads, and free their slots when no transfer writes into them any more."""
        for load in loads:
            load.arrival.cancel()
        for load in loads:
            with suppress(Exception):  # no pass needs a cancelled load, so its error is dropped
                load.arrival.result()
            self._free[self._places[load.unit]].append(load.slot)

    def _load_units(
        self, reader: UnitReader, tiers: Sequence[Tier], stack: ExitStack, progress: ReportProgress
    ) -> None:
        """Load the units of these tiers: into device memory, or into host buffers.

        Args:
            stack: unpins the host buffers when it is closed.
            progress: called after each unit.
        """
        arrivals: dict[int, Arrival] = {}
        # Two links, so that threads that wait for a staging buffer do not keep the others from
        # filling host buffers.
        open_link = partial(
            self._device.open_link, reader, Meters(), num_readers=READERS, num_copiers=0
        )
        with (
            closing(open_link(staged=self._units_in("resident"))) as staged,
            closing(open_link(staged=[])) as waiting,
        ):
            for unit, tier in enumerate(self._tiers):
                if tier == "resident" and tier in tiers:
                    slot = staged.slot(self._layouts[unit].nbytes)
                    self._resident[unit], arrivals[unit] = slot.memory, slot.read(unit)
                elif tier == "ram" and tier in tiers:
                    self._host_buffers[unit], arrivals[unit] = waiting.host_buffer(unit)
                    stack.callback(self._host_buffers[unit].unpin)
            sizes = [self._travelling[unit].nbytes for unit in arrivals]
            for (unit, arrival), done in zip(arrivals.items(), accumulate(sizes), strict=True):
                self._wait(arrival, unit)
                progress(LoadProgress("loading the weights", done, sum(sizes)))

    def _units_in(self, tier: Tier) -> list[int]:
        return [unit for unit, own in enumerate(self._tiers) if own == tier]
