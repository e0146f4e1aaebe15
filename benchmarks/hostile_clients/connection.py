"""Measure what one hostile connection costs the server and another client.

    python -m benchmarks.hostile_clients connection [--only NAME ...] [--seconds 10] [--json]

Each shape is sent over one connection to the real server with the demo model, one shape after the
other. Meanwhile the memory of the server's processes is read every 50 ms, and a
client in its own process sends `GET /health` every 20 ms over one connection. "Beside the body" is
the peak of the front end and its child processes without the engine, minus their memory before the
attack, minus the length of the body. "Not given back" is the memory that they have more than
before, up to ten seconds after the attack. The first line, "nothing", shows the machine without an
attack.

The exit code is 1 if a bar is missed. A server whose front end exceeds its bar by 4 GB is killed.
The server is started again for the next shape if it was killed, or if it keeps more memory than its
bar, because that would hide the memory that the next shape takes.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.command import print_figures
from benchmarks.hostile_clients.body_shapes import BODY_SHAPES
from benchmarks.hostile_clients.conversation_shapes import CONVERSATION_SHAPES
from benchmarks.hostile_clients.health_probe import Delays, health_probe
from benchmarks.hostile_clients.http_shapes import CHAT, HTTP_SHAPES
from benchmarks.hostile_clients.list_shapes import LIST_SHAPES
from benchmarks.hostile_clients.process_memory import PeakMemory
from benchmarks.hostile_clients.sender import Ending, attack
from benchmarks.hostile_clients.served_demo import ServedDemo, served_demo
from benchmarks.hostile_clients.shapes import Posted, Shape
from benchmarks.report_format import Bar, Figures, Table

SHAPES: tuple[Shape, ...] = (*HTTP_SHAPES, *BODY_SHAPES, *LIST_SHAPES, *CONVERSATION_SHAPES)
NOTHING = "nothing"

MB = 1_000_000
MOST_BESIDE_MB = 200.0
MOST_KEPT_MB = 50.0  # allocators keep a part of a peak
MOST_DELAY_MS = 200.0
GUARD_MB = 4_000.0  # above the bar; beyond it, the server is killed to save the machine
REST_SECONDS = 10.0
LEAST_REST_SECONDS = 2.0
CLIENT_TIMEOUT = 5.0  # the server's setting, so that slow clients are dropped within a run


@dataclass(frozen=True)
class Cost:
    """The cost of one shape."""

    name: str
    ending: Ending
    body_mb: float
    beside_mb: float  # the front end's peak
    engine_mb: float  # the engine's peak, over what it had before
    kept_mb: float | None  # not given back; None: the server has ended
    delays: Delays

    @property
    def faults(self) -> list[str]:
        """Return the names of the missed bars."""
        kept = float("inf") if self.kept_mb is None else self.kept_mb
        found = {
            "memory": self.beside_mb > MOST_BESIDE_MB,
            "kept": kept > MOST_KEPT_MB,
            "delay": self.delays.max_ms > MOST_DELAY_MS or self.delays.failures > 0,
        }
        return [name for name, is_missed in found.items() if is_missed]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _make_parser().parse_args(arguments)
    shapes = [shape for shape in SHAPES if _is_chosen(shape.name, options.only)]
    if options.list:
        print("\n".join(shape.name for shape in shapes))
        return 0
    with served_demo(CLIENT_TIMEOUT) as demo:
        costs = list(measure(demo, shapes, options.seconds, options.scale))
    figures = make_figures(costs)
    print_figures(figures, options)
    return int(not all(bar.is_reached for bar in figures.bars))


def measure(
    demo: ServedDemo, shapes: Sequence[Shape], seconds: float, scale: float
) -> Iterator[Cost]:
    """Yield the cost of no attack, then of each shape, with a server that is as before."""
    fresh = warm_up(demo)
    yield _print_cost(_measure_no_attack(demo, seconds))
    for shape in shapes:
        if demo.memory.read().front_end > fresh + MOST_KEPT_MB * MB:
            demo.kill()
        num_starts = demo.num_starts
        demo.ensure_running()
        if demo.num_starts > num_starts:
            fresh = warm_up(demo)
        yield _print_cost(measure_cost(demo, shape, seconds, scale))


def warm_up(demo: ServedDemo) -> int:
    """Send a large body and a chat, for which the server starts processes; return its memory."""
    padding = json.dumps({"padding": "a" * MB, "messages": [{"role": "user", "content": "hi"}]})
    for body in (padding, padding[:-1]):
        attack(demo.address.port, Posted("", CHAT, body.encode(), b" ", b"", 1), REST_SECONDS)
    return demo.memory.read().front_end


def measure_cost(demo: ServedDemo, shape: Shape, seconds: float, scale: float) -> Cost:
    """Send a shape, and measure the server until it has given its memory back."""
    nbytes = shape.nbytes(scale)
    limit = demo.memory.read().front_end + nbytes + int((MOST_BESIDE_MB + GUARD_MB) * MB)
    with (
        PeakMemory(demo.memory, limit, demo.kill) as memory,
        health_probe(demo.address.port) as delays,
    ):
        ending = attack(demo.address.port, shape, seconds, scale, lambda: memory.is_over_limit)
        kept = _await_rest(demo, memory)
    before, peak = memory.before, memory.peak
    return Cost(
        name=shape.name,
        ending=ending,
        body_mb=nbytes / MB,
        beside_mb=(peak.front_end - before.front_end - nbytes) / MB,
        engine_mb=(peak.engine - before.engine) / MB,
        kept_mb=kept,
        delays=delays,
    )


def _measure_no_attack(demo: ServedDemo, seconds: float) -> Cost:
    with health_probe(demo.address.port) as delays:
        time.sleep(seconds)
    return Cost(
        name=NOTHING,
        ending=Ending("answered"),
        body_mb=0.0,
        beside_mb=0.0,
        engine_mb=0.0,
        kept_mb=0.0,
        delays=delays,
    )


def _await_rest(demo: ServedDemo, memory: PeakMemory) -> float | None:
    """Wait until memory is given back, at most ten seconds; return the MB that are not."""
    until = time.monotonic() + REST_SECONDS
    time.sleep(LEAST_REST_SECONDS)  # the server may still process the request
    while True:
        time.sleep(0.1)
        now = demo.memory.read().front_end
        kept = (now - memory.before.front_end) / MB
        if now == 0:
            return None
        if time.monotonic() > until or kept < MOST_KEPT_MB / 5:
            return kept


def make_figures(costs: Sequence[Cost]) -> Figures:
    """Return the figures: a table of the shapes, and the worst of each figure with its bar."""
    attacks = [cost for cost in costs if cost.name != NOTHING]
    kept = [float("inf") if cost.kept_mb is None else cost.kept_mb for cost in attacks]
    return Figures(
        name="hostile_clients.connection",
        title="What one hostile connection costs the server and others",
        values={
            "shapes": len(attacks),
            "missed": sum(bool(cost.faults) for cost in attacks),
            "load_average": os.getloadavg()[0],  # other load delays answers too
        },
        tables=[Table("Each shape", COLUMNS, [_row(cost) for cost in costs])],
        bars=[
            Bar(
                "front-end memory beside the body, at the peak",
                max((cost.beside_mb for cost in attacks), default=0.0),
                "<=",
                MOST_BESIDE_MB,
                "MB",
            ),
            Bar(
                "memory not given back after ten seconds",
                max(kept, default=0.0),
                "<=",
                MOST_KEPT_MB,
                "MB",
            ),
            Bar(
                "delay of another client's GET /health",
                max((cost.delays.max_ms for cost in attacks), default=0.0),
                "<=",
                MOST_DELAY_MS,
                "ms",
            ),
            Bar(
                "requests of that client that were not answered",
                float(sum(cost.delays.failures for cost in attacks)),
                "<=",
                0.0,
            ),
        ],
    )


COLUMNS = (
    "shape",
    "ended",
    "seconds",
    "sent MB",
    "body MB",
    "beside the body MB",
    "engine MB",
    "not given back MB",
    "health median ms",
    "health max ms",
    "missed",
)


def _row(cost: Cost) -> list[str | float | None]:
    return [
        cost.name,
        str(cost.ending),
        cost.ending.seconds,
        cost.ending.sent / MB,
        cost.body_mb,
        cost.beside_mb,
        cost.engine_mb,
        cost.kept_mb,
        cost.delays.median_ms,
        cost.delays.max_ms,
        ", ".join(cost.faults) or None,
    ]


def _print_cost(cost: Cost) -> Cost:
    """Print a line about a shape, and return its cost."""
    kept = "server ended" if cost.kept_mb is None else f"{cost.kept_mb:.0f} MB kept"
    words = [
        f"{cost.name}: {cost.ending} in {cost.ending.seconds:.1f} s",
        f"{cost.beside_mb:.0f} MB beside the body",
        kept,
        f"health at most {cost.delays.max_ms:.0f} ms",
        *(["MISSED: " + " and ".join(cost.faults)] if cost.faults else ()),
    ]
    print(", ".join(words), file=sys.stderr, flush=True)
    return cost


def _is_chosen(name: str, wanted: Sequence[str] | None) -> bool:
    return not wanted or any(word in name for word in wanted)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hostile_clients connection",
        description=(__doc__ or "").split("\n")[0],
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="shapes whose names contain NAME")
    parser.add_argument("--list", action="store_true", help="only print the names of the shapes")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="duration of a shape without an end"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the sizes of bodies")
    return parser


if __name__ == "__main__":
    sys.exit(main())
