"""Weights that move between two passes, when memory gets short or there is more of it again.

Requests are served meanwhile as always: their sequences only wait for the move. Resident and
streamed units run through the same code with the same bits, so no answer changes. Where no more
weights can leave, the memory of KV pages is given back: of unused ones, of idle ones, which the
disk keeps, and then of sequences, which pause. The last one takes back the pages that it needs.
"""

import gc
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import inf

import torch

from engine.errors import ModelError
from engine.malloc import give_back_freed
from engine.moves import LimitMemory, Reason, Replanned, sums_by_tier
from engine.planning.footprint import size_text
from engine.planning.plan import Plan
from engine.planning.replan import Room
from engine.planning.room import HOLD, TAKE, Available, Shares, read_available, room_in
from engine.runtime.load import Loaded

log = logging.getLogger(__name__)

CHECK_SECONDS = 1.0  # between two looks at the memory
# Units come back when there has been room for them for this long: loading them takes time.
RETURN_SECONDS = 30.0
# Without a pass, until what the allocator keeps of peaks is given back. It takes some milliseconds.
QUIET_SECONDS = 2.0
FAILED_SECONDS = 600.0  # after units could not be loaded, before others come back


@dataclass(frozen=True)
class _Difference:
    """The units that two plans have in different tiers, and the layers that they belong to."""

    moved: list[int]
    resident: list[int]  # those that become resident
    waiting: list[int]  # those that come to RAM
    layers: list[int]  # whose units leave the device or come to it


class Residence:
    """The places of a loaded model's weights. One thread calls all methods, between passes.

    Args:
        pause_one: pauses a sequence, so that its KV pages are free; returns False if only one runs.

    Attributes:
        plan: where weights are now.
    """

    def __init__(
        self,
        loaded: Loaded,
        pause_one: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plan = loaded.replanner.loaded
        self._loaded = loaded
        self._pause_one = pause_one
        self._clock = clock
        self._read: Callable[[Plan], Available] = partial(read_available, loaded.device)
        self._limits = LimitMemory()
        # None: when limits are set
        self._due: float | None = 0.0 if loaded.memory.replan else None
        self._quiet_at: float | None = None  # when freed memory is given back; None: it has been
        self._free_since: float | None = None  # when there was first room for units to come back
        self._may_return_at = 0.0  # after units could not be loaded
        self._report: Replanned | None = None
        self._noted_pages = self.plan.num_pages  # as the log says
        self._is_short = False  # whether the log says that no units are left which could leave

    def seconds_until_due(self) -> float | None:
        """Return the seconds until `run` has something to do; None if it never has."""
        due = [own for own in (self._due, self._quiet_at) if own is not None]
        return max(0.0, min(due) - self._clock()) if due else None

    def note_pass(self) -> None:
        """Note that a pass has ended, and another may follow."""
        self._quiet_at = self._clock() + QUIET_SECONDS

    def limit(self, limits: LimitMemory) -> None:
        """Set limits, which hold from the next call of `run` on."""
        self._limits, self._due, self._free_since = limits, 0.0, -inf

    @torch.inference_mode()
    def run(self) -> None:
        """Move units if that is due and memory is short, or has been free for some time.

        Some seconds after the last pass, freed memory is given back to the system.
        """
        now = self._clock()
        if self._quiet_at is not None and now >= self._quiet_at:
            self._quiet_at = None
            give_back_freed()
        if self._due is None or now < self._due:
            return
        self._due = now + CHECK_SECONDS if self._loaded.memory.replan else None
        self.plan = self._current()
        available = self._read(self.plan)
        hold, take = (self._room(available, shares) for shares in (HOLD, TAKE))
        plan = self._loaded.replanner.next_plan(self.plan, hold, take)
        shortage = hold.shortage(self.plan)
        if shortage:
            self._free_since = None
            self._change(plan, "ram" if shortage.keys() & {"ram", "total"} else "device")
        elif self._may_return(plan, now):
            self._free_since = None
            self._change(plan, "freed")
        self._note_shortage(hold.shortage(self.plan))

    def take_report(self) -> Replanned | None:
        """Return what has moved since the last call; None if nothing has."""
        report, self._report = self._report, None
        return report

    def _room(self, available: Available, shares: Shares) -> Room:
        """Return the memory that a plan may take of what is available."""
        runtime = self.plan.memory.device_runtime
        return room_in(available, self._loaded.memory, self._limits, shares, runtime)

    def _may_return(self, plan: Plan, now: float) -> bool:
        """Return whether there has been room for the units of a plan for long enough."""
        if (plan.tiers, plan.num_pages) == (self.plan.tiers, self.plan.num_pages):
            self._free_since = None
            return False
        if self._free_since is None:
            self._free_since = now
        return now >= max(self._free_since + RETURN_SECONDS, self._may_return_at)

    def _note_shortage(self, shortage: Mapping[str, int]) -> None:
        """Log once that memory is short although no units can leave any more."""
        if shortage and not self._is_short:
            names = {"device": "device memory", "ram": "RAM", "total": "RAM"}
            found = {names[kind]: size_text(nbytes) for kind, nbytes in shortage.items()}
            log.warning(
                "Memory is short by %s, and no more weights can leave it. Requests are served as "
                "long as passes fit. End other programs, or lower context_length or max_sequences",
                ", ".join(f"{size} of {name}" for name, size in found.items()),
            )
        self._is_short = bool(shortage)

    def _current(self) -> Plan:
        """Return the plan as weights and KV pages are now: a sequence may take pages back."""
        cache = self._loaded.cache
        pages = cache.num_pages - cache.num_withdrawn
        return self._loaded.replanner.with_tiers(self._loaded.stream.tiers, pages)

    def _change(self, plan: Plan, reason: Reason) -> None:
        """Move weights, and give KV pages back or take them back, as a plan says."""
        began, before = self._clock(), self.plan
        if plan.tiers != before.tiers:
            self._move(plan)
        self._set_num_pages(plan.num_pages)
        self.plan = self._current()
        has_moved = self.plan.tiers != before.tiers
        if has_moved or plan.num_pages != self._noted_pages:
            what = "Weights have moved" if has_moved else "The number of KV pages has changed"
            self._noted_pages = plan.num_pages
            self._take_note(what, reason, self._clock() - began)

    def _set_num_pages(self, count: int) -> None:
        """Give the memory of KV pages back until there are `count`, or take it back.

        There are more if the last running sequence uses them.
        """
        cache = self._loaded.cache
        missing = cache.num_pages - cache.num_withdrawn - count
        if missing < 0:
            cache.restore(-missing)
            return
        if cache.num_free_pages < missing:
            self._loaded.drafting.reclaim()
        while cache.num_free_pages < missing and self._pause_one():
            pass
        cache.withdraw(missing)

    def _move(self, plan: Plan) -> None:
        """Move units as a plan says. Those that cannot be loaded stay on disk."""
        loaded, stream, before = self._loaded, self._loaded.stream, self.plan
        difference = self._difference(plan)
        loaded.drafting.detach(difference.layers)
        stream.pause()
        loaded.decoder.unbind()
        stream.free(difference.moved)
        gc.collect()
        give_back_freed()
        loaded.device.give_back_freed()
        try:
            stream.store(
                difference.resident,
                difference.waiting,
                lambda step: loaded.decoder.on_pass_progress(),
            )
        except ModelError as error:
            log.error("Weights that should come back are read from disk in each pass: %s", error)
            self._may_return_at = self._clock() + FAILED_SECONDS
        loaded.drafting.attach()
        self.plan = self._current()
        stream.resume(max(self.plan.slots, 1))
        self._expect_transfers(before)

    def _difference(self, plan: Plan) -> _Difference:
        pairs = [*enumerate(zip(self.plan.tiers, plan.tiers, strict=True))]
        moved = [unit for unit, (old, new) in pairs if old != new]
        crossing = {unit for unit, own in pairs if own[0] != own[1] and "resident" in own}
        layers = self._loaded.decoder.layers
        return _Difference(
            moved=moved,
            resident=[unit for unit in moved if plan.tiers[unit] == "resident"],
            waiting=[unit for unit in moved if plan.tiers[unit] == "ram"],
            layers=[n for n, own in enumerate(layers) if crossing.intersection(own.units.units)],
        )

    def _expect_transfers(self, before: Plan) -> None:
        """Expect the transfers of passes to take the time of the bytes that travel now."""
        sizes = self._loaded.replanner.link_bytes
        old, new = (
            [n for n, tier in zip(sizes, plan.tiers, strict=True) if tier != "resident"]
            for plan in (before, self.plan)
        )
        share = sum(new) / sum(old) if old else 0.0
        ahead = sum(new[: self.plan.ring_slots]) / sum(new) if new else 0.0
        self._loaded.drafting.policy.passes.change_link(share, ahead)

    def _take_note(self, what: str, reason: Reason, seconds: float) -> None:
        """Log a change and keep its report."""
        tiers, placed = self.plan.tiers, self._loaded.replanner.placed_bytes(self.plan)
        self._report = Replanned(
            reason=reason,
            plan=self._loaded.describe(self.plan),
            tiers=sums_by_tier(tiers, [1] * len(tiers)),
            tier_bytes=sums_by_tier(tiers, placed),
        )
        why = {
            "device": "device memory is short",
            "ram": "RAM is short",
            "freed": "there is more memory again",
        }[reason]
        log.info("%s in %.1f s, because %s: %s", what, seconds, why, self.plan)
