"""Check the simulation of replicas against three real servers.

    python -m benchmarks.cluster_check [--seconds 300] [--json]

Three servers of the demo's model are peers; the link of each is simulated and so slow that its
engine waits most of the time, so that two cores are enough for all. Sessions of several turns come
to the first server, at a rate at which some requests wait. Then `benchmarks.cluster_traffic` gets
the same sessions, and the speeds that were measured in the run, and simulates three replicas.
"""

import asyncio
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

from benchmarks.cluster_sessions import Traffic
from benchmarks.cluster_sim import Estimated, percentile
from benchmarks.cluster_traffic import Outcome, Scenario, simulate
from benchmarks.command import make_parser, print_figures
from benchmarks.real_replicas import Measured, Sizes, running
from benchmarks.report_format import Figures, Table
from benchmarks.runs import DEMO, describe_machine, ram_spec
from benchmarks.simulated_replicas import Speeds
from engine.messages import PassStats
from engine.spec import DraftSpec
from engine.timing import StepTimes

SERVERS = 3
LINK_GBPS = 0.02  # the 8 MB of a pass take 0.4 s
SEQUENCES = 4  # of each server
TRAFFIC = Traffic(
    rate=0.28,
    added=(4.2, 0.7),
    templates=2,
    template_tokens=640,
    more_turns=2.0,
    answer=24.0,
    pause=4.0,
    longest=2048,
)
SECONDS = 300.0  # in which sessions begin
SIMULATED = 10  # times as long as sessions begin, so that all end


def main() -> None:
    arguments = make_parser(__doc__, takes_model=False, takes_rounds=False)
    arguments.add_argument("--seconds", type=float, default=SECONDS, help="while sessions begin")
    options = arguments.parse_args()
    print_figures(measure(TRAFFIC, options.seconds), options)


def measure(traffic: Traffic, seconds: float) -> Figures:
    """Run the sessions that begin in this time on servers and in the simulation; compare them."""
    plans = list(takewhile(lambda own: own.begins < seconds, traffic.sessions()))
    spec = replace(
        ram_spec(DEMO / "target", DraftSpec("none"), gbps=LINK_GBPS, max_sequences=SEQUENCES),
        id="demo",
        prefix_cache=True,
    )
    with running(spec, SERVERS) as servers:
        real = asyncio.run(servers.run(plans))
    speeds = measured_speeds(real.passes, real.sizes)
    scenario = Scenario(
        SERVERS,
        seconds=SIMULATED * seconds,
        mean_life=0.0,
        way_seconds=statistics.median(real.ways),
    )
    simulated = simulate(scenario, plans, speeds, Estimated())
    return _figures(real, simulated, speeds, len(plans))


def measured_speeds(passes: Sequence[PassStats], sizes: Sizes) -> Speeds:
    """Return the speeds that engines have shown in these passes, as medians."""
    plain = [own for own in passes if not own.prompt_rows]
    of_rows: dict[int, list[PassStats]] = defaultdict(list)
    for own in passes:
        of_rows[(own.rows - 1).bit_length()].append(own)
    rows = StepTimes()
    for alike in of_rows.values():
        computing = statistics.median(map(_computing_seconds, alike))
        rows.observe(round(statistics.median(own.rows for own in alike)), computing)
    return Speeds(
        link_seconds=statistics.median(own.draft_ms + own.pass_ms for own in plain) / 1e3,
        host_seconds=0.0,  # it is in the passes' time
        rows=rows,
        pair_seconds=0.0,  # contexts are short
        tree_rows=round(sum(own.rows for own in plain) / sum(own.sequences for own in plain)),
        tokens_per_pass=sum(own.accepted for own in plain) / sum(own.sequences for own in plain),
        max_sequences=sizes.max_sequences,
        max_rows=max(own.rows for own in passes),
        pages=sizes.pages,
        longest=sizes.longest,
    )


def _computing_seconds(own: PassStats) -> float:
    """Return the seconds of a pass without those in which it waited for weights."""
    return max(own.draft_ms + own.pass_ms - own.copy_stall_ms - own.ahead_ms, 0.0) / 1e3


def _figures(real: Measured, simulated: Outcome, speeds: Speeds, sessions: int) -> Figures:
    seconds = [(own.draft_ms + own.pass_ms) / 1e3 for own in real.passes]
    waiting = sum(own.copy_stall_ms for own in real.passes) / 1e3 / sum(seconds)
    rows = [
        [name, found, expected, expected / found]
        for (name, found), expected in zip(
            summary(real.outcome).items(), summary(simulated).values(), strict=True
        )
    ]
    return Figures(
        name="cluster_check",
        title="The simulation of replicas and three real servers",
        values={
            "sessions": sessions,
            "requests": len(real.outcome.first_token),
            "link_gbps": LINK_GBPS,
            "pass_seconds": speeds.link_seconds,
            "share_of_time_that_passes_wait": waiting,
            "seconds_to_the_engine": statistics.median(real.ways),
            "tokens_per_pass": speeds.tokens_per_pass,
            "sequences": speeds.max_sequences,
            "pages": speeds.pages,
        },
        tables=[
            Table(
                "The same sessions",
                ["", "three servers", "simulation", "simulation / servers"],
                rows,
            )
        ],
        machine=describe_machine(),
    )


def summary(outcome: Outcome) -> dict[str, float]:
    """Return the figures that are compared."""
    return {
        "requests": float(len(outcome.first_token)),
        "first token p50 (s)": percentile(outcome.first_token, 0.5),
        "first token p90 (s)": percentile(outcome.first_token, 0.9),
        "first token mean (s)": statistics.fmean(outcome.first_token),
        "prompt tokens stored": outcome.cached_tokens / outcome.prompt_tokens,
        "later turns that returned": outcome.returned / max(1, outcome.later_turns),
        "tokens/s of an answer": statistics.fmean(outcome.rates),
    }


if __name__ == "__main__":
    main()
