"""The time that a small copy takes while large copies use the link, launched in several ways.

A draft step beside a pass copies a few small inputs. If they queue behind a layer's copy, the step
waits as long as the layer travels.
"""

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.first_gpu_run.lab import MIB, Lab, ms, us
from benchmarks.first_gpu_run.record import Results

SIZES = (256, 4096, 43_008, 458_752)  # bytes of ids, of masks, and of a few rows of hidden states
KINDS = ("to device, pinned", "to device, pageable", "from device, pinned", "kernel only")
ROUNDS = 8


def run(lab: Lab, out: Results) -> None:
    """Measure small copies of each kind and size beside each kind of large copy."""
    loads = _Loads(lab)
    out["large_copy_ms"] = ms(lab.wall_seconds(loads.whole, times=3))
    out["two_in_flight_ms"] = ms(lab.wall_seconds(lambda: loads.two_in_flight().join(), times=3))
    out["us"] = table = dict[str, dict[str, dict[str, float]]]()
    for nbytes in SIZES:
        for kind in KINDS:
            if kind == "kernel only" and nbytes > SIZES[0]:
                continue
            host = torch.ones(nbytes, dtype=torch.uint8)
            if "pinned" in kind and not lab.is_dry:
                host = host.pin_memory()
            device = lab.allocate(nbytes).fill_(1)
            table[f"{kind}, {nbytes} B"] = {
                name: _measure(lab, start, loads.stream, kind, host, device)
                for name, start in loads.by_name().items()
            }
            out["us"] = table


class _Loads:
    """Large copies on a stream of their own, launched in several ways."""

    def __init__(self, lab: Lab) -> None:
        self.stream = lab.stream()
        self._lab = lab
        total = lab.choose(512 * MIB, MIB)
        self._source, self._target = lab.pinned(total), lab.allocate(total)

    def by_name(self) -> dict[str, Callable[[], threading.Thread | None]]:
        return {
            "idle link": lambda: None,
            "one copy of 512 MiB": self.whole,
            "pieces of 8 MiB, all launched": self.all_pieces,
            "pieces of 8 MiB, two in flight": self.two_in_flight,
        }

    def whole(self) -> None:
        with self._lab.on(self.stream):
            self._target.copy_(self._source, non_blocking=True)

    def all_pieces(self) -> None:
        with self._lab.on(self.stream):
            for source, target in self._pieces():
                target.copy_(source, non_blocking=True)

    def two_in_flight(self) -> threading.Thread:
        """Start a thread that launches a piece when the last but one has arrived."""

        def feed() -> None:
            events: list[Any] = []
            with torch.inference_mode(), self._lab.on(self.stream):
                for source, target in self._pieces():
                    if len(events) >= 2:
                        events[-2].synchronize()
                    target.copy_(source, non_blocking=True)
                    events.append(self._lab.event())
                    events[-1].record(self.stream)

        thread = threading.Thread(target=feed)
        thread.start()
        return thread

    def _pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        size = min(self._source.nbytes, 8 * MIB)
        for begin in range(0, self._source.nbytes, size):
            piece = slice(begin, begin + size)
            yield self._source[piece], self._target[piece]


def _measure(
    lab: Lab,
    start: Callable[[], threading.Thread | None],
    large: object,
    kind: str,
    host: Tensor,
    device: Tensor,
) -> dict[str, float]:
    """Return the microseconds of a small copy that begins 1 ms after `start` has been called."""
    taken, small = [], lab.stream(-1)
    beside = 0
    for _ in range(1 + lab.choose(ROUNDS, 1)):
        lab.check()
        lab.synchronize()
        thread, ended = start(), lab.event()
        if thread is None:
            ended.record(large)
        time.sleep(0.001)
        began = time.perf_counter()
        with lab.on(small):
            if kind == "kernel only":
                device.add_(1)
            elif kind.startswith("to device"):
                device.copy_(host, non_blocking=True)
            else:
                host.copy_(device, non_blocking=True)
            small.synchronize()
        taken.append(time.perf_counter() - began)
        beside += thread.is_alive() if thread is not None else not ended.query()
        if thread is not None:
            thread.join()
    taken = taken[1:]  # the first one warms up
    return {
        "median": us(statistics.median(taken)),
        "most": us(max(taken)),
        "times_the_large_copy_still_ran": beside,
    }
