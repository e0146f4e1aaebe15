"""The weight stream: a model's units in order, again and again, through prefetched device slots.

    with stream.unit(i) as weights:
        ...

Units that are not resident are streamed: when the block of one is left, its slot is filled with
the next streamed unit that has no slot yet, those of the next pass included. The thread that walks
keeps the ring; the device's link fills the slots (`engine.streaming.link`).
"""

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass

from torch import Tensor

from engine.errors import ModelError
from engine.messages import ReportProgress
from engine.spec import Tier
from engine.streaming.device import Device
from engine.streaming.disk import READERS
from engine.streaming.link import Arrival, Meters, Slot
from engine.streaming.meter import LinkStats, Meter, Smoothed, time_away
from engine.streaming.pinned import Slab
from engine.weights.layout import UnitReader

COPIERS = 2  # threads that copy RAM which could not be pinned
MEASURED_PASSES = 3  # of `measure_link`, at most: a small model is soon known

Idle = Callable[[float], bool]  # seconds the walker may be away -> whether it did something


@dataclass
class _Load:
    """A unit that is in a slot, or on its way into it."""

    position: int  # in the ring's order
    unit: int
    slot: Slot
    arrival: Arrival
    asked: float
    failed: bool = False


class LayerStream:
    """Gives each unit's weights while a block runs; one thread walks.

    Constructing it loads the units that are resident or wait in RAM. It raises `ModelError` when
    weights cannot be read or memory is refused.

    Args:
        tiers: where each unit waits: on the device, in RAM, or on disk.
        slots: how many device slots of the largest streamed unit's size to allocate.
        progress: called after each unit that was loaded.
    """

    def __init__(
        self,
        reader: UnitReader,
        tiers: Sequence[Tier],
        *,
        device: Device,
        slots: int,
        progress: ReportProgress | None = None,
    ) -> None:
        assert len(tiers) == len(reader.layouts) > 0, "one tier for each unit"
        assert slots >= 1, f"a ring of {slots} slots"
        self._layouts = reader.layouts
        self._tiers = tuple(tiers)
        self._device = device
        self._ring = [unit for unit, tier in enumerate(tiers) if tier != "resident"]
        self._meters = Meters()
        self._loads: deque[_Load] = deque()
        self._next = 0  # the unit that must be asked for next
        self._ahead = 0  # ring position of the load to be started next
        self._inside = False
        self._computing: float | None = None  # when the walker got the last unit of this pass
        self._compute = Smoothed()  # the walker's seconds from one travelling unit to the next
        self._stall_seconds = 0.0
        self._idle_seconds = 0.0
        self._units = 0
        self._views: dict[tuple[int, int], dict[str, Tensor]] = {}  # of `_views_in`
        with ExitStack() as stack:
            self._resident, self._slabs = self._place(reader, stack, progress)
            staged = self._units_in("disk")
            if staged:  # after all that is read only once
                reader.prepare(staged)
            readers = READERS if staged else 0
            copiers = COPIERS if self._make_room_for_staging() else 0
            link = device.open_link(reader, self._meters, readers, staged, copiers)
            stack.enter_context(closing(link))
            size = max((self._layouts[unit].nbytes for unit in self._ring), default=0)
            for _ in range(min(slots, len(self._ring))):
                self._start(link.slot(size))
            self._opened: ExitStack | None = stack.pop_all()

    @contextmanager
    def unit(self, index: int, idle: Idle | None = None) -> Iterator[dict[str, Tensor]]:
        """Give the tensors of unit `index` by name; they are valid inside the block.

        While the weights are on their way, `idle` is called with the seconds it may take without
        slowing the pass down, 0 if that is not known. It is called again while it returns True and
        time is left. Leaving the block frees the slot without waiting for the device. Raises
        `ModelError` when the unit could not be read: then call `seek` before the next unit.
        """
        assert self._opened is not None, f"unit {index} asked for after close"
        assert not self._inside, f"unit {index} asked for inside another unit's block"
        assert index == self._next, (
            f"unit {index} asked for where {self._next} is next: units are walked in order; "
            "seek after a pass that was left early"
        )
        load = None if self.is_resident(index) else self._loads[0]
        if load is not None:
            self._await(load, idle)
        memory = self._resident[index] if load is None else load.slot.memory
        self._next = (index + 1) % len(self._tiers)
        self._units += 1
        self._inside = True
        try:
            yield self._views_in(memory, index)
        finally:
            self._inside = False
            if load is not None and self._opened is not None:
                self._loads.popleft()
                load.slot.release()
                self._start(load.slot)

    def seek(self, index: int = 0) -> None:
        """Continue with unit `index` after a cancelled or failed pass.

        Units that were prefetched and are still wanted stay in their slots. For the others, this
        waits until nothing writes into their slots any more.
        """
        assert self._opened is not None, "seek after close"
        assert not self._inside, "seek inside a unit's block"
        assert 0 <= index < len(self._tiers), f"no unit {index}"
        self._next = index
        self._computing = None
        if not self._ring:
            return
        wanted = bisect_left(self._ring, index) % len(self._ring)
        kept = deque(self._loads)
        while kept and (kept[0].position != wanted or kept[0].failed):
            kept.popleft()
        dropped = len(self._loads) - len(kept)
        freed = self._drop([self._loads.popleft() for _ in range(dropped)])
        if not self._loads:
            self._ahead = wanted
        for slot in freed:
            self._start(slot)

    def is_resident(self, index: int) -> bool:
        """Return whether the unit stays on the device, so that its views never change."""
        return self._tiers[index] == "resident"

    def resident(self, index: int) -> dict[str, Tensor]:
        """Return the tensors of a unit that stays on the device. They must not be written to.

        They are the memory that `unit` gives, and keep it alive.
        """
        return self._layouts[index].views(self._resident[index])

    @property
    def stats(self) -> LinkStats:
        """Figures since the last reset; a transfer counts when it has ended."""
        return LinkStats(
            self._meters.ram.traffic(),
            self._meters.disk.traffic(),
            self._stall_seconds,
            self._units,
            self._idle_seconds,
        )

    def reset_stats(self) -> None:
        """Count from zero."""
        self._meters.ram.reset()
        self._meters.disk.reset()
        self._stall_seconds, self._units, self._idle_seconds = 0.0, 0, 0.0

    def measure_link(self, seconds: float = 1.0) -> float:
        """Return the link's bandwidth in GB/s (1e9); 0 if nothing is streamed.

        Walks without computing, for about `seconds` or for `MEASURED_PASSES`, but at least one
        streamed unit. The meters time the transfers themselves, which overlap. Afterwards the first
        unit is next and `stats` begin at zero. Raises `ModelError` when a unit could not be read.
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
            self._compute = Smoothed()  # nothing was computed
        taken = max(stats.ram.seconds, stats.disk.seconds)  # at the same time, if both were used
        return stats.bytes / taken / 1e9 if taken else 0.0

    def close(self) -> None:
        """Wait for started transfers, end the threads, unpin the RAM. May be called again."""
        if self._opened is None:
            return
        opened, self._opened = self._opened, None
        with opened:
            self._drop(list(self._loads))
            self._loads.clear()
        self._views.clear()
        self._resident.clear()
        self._slabs.clear()

    def _views_in(self, memory: Tensor, index: int) -> dict[str, Tensor]:
        """Return the tensors of a unit in a slot; they are made once for all passes."""
        views = self._views.get((memory.data_ptr(), index))
        if views is None:
            views = self._layouts[index].views(memory)
            self._views[memory.data_ptr(), index] = views
        return views

    def _await(self, load: _Load, idle: Idle | None) -> None:
        """Wait until the load has arrived; `idle` uses the time."""
        began = time.perf_counter()
        if self._computing is not None and load.position > 0:  # not across the border of passes
            self._compute.observe(began - self._computing)
        self._computing = None
        try:
            if idle is not None and not load.arrival.done():
                self._give_time(idle, load)
            waits = time.perf_counter()
            self._idle_seconds += waits - began
            waited = not load.arrival.done()
            load.failed = True  # whatever is raised: seek starts it again
            self._wait(load.arrival, load.unit)
            load.failed = False
        finally:
            self._computing = time.perf_counter()
        if waited:
            self._stall_seconds += self._computing - waits

    def _give_time(self, idle: Idle, load: _Load) -> None:
        did = True
        while did and not load.arrival.done():
            seconds = self._time_away(load)
            did = idle(seconds) and seconds > 0

    def _time_away(self, load: _Load) -> float:
        """Return how long the walker may do something else instead of waiting for the next load."""
        now = time.perf_counter()
        free = {meter: meter.ended for meter in (self._meters.ram, self._meters.disk)}
        due: list[float] = []
        for asked in self._loads:  # a link carries one unit after another
            meter = self._meter(asked.unit)
            if not asked.arrival.done():
                began = max(asked.asked, free[meter])
                free[meter] = max(now, began + self._takes(asked.unit))
            due.append(free[meter])
        later = [self._takes(unit) for unit in self._ring[load.position + 1 :]]
        return time_away(now, due, later, self._compute.value)

    def _takes(self, unit: int) -> float:
        """Return the seconds that a unit takes on its link; 0 before anything was carried."""
        return self._layouts[unit].nbytes * self._meter(unit).seconds_per_byte

    def _meter(self, unit: int) -> Meter:
        return self._meters.ram if self._tiers[unit] == "ram" else self._meters.disk

    def _wait(self, arrival: Arrival, unit: int) -> None:
        """Wait for the weights of a unit. Raises `ModelError` that names it."""
        try:
            arrival.result()
        except OSError as error:
            raise ModelError(
                f"{self._layouts[unit].name}: its weights could not be read ({error}). Check the "
                "disk and the model's files."
            ) from error

    def _start(self, slot: Slot) -> None:
        """Fill a free slot with the ring's next unit."""
        position = self._ahead
        unit = self._ring[position]
        self._ahead = (position + 1) % len(self._ring)
        asked = time.perf_counter()
        arrival = slot.send(unit, self._slabs[unit]) if unit in self._slabs else slot.read(unit)
        self._loads.append(_Load(position, unit, slot, arrival, asked))

    def _drop(self, loads: Sequence[_Load]) -> list[Slot]:
        """Cancel loads; return their slots when nothing writes into them any more."""
        for load in loads:
            load.arrival.cancel()
        for load in loads:
            with suppress(Exception):  # no pass waits for a dropped load: its failure has no reader
                load.arrival.result()
        return [load.slot for load in loads]

    def _place(
        self, reader: UnitReader, stack: ExitStack, progress: ReportProgress | None
    ) -> tuple[dict[int, Tensor], dict[int, Slab]]:
        """Load resident units onto the device, and units that wait in RAM into slabs."""
        resident: dict[int, Tensor] = {}
        slabs: dict[int, Slab] = {}
        arrivals: dict[int, Arrival] = {}
        staged = self._units_in("resident")
        with closing(self._device.open_link(reader, Meters(), READERS, staged, 0)) as link:
            for unit, tier in enumerate(self._tiers):
                if tier == "resident":
                    slot = link.slot(self._layouts[unit].nbytes)
                    resident[unit], arrivals[unit] = slot.memory, slot.read(unit)
                elif tier == "ram":
                    slabs[unit], arrivals[unit] = link.slab(unit)
                    stack.callback(slabs[unit].unpin)
            for done, (unit, arrival) in enumerate(arrivals.items(), 1):
                self._wait(arrival, unit)
                if progress is not None:
                    progress("weights", done, len(arrivals))
        return resident, slabs

    def _make_room_for_staging(self) -> bool:
        """Return whether some slabs are not pinned; if so, unpin one for the staging buffers."""
        pinned = [slab for slab in self._slabs.values() if slab.is_pinned]
        refused = len(pinned) < len(self._slabs)
        if refused and pinned:
            pinned[-1].unpin()
        return refused

    def _units_in(self, tier: Tier) -> list[int]:
        return [unit for unit, own in enumerate(self._tiers) if own == tier]
