"""The summary of the stages' records: each figure beside its bar, as Markdown. Imports no torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.first_gpu_run.record import Record, read_record
from benchmarks.first_gpu_run.stages import FULL_SUMS, STAGES, TEST_PROCESSES
from benchmarks.report_format import Bar, Figures, Table

SUMMARY = "summary.md"
OTHERS = ("bfloat16", "library")  # products that the draft does not take
MOST_PASS = MOST_STRICT = 1.05
MOST_READING = 1.5
LEAST_GAIN = 1.5
LEAST_CODED = 1.8
LEAST_CODED_SPEED = 1.4
SETTINGS = ("ours fast", "ours strict", "serial fast", "plain fast", "plain strict", "small")

Records = Mapping[str, Record]


def write_summary(folder: Path, device: str) -> tuple[Figures, Path]:
    """Write the summary of the records in a folder, and return its figures and its path."""
    found = {stage.name: read_record(folder, stage.name) for stage in STAGES}
    figures = summarize({name: own for name, own in found.items() if own is not None}, device)
    path = folder / SUMMARY
    bars = "\n".join(f"- {bar}" for bar in figures.bars) or "No figure with a bar was measured."
    rest = replace(figures, bars=())
    path.write_text(f"# {figures.title}\n\n{bars}\n\n{rest}\n", encoding="utf-8")
    return figures, path


def summarize(records: Records, device: str) -> Figures:
    """Return the figures of all records with their bars."""
    machine = _value(records, "machine", "machine") or {}
    is_dry = device == "cpu"
    notes = ["This is a dry run on a CPU: only what ran and what failed means something."]
    unmeasured = [name for name, value, _, _ in _bars(records) if value is None]
    if unmeasured:
        notes.append("Not measured: " + "; ".join(unmeasured) + ".")
    return Figures(
        name="first_gpu_run",
        title=f"First GPU run: {'dry run' if is_dry else machine.get('gpu', device)}",
        values=dict(_values(records)),
        tables=[
            _table_of_stages(records),
            _table_of_settings(records),
            *_tables_of_kernels(records),
            *_tables_of_problems(records),
            *_tables_of_costs(records),
        ],
        bars=[
            Bar(name, value, relation, bound)
            for name, value, relation, bound in _bars(records)
            if value is not None
        ],
        notes=notes if is_dry else notes[1:],
        machine=machine,
    )


def _bars(records: Records) -> Iterator[tuple[str, float | None, Any, float]]:
    """Yield the name, the figure or None if there is none, the relation and the bound of each."""
    for numerics in ("strict", "fast"):
        value = _value(records, f"engine_plain_{numerics}", "pass_over_travel")
        yield f"pass / (W / measured bandwidth), {numerics}", value, "<=", MOST_PASS
    value = _value(records, "engine_serial_fast", "step_over_reading")
    yield "draft step / time to read its bytes", value, "<=", MOST_READING
    ours, strict, serial = (
        _value(records, f"engine_{name}", "one user", "tokens_per_second")
        for name in ("ours_fast", "ours_strict", "serial_fast")
    )
    yield "one user / serial SubSpec schedule", _ratio(ours, serial), ">=", LEAST_GAIN
    yield "strict against fast, time of a token", _ratio(ours, strict), "<=", MOST_STRICT
    fast, strict = (
        _value(records, f"engine_plain_{name}", "prompt", "first_token_seconds")
        for name in ("fast", "strict")
    )
    yield "strict against fast, 4,000-token prompt", _ratio(strict, fast), "<=", MOST_STRICT
    yield from _product_bars(records)
    for rows in (64, 256):
        yield f"products in which a row's bits change, {rows} rows", _wrong(records, rows), "<=", 0
    names = [f"tests_{number}" for number in range(1, TEST_PROCESSES + 1)]
    yield "GPU tests that failed or did not end", _failures(records, names), "<=", 0
    races = _failures(records, ["sanitizer"])
    yield "tests that failed or did not end under the checker of races", races, "<=", 0
    yield "strict answers that depend on draft or users", _different_answers(records), "<=", 0
    equal = _value(records, "engine_memory", "afterwards", "answers_are_equal")
    yield "answers changed by memory that ran out", None if equal is None else 1 - equal, "<=", 0
    yield from _coding_bars(records)


def _product_bars(records: Records) -> Iterator[tuple[str, float | None, Any, float]]:
    """Yield the bar of the draft's products of six rows, by the best kernel of each shape."""
    best: dict[str, float] = {}
    for name, cells in _results(records, "products").items():
        kernel, _, shape = name.partition(", ")
        if isinstance(cells, dict) and "6 rows" in cells and not kernel.startswith(OTHERS):
            ratio = cells["6 rows"]["of_reading"]
            best[shape] = min(ratio, best.get(shape, ratio))
    worst = max(best.values(), default=None)
    yield "4-bit products of 6 rows / reading, worst shape", worst, "<=", MOST_READING


def _coding_bars(records: Records) -> Iterator[tuple[str, float | None, Any, float]]:
    """Yield the bars of weights in lossless codes."""
    cells = _decoders(records)
    wrong = sum(cell["wrong_weights"] for _, cell in cells) if cells else None
    yield "coded weights that are decoded to other bits", wrong, "<=", 0
    gain = _value(records, "coded_weights", "link", "coded_over_plain")
    yield "link with coded weights / with plain ones", gain, ">=", LEAST_CODED
    gain = _value(records, "engine_coded_strict", "coded_over_plain")
    yield "one user, coded weights / plain ones", gain, ">=", LEAST_CODED_SPEED
    equal = _value(records, "engine_coded_strict", "answers_are_equal")
    yield "answers changed by coded weights", None if equal is None else 1 - equal, "<=", 0


def _decoders(records: Records) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the figures of each decoder of coded weights, by its name."""
    found = _results(records, "coded_weights").items()
    return [(name, own) for name, own in found if isinstance(own, dict) and "wrong_weights" in own]


def _different_answers(records: Records) -> float | None:
    """Return how many answers under strict numerics differ from plain decoding alone."""
    answers = [
        tokens
        for name in ("engine_plain_strict", "engine_ours_strict")
        for tokens in (_value(records, name, "tokens") or {}).values()
    ]
    return sum(tokens != answers[0] for tokens in answers) if len(answers) > 1 else None


def _wrong(records: Records, rows: int) -> float | None:
    """Return the number of the library's products of this many rows whose bits change."""
    cells = [
        cell["holds"]
        for name, cell in _results(records, "rows").items()
        if name.endswith(f", {rows} rows") and FULL_SUMS not in name
    ]
    return cells.count(False) if cells else None


def _failures(records: Records, stages: Sequence[str]) -> float | None:
    """Return how many tests failed or were not reached; None if none could run."""
    missed = ran = 0
    for stage in stages:
        outcomes = _value(records, stage, "outcomes") or {}
        ran += outcomes.get("passed", 0) + outcomes.get("failed", 0)
        missed += max((_value(records, stage, "chosen") or 0) - sum(outcomes.values()), 0)
        missed += outcomes.get("failed", 0)
    return missed if ran else None


def _values(records: Records) -> Iterator[tuple[str, Any]]:
    yield "model_gb", _value(records, "checkpoint", "gigabytes")
    names = ("copy_read_and_write_gbps", "read_gbps", "bfloat16_tflops", "float64_tflops")
    for name in names:
        yield name, _value(records, "machine", name)
    rates = _value(records, "link", "to_device_gbps_by_piece_mib") or {}
    yield "link_gbps", max(rates.values(), default=None)
    yield "link_beside_kernels_gbps", _value(records, "link", "beside_kernels_gbps")
    yield (
        "smallest_piece_of_full_speed_mib",
        next((size for size, rate in rates.items() if rate >= 0.98 * max(rates.values())), None),
    )


def _table_of_stages(records: Records) -> Table:
    rows: list[list[Any]] = []
    for stage in STAGES:
        record = records.get(stage.name)
        if record is None:
            rows.append([stage.name, "not run", None, "there was no time, or it was not chosen"])
            continue
        reason = (record.reason.strip().splitlines() or [""])[-1]
        rows.append([stage.name, record.status, record.seconds, reason[:160].replace("|", "/")])
    return Table("Stages", ["stage", "status", "seconds", "reason"], rows)


def _table_of_settings(records: Records) -> Table:
    columns = ["setting", "users", "tokens/s", "tokens a pass and user", "draft ms", "ahead ms"]
    columns += ["pass ms", "stall ms", "host ms", "rows", "4,000 tokens, s"]
    rows = []
    for setting in SETTINGS:
        stage = f"engine_{setting.replace(' ', '_')}"
        for users in ("one user", "eight users"):
            found = _value(records, stage, users)
            if found is None:
                continue
            names = ("tokens_per_second", "tokens_per_pass", "draft_ms", "ahead_ms", "pass_ms")
            cells = [found[name] for name in (*names, "copy_stall_ms", "host_ms", "rows")]
            prompt = (_value(records, stage, "prompt") or {}).get("first_token_seconds")
            rows.append([setting, users, *cells, prompt if users == "one user" else None])
    return Table("The engine", columns, rows)


def _tables_of_kernels(records: Records) -> Iterator[Table]:
    counts = ("1 rows", "6 rows", "64 rows", "256 rows")
    rows = [
        [name, *(cells[count]["of_reading"] if count in cells else None for count in counts)]
        for name, cells in _results(records, "products").items()
        if isinstance(cells, dict)
    ]
    yield Table("Products, time / time to read the weight", ["product", *counts], rows)
    rows = [
        [way, size, cell.get("us"), cell.get("backend"), cell.get("peak_mib"), cell.get("error")]
        for way, cells in _results(records, "attention").items()
        if way.startswith(("engine", "library"))
        for size, cell in cells.items()
    ]
    yield Table("Attention", ["way", "size", "us", "backend", "MiB", "error"], rows)


def _tables_of_problems(records: Records) -> Iterator[Table]:
    rows = [
        [stage, name, ", ".join(f"{k} ({v})" for k, v in differ.items())]
        for stage in ("rows", "columns")
        for name, cell in _results(records, stage).items()
        if (differ := cell.get("rows_that_differ") or cell.get("columns_that_differ"))
    ]
    if rows:
        yield Table("Bits that change", ["stage", "product", "in (how many)"], rows)
    rows = [
        [stage, name, (text.strip().splitlines() or [""])[-1][:200].replace("|", "/")]
        for stage in records
        for name, text in (_value(records, stage, "failures") or {}).items()
    ]
    rows += [
        [stage, str(running), "did not end"]
        for stage, record in records.items()
        if record.status != "done" and (running := record.results.get("running"))
    ]
    if rows:
        yield Table("Failed tests", ["stage", "test", "last line"], rows)


def _tables_of_costs(records: Records) -> Iterator[Table]:
    """Yield the tables of small kernels, small copies and packed weights, if they were measured."""
    graphs = _value(records, "latency", "graphs") or {}
    if graphs:
        cells = [[name, own["replay_us"], own["us_for_each"]] for name, own in graphs.items()]
        yield Table("Graphs of small kernels", ["graph", "us", "us for each"], cells)
    small = _value(records, "small_copies", "us") or {}
    if small:
        loads = list(next(iter(small.values())))
        cells = [[kind, *(own[load]["median"] for load in loads)] for kind, own in small.items()]
        yield Table("Small copies, median us beside", ["copy", *loads], cells)
    forms = [
        [name, cell.get("gbps"), cell.get("of_link"), cell.get("error")]
        for name, cell in _results(records, "expansion").items()
        if isinstance(cell, dict)
    ]
    if forms:
        columns = ["form", "GB/s of bfloat16", "/ link", "error"]
        yield Table("Expansion of packed weights", columns, forms)
    names = ("gbps", "of_reading", "of_travelling", "wrong_weights")
    coded = [[name, *(cell[own] for own in names)] for name, cell in _decoders(records)]
    if coded:
        columns = ["decoder", "GB/s of bfloat16", "time / reading and writing", "time / travelling"]
        yield Table("Decoding of coded weights", [*columns, "wrong weights"], coded)


def _results(records: Records, stage: str) -> Mapping[str, Any]:
    return records[stage].results if stage in records else {}


def _value(records: Records, stage: str, *names: str) -> Any:
    """Return a figure by the names that lead to it, or None if it was not measured."""
    found: Any = _results(records, stage)
    for name in names:
        if not isinstance(found, Mapping) or name not in found:
            return None
        found = found[name]
    return found


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None
