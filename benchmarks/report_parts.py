"""The benchmarks that the report runs, their arguments, and the readers of their output."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.report_format import Bar, Figures, Table

Group = Literal["bench", "memory", "hybrids", "coded", "peers", "gpu", "hostile"]

MEMORY_WITHIN = 0.05  # |peak / plan - 1|, at most
HOST_MS = {4_096: 4.0, 152_064: 20.0}  # vocabulary -> host time of a pass, at most


@dataclass(frozen=True)
class Part:
    """One module of `benchmarks` that the report runs in its own process."""

    name: str
    minutes: float  # about, on two quiet cores
    group: Group = "bench"
    arguments: Sequence[str] = ()
    read: Callable[[Any], Figures] = Figures.from_json


def read_demo(data: Sequence[Mapping[str, Any]]) -> Figures:
    """Read the output of `benchmarks.demo`: a row for each model, prompt set and temperature."""
    columns = ("model", "prompts", "temperature", "answers", "tokens", "tokens_per_pass")
    return Figures(
        name="demo",
        title="Tokens per pass of the demo model",
        values={},
        tables=[Table("", _headings(columns), _cells(data, columns))],
    )


def read_plan_memory(data: Sequence[Mapping[str, Any]]) -> Figures:
    """Read the output of `benchmarks.plan_memory`: a report for each process."""
    columns = ("method", "tier", "planned_mb", "peak_mb", "ratio")
    rows = [
        {**report, "planned_mb": report["planned"] / 1e6, "peak_mb": report["peak"] / 1e6}
        for report in data
    ]
    farthest = max(abs(report["ratio"] - 1) for report in data)
    return Figures(
        name="plan_memory",
        title="Peak memory compared with the plan",
        values={"parameters": data[0]["parameters"]},
        tables=[Table("Each process", _headings(columns), _cells(rows, columns))],
        bars=[Bar("peak memory, farthest from the plan", farthest, "<=", MEMORY_WITHIN)],
    )


def read_host_time(data: Mapping[str, Any]) -> Figures:
    """Read the output of `benchmarks.host_time`: a row for each vocabulary."""
    rows: Sequence[Mapping[str, Any]] = data["rows"]
    columns = [name for name, value in rows[0].items() if isinstance(value, int | float)]
    return Figures(
        name="host_time",
        title="Host time of a pass without layers, norm and head",
        values={},
        tables=[Table("Medians of the passes", _headings(columns), _cells(rows, columns))],
        bars=[
            Bar(f"host time of a pass, V = {size:,}", row["host_ms"], "<=", HOST_MS[size], "ms")
            for row in rows
            if (size := row["vocabulary"]) in HOST_MS
        ],
        machine=data["machine"],
    )


def read_sampling(data: Mapping[str, Any]) -> Figures:
    """Read the output of `benchmarks.sampling`: a row for each setting, greedy first."""
    rows: Sequence[Mapping[str, Any]] = data["rows"]
    columns = [name for name in rows[0] if name != "at_least"]
    return Figures(
        name="sampling",
        title="Sampled text: drafts with the noise of the target, or with independent noise",
        values={name: data[name] for name in ("positions", "entropy_nats")},
        tables=[Table("Each setting", _headings(columns), _cells(rows, columns))],
        bars=[
            Bar(
                f"hit rate at {row['setting']} over greedy", row["of_greedy"], ">=", row["at_least"]
            )
            for row in rows
            if row["at_least"] is not None
        ],
        machine=data["machine"],
    )


# The parts in the order of the page. `make bench` may take 15 minutes, `make bench-peers` an hour.
PARTS: tuple[Part, ...] = (
    Part("offload", 55, "peers", ("--folder", "build/benchmarks/offload")),
    Part("link", 2.2),
    Part("batch", 2.3),
    Part("sampling", 1.8, read=read_sampling),
    Part("tuning", 2.3),
    Part("prefill", 2.4),
    Part("serve", 1.5),
    Part("front_end", 0.3),
    Part("host_time", 1, read=read_host_time),
    Part(
        "plan_memory",
        8,
        "memory",
        arguments=("--folder", "build/benchmarks/plan-memory", "--runs", "1"),
        read=read_plan_memory,
    ),
    Part("hybrids", 4, "hybrids"),
    Part("coded", 40, "coded"),
    Part("expansion", 0.2),
    Part("demo", 1, arguments=("--prompts", "8"), read=read_demo),
    Part("first_gpu_run", 9, "gpu"),
    Part("hostile_clients.connection", 30, "hostile"),
    Part("hostile_clients.witnesses", 65, "hostile"),
)


def _headings(columns: Sequence[str]) -> list[str]:
    return [name.replace("_", " ") for name in columns]


def _cells(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[list[Any]]:
    return [[row[name] for name in columns] for row in rows]
