"""Compute the figures of `benchmarks.offload`: medians, ratios, efficiency."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.peers.engines import Length, Setting
from benchmarks.peers.job import Answer, Outcome
from benchmarks.random_model import Checkpoint
from benchmarks.recording import Recording
from benchmarks.report_format import Bar, Figures, Plot, Table
from benchmarks.runs import describe_machine

COLUMNS = (
    "engine",
    "tokens/s",
    "A",
    "W GB",
    "B GB/s",
    "draft ms",
    "pass ms",
    "compute ms",
    "efficiency",
    "read GB per pass",
    "peak GB",
    "same tokens",
)
BARS = {  # A of replay -> (other engine, least ratio of tokens/s)
    8: (("llama.cpp bf16", 5.0), ("accelerate", 8.0), ("none", 3.5)),
    28: (("llama.cpp bf16", 12.0), ("accelerate", 20.0), ("none", 8.0)),
}
LEAST_EFFICIENCY = 0.9  # for subspec


@dataclass(frozen=True)
class Trial:
    """The outcome of one process of one engine."""

    engine: str
    outcome: Outcome
    peak_bytes: int  # peak of the memory that is not page cache; 0: not measured


@dataclass(frozen=True)
class Round:
    """One run of each engine, in turn."""

    setting: Setting
    disk_gbps: float  # B, measured with the same limits
    trials: tuple[Trial, ...]
    load_average: float


@dataclass(frozen=True)
class Row:
    """The figures of one engine, or of one A of replay, in one round, without the prompt's pass."""

    name: str
    tokens_per_second: float
    tokens_per_pass: float  # A
    streamed_gb: float  # W: the weights that a pass must read
    disk_gbps: float  # B
    draft_ms: float  # per pass, not hidden
    pass_ms: float
    compute_ms: float  # of a pass, without waiting for weights; 0: unknown
    read_gb: float  # per pass, from disk
    peak_gb: float
    same_tokens: float  # share of the tokens that equal the recorded ones

    @property
    def efficiency(self) -> float:
        """Return tokens/s divided by A / (draft not hidden + max(W / B, compute)), or NaN."""
        pass_s = max(self.streamed_gb / self.disk_gbps, self.compute_ms / 1e3)
        if not pass_s:
            return float("nan")
        limit = self.tokens_per_pass / (self.draft_ms / 1e3 + pass_s)
        return self.tokens_per_second / limit

    def cells(self) -> list[Any]:
        """Return the figures in the order of `COLUMNS`."""
        own = (self.name, self.tokens_per_second, self.tokens_per_pass, self.streamed_gb)
        times = (self.disk_gbps, self.draft_ms, self.pass_ms, self.compute_ms, self.efficiency)
        return [*own, *times, self.read_gb, self.peak_gb, self.same_tokens]


def make_figures(
    rounds: Sequence[Round], checkpoint: Checkpoint, recordings: Sequence[Recording], length: Length
) -> Figures:
    """Return a table and a plot for each setting, and bars for the limited one."""
    settings = {one.setting.name: one.setting for one in rounds}
    tables, bars, plots, details = [], [], [], {}
    for name, setting in settings.items():
        own = [one for one in rounds if one.setting == setting]
        rows = compute_medians([_rows(one, recordings) for one in own])
        cells = [row.cells() for row in rows.values()]
        tables.append(Table(f"{_caption(setting)}, {len(own)} rounds", COLUMNS, cells))
        details[name] = {
            row.name: dict(zip(COLUMNS, row.cells(), strict=True)) for row in rows.values()
        }
        plots.append(_plot(name, rows))
        if name == "limited":
            bars = make_bars(rows)
    return Figures(
        name="offload",
        title="A model that does not fit, compared with other engines",
        values={
            "parameters_billion": checkpoint.num_parameters / 1e9,
            "checkpoint_gb": checkpoint.nbytes / 1e9,
            "nats_per_token": statistics.fmean(
                recording.entropy(length.drafted) for recording in recordings[: length.prompts]
            ),
            "load_average": max(one.load_average for one in rounds),
        },
        tables=tables,
        bars=bars,
        plots=[plot for plot in plots if plot.lines],
        notes=_notes(length, rounds),
        machine={**describe_machine(), "versions": _versions(rounds)},
    )


def make_bars(rows: dict[str, Row]) -> list[Bar]:
    """Return the bars whose engines were measured."""
    bars = []
    for mean, against in BARS.items():
        ours = rows.get(f"replay A={mean}")
        for other, least in against:
            if ours is not None and other in rows:
                ratio = ours.tokens_per_second / rows[other].tokens_per_second
                bars.append(Bar(f"A = {mean} against {other}, tokens/s", ratio, ">=", least, "x"))
    if "subspec" in rows:
        value = rows["subspec"].efficiency
        bars.append(Bar("efficiency of subspec", value, ">=", LEAST_EFFICIENCY))
    return bars


def compute_medians(rounds: Sequence[Sequence[Row]]) -> dict[str, Row]:
    """Return each row's medians by its name, over the rounds that have the row."""
    names = dict.fromkeys(row.name for rows in rounds for row in rows)
    result = {}
    for name in names:
        same = [row for rows in rounds for row in rows if row.name == name]
        values = {
            key: statistics.median(getattr(row, key) for row in same)
            for key in vars(same[0])
            if key != "name"
        }
        result[name] = Row(name=name, **values)
    return result


def _rows(one: Round, recordings: Sequence[Recording]) -> list[Row]:
    rows = []
    for trial in one.trials:
        if trial.engine == "replay":
            groups = {f"replay {answer.label}": [answer] for answer in trial.outcome.answers}
        else:
            groups = {trial.engine: list(trial.outcome.answers)}
        rows += [_row(name, own, trial, one, recordings) for name, own in groups.items()]
    return set_best_link(rows)


def set_best_link(rows: Sequence[Row]) -> list[Row]:
    """Set B of all rows to the best of the round, because a disk's bandwidth varies.

    The best is the largest bandwidth that the probe or an engine got.
    """
    got = [row.read_gb * 1e3 / (row.draft_ms + row.pass_ms) for row in rows if row.pass_ms]
    best = max([*got, *(row.disk_gbps for row in rows)], default=0.0)
    return [replace(row, disk_gbps=best) for row in rows]


def _row(
    name: str,
    answers: Sequence[Answer],
    trial: Trial,
    one: Round,
    recordings: Sequence[Recording],
) -> Row:
    passes = max(sum(answer.passes for answer in answers), 1)
    tokens = sum(answer.num_tokens for answer in answers)
    seconds = sum(answer.seconds for answer in answers)
    figure = _mean_of(answers, passes)
    draft_ms = figure("draft_ms")
    pass_ms = figure("pass_ms") or seconds / passes * 1e3 - draft_ms
    read_gb = sum(answer.disk_bytes for answer in answers) / passes / 1e9
    streamed = trial.outcome.figures.get("streamed_bytes")  # other engines: what they read
    return Row(
        name=name,
        tokens_per_second=tokens / seconds if seconds else float("nan"),
        tokens_per_pass=tokens / passes,
        streamed_gb=read_gb if streamed is None else streamed / 1e9,
        disk_gbps=one.disk_gbps,
        draft_ms=draft_ms,
        pass_ms=pass_ms,
        compute_ms=max(figure("pass_ms") - figure("copy_stall_ms"), 0.0),
        read_gb=read_gb,
        peak_gb=trial.peak_bytes / 1e9,
        same_tokens=_compute_agreement(answers, recordings, trial.engine == "replay"),
    )


def _mean_of(answers: Sequence[Answer], passes: int) -> Callable[[str], float]:
    """Return a function from a figure's name to its mean over all passes, 0 if it is missing."""
    return lambda name: sum(answer.figures.get(name, 0.0) for answer in answers) / passes


def _compute_agreement(
    answers: Sequence[Answer], recordings: Sequence[Recording], replayed: bool
) -> float:
    """Return the share of the tokens before the first that differs from the recording."""
    same = total = 0
    for answer in answers:
        number = -1 if replayed else int(answer.label.removeprefix("prompt "))
        expected = recordings[number].answer[: len(answer.tokens)]
        pairs = enumerate(zip(answer.tokens, expected, strict=True))
        same += next((i for i, (own, other) in pairs if own != other), len(expected))
        total += len(expected)
    return same / total


def _caption(setting: Setting) -> str:
    if setting.limit_bytes is None:
        return "Everything resident, no limit"
    memory = f"Memory limit {setting.limit_bytes / 1e9:.2f} GB"
    if setting.read_gbps is None:
        return f"{memory}, reads without a limit"
    return f"{memory}, reads at most {setting.read_gbps:g} GB/s"


def _plot(setting: str, rows: dict[str, Row]) -> Plot:
    """Plot tokens/s over A: replay as a line, the other engines as points."""
    replayed = [row for name, row in rows.items() if name.startswith("replay")]
    lines = {"replay": [(row.tokens_per_pass, row.tokens_per_second) for row in replayed]}
    lines |= {
        name: [(row.tokens_per_pass, row.tokens_per_second)]
        for name, row in rows.items()
        if not name.startswith("replay")
    }
    shown = {name: points for name, points in lines.items() if points}
    return Plot(f"offload {setting}", "tokens per pass", "tokens/s", shown)


def _notes(length: Length, rounds: Sequence[Round]) -> list[str]:
    plans = {
        trial.engine: str(trial.outcome.figures["plan"])
        for one in rounds
        for trial in one.trials
        if "plan" in trial.outcome.figures and one.setting == rounds[0].setting
    }
    return [
        "Greedy answers to chats that the demo model was not trained on. No figure includes the "
        f"prompt's pass. Engines without a draft write {length.plain} tokens per round "
        f"({length.quick} if they are quick); engines with a draft write up to {length.drafted} "
        f"tokens of one of {length.prompts} answers in turn; replay runs {length.replayed} passes "
        "of each A. W of another engine is what it read per pass. Efficiency is tokens/s divided "
        "by A / (draft not hidden + max(W / B, compute)). "
        "B is the largest bandwidth that the probe or an engine got in the round. `same tokens` is "
        "the share of tokens before the first that differs from plain decoding under strict "
        "numerics.",
        *(f"{engine}: {plan}." for engine, plan in plans.items()),
    ]


def _versions(rounds: Sequence[Round]) -> dict[str, str]:
    return {
        trial.engine: str(trial.outcome.figures["version"])
        for one in rounds
        for trial in one.trials
        if "version" in trial.outcome.figures
    }
