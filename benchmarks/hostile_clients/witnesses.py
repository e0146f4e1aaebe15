"""Check that hostile clients neither change nor lose the answers of well-behaved clients.

    python -m benchmarks.hostile_clients witnesses [--seconds 600] [--seeds 6] [--json]

The real server with the demo model first answers a fixed set of requests twice, without other load.
Then, for each seed, hostile clients do at random what `hostile_swarm` lists, and well-behaved
clients ("witnesses") send the same requests again. An answer is altered if it differs in anything
but ids, times and usage. A request is lost if no whole answer with status 200 has come within two
minutes; after a 503 with Retry-After it is sent again, as official clients do, within these
minutes.

The exit code is 1 if an answer was altered or lost, a process of the server had to be started
again, or the server is not idle and healthy at the end.
"""

import argparse
import asyncio
import contextlib
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.command import print_figures, print_progress
from benchmarks.hostile_clients.hostile_swarm import Sent, hostile_swarm
from benchmarks.hostile_clients.process_memory import Memory
from benchmarks.hostile_clients.questions import Question, list_questions
from benchmarks.hostile_clients.served_demo import Address, ServedDemo, served_demo
from benchmarks.hostile_clients.witness_clients import (
    Lost,
    Witnessed,
    record_references,
    run_witness,
)
from benchmarks.report_format import Bar, Figures, Table

MB = 1_000_000
CLIENT_TIMEOUT = 10.0  # the server's setting, short enough to drop stalled clients within a run
PROGRESS_SECONDS = 10.0
PAGES_APART = 4  # KV pages by which two runs of a request may differ, as their last trees may
IDLE_SECONDS = 60.0  # in which the server must drop the requests of hostile clients
MOST_FRONT_END_BYTES = 6_000 * MB  # beyond it, the server is killed to save the machine


@dataclass(frozen=True)
class Round:
    """The results of one seed."""

    seed: int
    seen: Witnessed
    sent: Sent
    front_end_restarts: int
    engine_restarts: int
    before: Memory
    after: Memory
    faults: Sequence[str]  # of the server after the clients had left


def main(arguments: Sequence[str] | None = None) -> int:
    options = _make_parser().parse_args(arguments)
    asked = list_questions()
    with served_demo(CLIENT_TIMEOUT) as demo:
        known = asyncio.run(record_references(demo.address.port, asked))
        pages = measure_pages(demo.address)
        print_progress(f"{len(known)} answers of a quiet server")
        rounds: list[Round] = []
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            rounds.append(run_round(demo, asked, known, pages, seed, options))
            _print_round(rounds[-1])
    figures = make_figures(rounds, options)
    print_figures(figures, options)
    return int(not all(bar.is_reached for bar in figures.bars))


def run_round(
    demo: ServedDemo,
    asked: Sequence[Question],
    known: Mapping[str, Any],
    quiet_pages: float,
    seed: int,
    options: argparse.Namespace,
) -> Round:
    """Run hostile clients and witnesses with one seed, then wait until the server is idle."""
    port = demo.ensure_running().port
    restarts, starts, before = _engine_restarts(demo), demo.num_starts, demo.memory.read()
    seen = Witnessed()
    with hostile_swarm(port, seed, options.hostile, options.seconds) as sent:
        asyncio.run(_run_witnesses(demo, asked, known, seed, seen, options))
    faults = find_faults(demo, quiet_pages)
    demo.ensure_running()
    if demo.num_starts > starts:
        restarts = 0.0  # the new server counts from zero
    return Round(
        seed=seed,
        seen=seen,
        sent=sent,
        front_end_restarts=demo.num_starts - starts,
        engine_restarts=int(_engine_restarts(demo) - restarts),
        before=before,
        after=demo.memory.read(),
        faults=faults,
    )


async def _run_witnesses(
    demo: ServedDemo,
    asked: Sequence[Question],
    known: Mapping[str, Any],
    seed: int,
    seen: Witnessed,
    options: argparse.Namespace,
) -> None:
    """Run all witnesses, and print their progress."""
    port = demo.address.port
    watching = asyncio.create_task(_watch(demo, seed, seen, options))
    try:
        await asyncio.gather(
            *(
                run_witness(port, asked, known, options.seconds, random.Random(f"{seed} {n}"), seen)
                for n in range(options.witnesses)
            )
        )
    finally:
        watching.cancel()


async def _watch(demo: ServedDemo, seed: int, seen: Witnessed, options: argparse.Namespace) -> None:
    """Print progress, and kill a server that uses too much of the machine's memory."""
    began = printed = time.monotonic()
    while True:
        await asyncio.sleep(0.1)
        memory = demo.memory.read().front_end
        if memory > MOST_FRONT_END_BYTES:
            seen.fail("the front end took more than 6 GB and was killed")
            demo.kill()
        if time.monotonic() - printed >= PROGRESS_SECONDS:
            printed = time.monotonic()
            seeds_after = options.first_seed + options.seeds - seed - 1
            left = max(0.0, options.seconds - (printed - began)) + seeds_after * options.seconds
            print_progress(
                f"seed {seed}: {left:.0f} s left in all, {seen.asked} asked, "
                f"{seen.altered} altered, {seen.lost} lost, front end {memory / MB:.0f} MB"
            )


def find_faults(demo: ServedDemo, quiet_pages: float) -> list[str]:
    """Return what is wrong with the server after its clients have left and it could become idle."""
    until = time.monotonic() + IDLE_SECONDS
    while (faults := _find_faults(demo.address, quiet_pages)) and time.monotonic() < until:
        time.sleep(1.0)
    return faults


def _find_faults(address: Address, quiet_pages: float) -> list[str]:
    try:
        address.get("/health")
        address.get("/ready")
        held = {
            "requests in the engine": address.metric("understudy_requests_in_engine"),
            "requests that wait": address.metric("understudy_requests_waiting"),
            "KV pages": measure_pages(address) - quiet_pages - PAGES_APART,
        }
    except (OSError, Lost) as error:
        return [f"the server does not answer: {error}"]
    return [f"{count:.0f} {what} of an idle server" for what, count in held.items() if count > 0]


def measure_pages(address: Address) -> float:
    """Return the KV pages in use during the last pass of a request that ran alone.

    More pages than on a quiet server mean that another sequence still holds some. Idle pages of the
    prefix cache do not count.
    """
    asyncio.run(record_references(address.port, list_questions()[:1]))
    return address.metric("understudy_kv_pages_used")


def _engine_restarts(demo: ServedDemo) -> float:
    with contextlib.suppress(OSError):
        return demo.address.metric("understudy_engine_restarts_total")
    return 0.0


def make_figures(rounds: Sequence[Round], options: argparse.Namespace) -> Figures:
    """Return the figures: a table of the seeds, and the bars."""
    totals = {
        "answers altered": sum(one.seen.altered for one in rounds),
        "requests lost": sum(one.seen.lost for one in rounds),
        "restarts of the front end": sum(one.front_end_restarts for one in rounds),
        "restarts of the engine": sum(one.engine_restarts for one in rounds),
        "faults of the idle server after a seed": sum(len(one.faults) for one in rounds),
    }
    return Figures(
        name="hostile_clients.witnesses",
        title="Well-behaved clients while hostile clients attack",
        values={
            "seconds_each": options.seconds,
            "hostile_clients": options.hostile,
            "witnesses": options.witnesses,
        },
        tables=[Table("Each seed", COLUMNS, [_row(one) for one in rounds])],
        bars=[Bar(what, float(count), "<=", 0.0) for what, count in totals.items()],
        notes=[failure for one in rounds for failure in [*one.seen.failures, *one.faults]],
    )


COLUMNS = (
    "seed",
    "asked",
    "altered",
    "lost",
    "503s followed",
    "slowest s",
    "hostile requests",
    "front-end restarts",
    "engine restarts",
    "front end MB before, after",
    "engine MB before, after",
)


def _row(one: Round) -> list[str | int | float]:
    seen = one.seen
    return [
        one.seed,
        seen.asked,
        seen.altered,
        seen.lost,
        seen.refused,
        seen.slowest_seconds,
        one.sent.requests,
        one.front_end_restarts,
        one.engine_restarts,
        f"{one.before.front_end / MB:.0f}, {one.after.front_end / MB:.0f}",
        f"{one.before.engine / MB:.0f}, {one.after.engine / MB:.0f}",
    ]


def _print_round(one: Round) -> None:
    pairs = zip(COLUMNS, _row(one), strict=True)
    print_progress("; ".join(f"{name} {value}" for name, value in pairs))
    print_progress(f"  manners: {dict(one.sent.by_manner)}\n  statuses: {dict(one.sent.by_status)}")
    for failure in [*one.seen.failures, *one.faults]:
        print_progress(f"  {failure}")


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hostile_clients witnesses",
        description=(__doc__ or "").split("\n")[0],
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.add_argument("--seconds", type=float, default=600.0, help="duration of each seed")
    parser.add_argument("--seeds", type=int, default=6, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=1, help="the first seed")
    parser.add_argument("--hostile", type=int, default=24, help="number of hostile clients")
    parser.add_argument("--witnesses", type=int, default=8, help="number of well-behaved clients")
    return parser


if __name__ == "__main__":
    sys.exit(main())
