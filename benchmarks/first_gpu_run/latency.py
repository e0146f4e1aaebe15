"""The costs of launches, waits, events and graphs, which are the price of a draft step's parts."""

import time
from functools import partial

import torch
from torch.nn import functional as F

from benchmarks.first_gpu_run.lab import Lab, ms, us
from benchmarks.first_gpu_run.record import Results

NODES = (300, 1650)  # of a draft step, as it should be and as it was
VALUES = (1, 6 * 3584)  # of a scalar, and of six rows of hidden states


def run(lab: Lab, out: Results) -> None:
    """Measure launches, waits, hand-overs between streams, and graphs of many small kernels."""
    one = torch.ones(1, device=lab.device)
    count = lab.choose(300, 10)
    out["launch_us"] = us(lab.wall_seconds(lambda: [one.add_(1) for _ in range(count)]) / count)
    lab.synchronize()
    began = time.perf_counter()
    for _ in range(count):
        one.add_(1)
    out["launch_host_us"] = us((time.perf_counter() - began) / count)
    lab.synchronize()
    out["item_us"] = us(lab.wall_seconds(lambda: [one.item() for _ in range(count)]) / count)
    out["kernel_and_wait_us"] = us(lab.wall_seconds(lambda: one.add_(1), times=50))
    event, streams = lab.event(), [lab.stream(), lab.stream()]

    def wait_for_events() -> None:
        for _ in range(count):
            event.record()
            event.synchronize()

    out["event_record_and_wait_us"] = us(lab.wall_seconds(wait_for_events) / count)

    def hand_over() -> None:
        for step in range(count):
            ready = lab.event()
            with lab.on(streams[step % 2]):
                one.add_(1)
                ready.record(streams[step % 2])
            streams[(step + 1) % 2].wait_event(ready)

    out["kernel_and_handover_us"] = us(lab.wall_seconds(hand_over) / count)
    _measure_graphs(lab, out)
    if not lab.is_dry:
        out["graph_of_300_beside_products_us"] = {
            name: _beside_products(lab, priority)
            for name, priority in (("equal priority", 0), ("higher priority", -1))
        }


def _measure_graphs(lab: Lab, out: Results) -> None:
    graphs: dict[str, dict[str, float]] = {}
    for nodes in lab.choose(NODES, (3, 6)):
        for size in VALUES:
            values = torch.ones(size, device=lab.device)
            began = time.perf_counter()
            replay = lab.capture([partial(values.add_, 1)] * nodes)
            captured = time.perf_counter() - began
            lab.synchronize()
            began = time.perf_counter()
            replay()
            host = time.perf_counter() - began
            seconds = lab.wall_seconds(replay)
            graphs[f"{nodes} kernels of {size} values"] = {
                "replay_us": us(seconds),
                "us_for_each": us(seconds / nodes),
                "host_us": us(host),
                "capture_ms": ms(captured),
            }
            out["graphs"] = graphs


def _beside_products(lab: Lab, priority: int) -> float:
    """Return the microseconds of a graph of 300 small kernels while products run beside it."""
    values = torch.ones(VALUES[1], device=lab.device)
    replay = lab.capture([lambda: values.add_(1)] * NODES[0])
    rows, weight = lab.random(64, 3584), lab.random(18_944, 3584)
    mine, other = lab.stream(priority), lab.stream()
    lab.synchronize()
    with lab.on(other):
        for _ in range(400):
            F.linear(rows, weight)
    with lab.on(mine):
        seconds = lab.event_seconds(replay)
    lab.synchronize()
    return us(seconds)
