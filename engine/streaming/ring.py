"""The weight stream: it prefetches a model's units, in the order of a pass, into device slots.

    with stream.unit(i) as weights:
        ...

Units that are not resident are streamed through a ring of slots. When the block of a streamed unit
ends, free slots are filled with the next streamed units that have no slot yet; after the last unit
of a pass these are the first ones of the next pass. The parts of a layer are borrowed together, in
blocks inside each other (`engine.streaming.slots`). The computing thread chooses the slot of each
unit, and the device's link fills it (`engine.streaming.link`). Units may move between two passes.
"""

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from torch import Tensor

from engine.messages import ReportProgress
from engine.spec import Tier
from engine.streaming.device import Device
from engine.streaming.disk import READERS
from engine.streaming.idle import IdleTimes
from engine.streaming.link import Arrival, Link, Meters, Slot
from engine.streaming.meter import LinkStats, Meter, spare_seconds
from engine.streaming.pinned import unpin_for_staging
from engine.streaming.slots import allocate_slots, unit_places
from engine.streaming.unit_store import UnitStore, wait_for
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

    One thread calls all methods. The constructor loads the resident units and those in RAM. Raises
    `ModelError` if weights cannot be read or memory is refused.

    Args:
        tiers: where each unit is stored.
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
        self._plain = self._reader = reader
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
        self._free: dict[int, deque[Slot]] = {}
        # For the parts of a layer: how many of them are borrowed before any is given back.
        parts = {unit: layer.parts for layer in layers for unit in layer.parts}
        self._num_left = [parts[u].stop - u if u in parts else 1 for u in range(len(tiers))]
        self._idle = IdleTimes(device.moment)
        self._units, self._callback_seconds = 0, 0.0
        self._views: dict[tuple[int, int], dict[str, Tensor]] = {}  # by address and unit
        self._store = UnitStore(device)
        self._link: Link | None = None  # while units are streamed
        self._is_closed = False
        with ExitStack() as stack:
            stack.callback(self._store.close)
            waiting = [] if starts_later else self._units_in("ram")
            self._store.load(reader, self._units_in("resident"), waiting, progress)
            if not starts_later:
                self._open_ring()
            stack.pop_all()

    def start(self, reader: UnitReader, progress: ReportProgress = lambda step: None) -> None:
        """Load the units of the ram tier and begin to stream, after a constructor that did not.

        `reader` has the same units, which may be coded here. Raises `ModelError` as it does.
        """
        assert self._link is None and not self._is_closed, "it has begun, or was closed"
        self._reader = reader
        self._store.load(reader, [], self._units_in("ram"), progress)
        self._open_ring()

    def pause(self) -> None:
        """End all transfers and free the ring, between two passes. `resume` makes it anew."""
        assert not self._num_borrowed, "pause inside a unit's block"
        self._device.synchronize()  # work that was launched may still use a slot
        self._stop()

    def free(self, units: Sequence[int]) -> None:
        """Free the memory of units, while the stream is paused. They are then on disk.

        What was made of `resident` or `unit` keeps the memory, and must not be read any more.
        """
        self._store.free(units)
        self._set_tiers(dict.fromkeys(units, "disk"))

    def store(
        self,
        resident: Sequence[int],
        waiting: Sequence[int],
        progress: ReportProgress = lambda step: None,
    ) -> None:
        """Load units on disk to the device and to RAM, while the stream is paused.

        Raises `ModelError` if they cannot be; then both kinds stay on disk, or those of RAM alone.
        """
        self._store.load(self._plain, resident, [], progress)
        self._set_tiers(dict.fromkeys(resident, "resident"))
        self._store.load(self._reader, [], waiting, progress)
        self._set_tiers(dict.fromkeys(waiting, "ram"))

    def resume(self, slots: int) -> None:
        """Stream again after `pause`; unit 0 is next. Raises `ModelError` without memory for it."""
        assert self._link is None and not self._is_closed, "the stream is not paused"
        self._slots = slots
        self._next = self._ahead = 0
        self._idle.end_pass()
        self._open_ring()

    def _set_tiers(self, tiers: Mapping[int, Tier]) -> None:
        self._tiers = tuple(tiers.get(unit, own) for unit, own in enumerate(self._tiers))
        self._ring = [unit for unit, tier in enumerate(self._tiers) if tier != "resident"]

    def _open_ring(self) -> None:
        """Open the link and fill the slots."""
        staged = self._units_in("disk")
        if staged:  # after the reads that happen only once
            self._reader.prepare(staged)
        readers = READERS if staged else 0
        copiers = COPIERS if unpin_for_staging(self._store.waiting.values()) else 0
        sent, meters = self._units_in("ram"), self._meters
        link = self._device.open_link(self._reader, meters, readers, staged, sent, copiers)
        with ExitStack() as stack:
            stack.callback(link.close)
            sizes = [layout.nbytes for layout in self._layouts]
            slots = allocate_slots(link, sizes, self._layers, self._ring, self._slots)
            self._free = {place: deque(slots.get(place, ())) for place in set(self._places)}
            stack.pop_all()
        self._link = link
        self._fill()

    @contextmanager
    def unit(self, index: int, on_wait: OnWait | None = None) -> Iterator[dict[str, Tensor]]:
        """Give the tensors of unit `index` by name; they are valid inside the block.

        Units must be requested in order, and parts of a layer inside the block of the one before.
        While the weights are being copied, `on_wait` is called with the seconds that it may use
        without slowing the pass down, or with 0 if these are not known, again and again while it
        returns True and time is left. The end of the block frees the slot, without waiting.

        Raises `ModelError` if the unit could not be read. Then call `seek` before the next unit.
        """
        assert self._link is not None, f"unit {index} was requested after close"
        assert not self._num_borrowed or self._places[index], (
            f"unit {index} was requested inside another unit's block"
        )
        assert index == self._next, (
            f"unit {index} was requested, but unit {self._next} is next: request units in order, "
            "and call seek after a pass that ended early"
        )
        load = None if self.is_resident(index) else self._loads[0]
        memory = self._store.resident[index] if load is None else self._await(load, on_wait)
        self._next = (index + 1) % len(self._tiers)
        self._units += 1
        self._num_borrowed += 1
        try:
            yield self._views_in(memory, index)
        finally:
            self._num_borrowed -= 1
            if load is not None and self._link is not None:
                load.slot.release()
                self._free[self._places[index]].append(load.slot)
                if not self._num_borrowed:
                    self._fill()

    def seek(self, index: int = 0) -> None:
        """Continue with unit `index` after a cancelled or failed pass.

        Prefetched units that are still needed stay in their slots. It waits for other transfers.
        """
        assert self._link is not None, "seek after close"
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
        return self._layouts[index].views(self._store.resident[index])

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """Where each unit is stored now."""
        return self._tiers

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

        It runs through the units without computing, for about `seconds` or `MEASURED_PASSES`, but
        for at least one streamed unit. The meters time transfers, which overlap. Afterwards the
        first unit is next and `stats` begin at zero. Raises `ModelError` as `unit` does.
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
        if self._is_closed:
            return
        self._is_closed = True
        self._stop()
        self._store.close()

    def _stop(self) -> None:
        """Wait for running transfers, close the link and forget the slots."""
        self._drop(list(self._loads))
        self._loads.clear()
        self._views.clear()
        self._free.clear()
        if self._link is not None:
            self._link.close()
            self._link = None

    def _views_in(self, memory: Tensor, index: int) -> dict[str, Tensor]:
        """Return the tensors of a unit in a slot. They are created once and used in all passes."""
        views = self._views.get((memory.data_ptr(), index))
        if views is None:
            views = self._layouts[index].views(memory)
            self._views[memory.data_ptr(), index] = views
        return views

    def _await(self, load: _Load, on_wait: OnWait | None) -> Tensor:
        """Wait until the load has arrived, calling `on_wait` meanwhile. Return its memory."""
        began = time.perf_counter()
        requested = self._idle.request(in_pass=load.position > 0)
        try:
            if on_wait is not None and not load.arrival.done():
                self._call_while_waiting(on_wait, load)
            used_seconds = time.perf_counter() - began
            self._callback_seconds += used_seconds
            waited = not load.arrival.done()
            load.failed = True  # if anything is raised, seek starts the load again
            wait_for(load.arrival, self._reader, load.unit)
            load.failed = False
        finally:
            got = self._idle.get()
        if waited:
            self._idle.add_stall(requested, got, used_seconds)
        memory = load.slot.memory
        self._loads.popleft()
        return memory

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
        return self._reader.layouts[unit].nbytes * self._meter(unit).seconds_per_byte

    def _meter(self, unit: int) -> Meter:
        """Return the meter of the link that carries a streamed unit."""
        return self._meters.ram if self._tiers[unit] == "ram" else self._meters.disk

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
            slot.send(unit, self._store.waiting[unit])
            if unit in self._store.waiting
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

    def _units_in(self, tier: Tier) -> list[int]:
        return [unit for unit, own in enumerate(self._tiers) if own == tier]
