"""Walks a model's units in order, again and again, through a ring of device slots filled ahead.

    with stream.unit(i) as weights:
        ...

Units that are not resident travel: when the block of one is left, its slot is filled with the
next unit that has none, across the border into the next pass. The ring is kept by the thread
that walks; how a slot is filled is the link's business (`engine.streaming.link`).
"""

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.messages import ReportProgress
from engine.spec import Tier
from engine.streaming.cuda_link import CudaLink
from engine.streaming.disk import READERS, PieceReader
from engine.streaming.host_link import HostLink
from engine.streaming.link import Arrival, Link, Meters, Slot
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

    `tiers[i]` says where unit i waits: on the device, in RAM, or on disk. `slots` device slots of
    the largest travelling unit's size are allocated once. Constructing loads all that is resident
    or in RAM and tells `progress` after each unit. On `device: cpu`, `simulate_gbps` (1e9 bytes a
    second) is the pretended bandwidth between RAM and slots.

    Raises `ModelError` when weights cannot be read or memory is refused.
    """

    def __init__(
        self,
        reader: UnitReader,
        tiers: Sequence[Tier],
        *,
        device: torch.device,
        slots: int,
        simulate_gbps: float | None = None,
        progress: ReportProgress | None = None,
    ) -> None:
        assert len(tiers) == len(reader.layouts) > 0, "one tier for each unit"
        assert slots >= 1, f"a ring of {slots} slots"
        assert device.type in ("cpu", "cuda"), f"no link to {device}"
        if simulate_gbps is not None and device.type != "cpu":
            raise ModelError(
                f"stream.simulate_gbps is {simulate_gbps}, but {device} has a link of its own: "
                "remove it, or set device to cpu."
            )
        self._layouts = reader.layouts
        self._tiers = tuple(tiers)
        self._device = device
        self._ring = [unit for unit, tier in enumerate(tiers) if tier != "resident"]
        self._meters = Meters()
        self._loads: deque[_Load] = deque()
        self._next = 0  # the unit to be asked for
        self._ahead = 0  # ring position of the load to be started next
        self._inside = False
        self._computing: float | None = None  # since when, without a wait for a unit of this pass
        self._compute = Smoothed()  # the walker's seconds from one travelling unit to the next
        self._stall_seconds = 0.0
        self._idle_seconds = 0.0
        self._units = 0
        self._views: dict[tuple[int, int], dict[str, Tensor]] = {}  # of `_views_in`
        with ExitStack() as stack:
            self._resident, self._slabs = self._place(reader, stack, progress)
            slots = min(slots, len(self._ring))
            self._prepare(reader)
            link = self._open_link(
                reader,
                self._meters,
                "disk",
                READERS if "disk" in tiers else 0,
                pageable=self._make_room_for_staging(),
                simulate_gbps=simulate_gbps,
            )
            stack.enter_context(closing(link))
            size = max((self._layouts[unit].nbytes for unit in self._ring), default=0)
            for _ in range(slots):
                self._start(link.slot(size))
            self._opened: ExitStack | None = stack.pop_all()

    @contextmanager
    def unit(self, index: int, idle: Idle | None = None) -> Iterator[dict[str, Tensor]]:
        """Unit `index`, in a device slot: its tensors by name, valid inside the block.

        While the weights are on their way, `idle` is called with the seconds for which the walker
        may be away at no loss, 0 if that is not known; again, as long as it says that it did
        something and time is left. Leaving the block frees the slot without waiting for the
        device. Raises `ModelError` when the unit could not be read: then `seek` before asking
        again.
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
        """After a cancelled or failed pass: unit `index` is asked for next.

        What was read ahead and is still wanted stays; for the rest, this waits until nothing
        writes into its slots any more.
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
        """Whether the unit stays on the device: then its views never change."""
        return self._tiers[index] == "resident"

    def resident(self, index: int) -> dict[str, Tensor]:
        """The tensors of a unit that stays on the device, outside of any walk; not to be written.

        They are the memory that `unit` gives; whoever holds them keeps it.
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
        """What the ring's link carries, in GB/s (1e9); 0 if nothing travels. Before serving.

        Walks without computing, for about so long or `MEASURED_PASSES`, at least one unit that
        travels; then the first unit is next and `stats` begin at zero. Raises `ModelError` when a
        unit could not be read.
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
        """Wait for transfers begun, end the threads, unpin the RAM. May be called again."""
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
        """The tensors of a unit in a slot: made once, since every pass asks for them."""
        views = self._views.get((memory.data_ptr(), index))
        if views is None:
            views = self._layouts[index].views(memory)
            self._views[memory.data_ptr(), index] = views
        return views

    def _await(self, load: _Load, idle: Idle | None) -> None:
        """Until the load has arrived, with what `idle` does meanwhile."""
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
            self._finish(load)
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
        """How long the walker may stay away instead of waiting for the load, the next one."""
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
        """Seconds of its link that a unit takes; 0 before anything was carried."""
        return self._layouts[unit].nbytes * self._meter(unit).seconds_per_byte

    def _meter(self, unit: int) -> Meter:
        return self._meters.ram if self._tiers[unit] == "ram" else self._meters.disk

    def _finish(self, load: _Load) -> None:
        load.failed = True  # whatever is raised: seek starts it again
        try:
            load.arrival.result()
        except OSError as error:
            raise _unreadable(self._layouts[load.unit].name, error) from error
        load.failed = False

    def _start(self, slot: Slot) -> None:
        """Fill a free slot with the ring's next unit."""
        position = self._ahead
        unit = self._ring[position]
        self._ahead = (position + 1) % len(self._ring)
        asked = time.perf_counter()
        arrival = slot.send(unit, self._slabs[unit]) if unit in self._slabs else slot.read(unit)
        self._loads.append(_Load(position, unit, slot, arrival, asked))

    def _drop(self, loads: Sequence[_Load]) -> list[Slot]:
        """Give up loads; returns their slots when nothing writes into them any more."""
        for load in loads:
            load.arrival.cancel()
        for load in loads:
            with suppress(Exception):  # whatever a dropped load met concerns no pass
                load.arrival.result()
        return [load.slot for load in loads]

    def _place(
        self, reader: UnitReader, stack: ExitStack, progress: ReportProgress | None
    ) -> tuple[dict[int, Tensor], dict[int, Slab]]:
        """Load what is resident onto the device and what waits in RAM into slabs."""
        resident: dict[int, Tensor] = {}
        slabs: dict[int, Slab] = {}
        arrivals: dict[int, Arrival] = {}
        with closing(self._open_link(reader, Meters(), "resident", READERS)) as link:
            for unit, tier in enumerate(self._tiers):
                if tier == "resident":
                    slot = link.slot(self._layouts[unit].nbytes)
                    resident[unit], arrivals[unit] = slot.memory, slot.read(unit)
                elif tier == "ram":
                    slabs[unit], arrivals[unit] = link.slab(unit)
                    stack.callback(slabs[unit].unpin, self._device)
            for done, (unit, arrival) in enumerate(arrivals.items(), 1):
                try:
                    arrival.result()
                except OSError as error:
                    raise _unreadable(self._layouts[unit].name, error) from error
                if progress is not None:
                    progress("weights", done, len(arrivals))
        return resident, slabs

    def _prepare(self, reader: UnitReader) -> None:
        """Find out how the disk is read fastest: not before what is loaded once has been."""
        streamed = [unit for unit, tier in enumerate(self._tiers) if tier == "disk"]
        if streamed and isinstance(reader, PieceReader):
            reader.prepare(streamed)

    def _make_room_for_staging(self) -> bool:
        """Whether some slabs are not pinned; then one gives its share to the staging buffers."""
        pinned = [slab for slab in self._slabs.values() if slab.pinned]
        refused = len(pinned) < len(self._slabs)
        if refused and pinned:
            pinned[-1].unpin(self._device)
        return refused

    def _open_link(
        self,
        reader: UnitReader,
        meters: Meters,
        staged: Tier,
        readers: int,
        *,
        pageable: bool = False,
        simulate_gbps: float | None = None,
    ) -> Link:
        """`staged` units are read into slots; `pageable`: some slabs could not be pinned."""
        if self._device.type == "cpu":
            return HostLink(reader, meters, readers=readers, simulate_gbps=simulate_gbps)
        return CudaLink(
            reader,
            meters,
            device=self._device,
            readers=readers,
            copiers=COPIERS if pageable else 0,
            staged=[unit for unit, tier in enumerate(self._tiers) if tier == staged],
        )


def _unreadable(name: str, error: OSError) -> ModelError:
    return ModelError(
        f"{name}: its weights could not be read ({error}). Check the disk and the model's files."
    )
