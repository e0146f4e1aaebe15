"""Tests of the report: figures as JSON, bars, the page, parts that fail."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.plots import draw, file_name
from benchmarks.report_format import Bar, Figures, Plot, Table, format_cell, format_number
from benchmarks.report_parts import (
    PARTS,
    Part,
    read_demo,
    read_host_time,
    read_plan_memory,
    read_sampling,
)

FIGURES = Figures(
    name="batch",
    title="Users of one stream",
    values={"link_gbps": 0.125, "rounds": 5},
    tables=[Table("Medians", ["users", "tokens/s"], [[1, 12.3456], [8, 81.0]])],
    bars=[Bar("8 users", 6.58, ">=", 5.0, "x"), Bar("memory", 0.07, "<=", 0.05)],
    plots=[Plot("some batch", "users", "tokens/s", {"ours": [(1.0, 12.0), (8.0, 81.0)]})],
    notes=["Greedy."],
    machine={"cores": 2, "gpu": None},
)
ENTRY = {
    "measured": "2026-11-20T18:00+00:00",
    "seconds": 61.7,
    "command": "python -m benchmarks.batch",
    "versions": {"torch": "2.13.0"},
    "machine": FIGURES.machine,
    "figures": FIGURES.to_json(),
}


def test_figures_survive_json() -> None:
    assert Figures.from_json(json.loads(json.dumps(FIGURES.to_json()))) == FIGURES


@pytest.mark.parametrize(
    ("relation", "value", "reached"),
    [(">=", 5.0, True), (">=", 4.99, False), ("<=", 5.0, True), ("<=", 5.01, False)],
)
def test_a_bar_is_reached_at_its_bound(relation: Any, value: float, reached: bool) -> None:
    assert Bar("x", value, relation, 5.0).is_reached is reached


def test_a_figure_that_is_not_a_number_reaches_no_bar() -> None:
    bars = (Bar("x", float("nan"), ">=", 1.0), Bar("x", float("nan"), "<=", 1.0))
    assert not any(bar.is_reached for bar in bars)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123456, "0.0123"), (12.3456, "12.3"), (1234.5, "1,234"), (0.0, "0"), (3e-5, "0.0000")],
)
def test_numbers_are_rounded_to_three_significant_digits(value: float, text: str) -> None:
    assert format_number(value) == text


def test_cells_show_booleans_none_and_text() -> None:
    assert [format_cell(value) for value in (True, False, None, 3, "a")] == [
        "yes",
        "no",
        "-",
        "3",
        "a",
    ]


def test_the_page_has_tables_bars_date_machine_and_plots(tmp_path: Path) -> None:
    report.write({"batch": ENTRY}, tmp_path)
    text = (tmp_path / report.PAGE).read_text()
    assert "## Users of one stream" in text
    assert "| 8 | 81 |" in text
    assert "| batch | 8 users | 6.58 x | at least 5 | yes |" in text
    assert "| batch | memory | 0.07 | at most 0.05 | **no** |" in text
    assert "2026-11-20 18:00" in text
    assert "cores 2" in text and "gpu" not in text.partition("Machine:")[2].partition("\n")[0]
    image = tmp_path / report.PLOTS / "some-batch.png"
    assert f"({report.PLOTS}/{image.name})" in text
    assert image.read_bytes().startswith(b"\x89PNG")
    assert image.stat().st_size < 40_000
    assert report.read_store(tmp_path)["batch"]["figures"] == json.loads(
        json.dumps(FIGURES.to_json())
    )


def test_the_page_names_what_was_not_measured(tmp_path: Path) -> None:
    last = report.render_page({"batch": ENTRY}).strip().splitlines()[-1]
    assert "tuning" in last and "offload" in last
    assert "batch" not in last


def test_a_plot_with_a_logarithmic_axis(tmp_path: Path) -> None:
    plot = Plot("log", "x", "y", {"a": [(1.0, 2.0)], "b": [(1.0, 1.0), (10.0, 3.0)]}, log_x=True)
    assert draw(plot, tmp_path) == tmp_path / file_name(plot)


def run_report(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, *arguments: str
) -> tuple[int, report.Stored]:
    """Run the report with a part `batch` that runs `code`; return the exit code and the store."""
    real = subprocess.run

    def run(command: list[str], **options: Any) -> Any:
        assert command[1:3] == ["-m", "benchmarks.batch"] and command[-1] == "--json"
        return real([sys.executable, "-c", code], **options)

    monkeypatch.setattr(report, "DOCS", tmp_path)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["report", *arguments])
    return report.main(), report.read_store(tmp_path)


def test_a_part_is_run_and_its_figures_are_stored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = f"print({json.dumps(json.dumps(FIGURES.to_json()))})"
    status, stored = run_report(monkeypatch, tmp_path, code, "--only", "batch")
    assert status == 0
    assert list(stored) == ["batch"]
    assert stored["batch"]["machine"] == {"cores": 2, "gpu": None}
    assert stored["batch"]["versions"].keys() >= {"torch", "transformers", "understudy"}


def test_figures_are_stored_even_if_the_exit_code_says_missed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = f"print({json.dumps(json.dumps(FIGURES.to_json()))}); raise SystemExit(1)"
    status, stored = run_report(monkeypatch, tmp_path, code, "--only", "batch")
    assert (status, list(stored)) == (0, ["batch"])


def test_a_part_that_fails_keeps_its_older_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report.write({"batch": ENTRY}, tmp_path)
    code = "print('no such model'); raise SystemExit(1)"
    status, stored = run_report(monkeypatch, tmp_path, code, "--only", "batch")
    assert status == 1
    assert stored["batch"]["measured"] == ENTRY["measured"]
    assert "no such model" in capsys.readouterr().err


def test_rendering_measures_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report.write({"batch": ENTRY}, tmp_path)
    (tmp_path / report.PAGE).unlink()
    status, _ = run_report(monkeypatch, tmp_path, "raise SystemExit(3)", "--render")
    assert status == 0
    assert (tmp_path / report.PAGE).exists()


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_part_is_a_command(part: Part) -> None:
    module = import_module(f"benchmarks.{part.name}")
    if hasattr(module, "__path__"):
        module = import_module(f"{module.__name__}.__main__")
    assert callable(module.main)


def test_the_parts_of_each_group_fit_into_its_time() -> None:
    assert sum(part.minutes for part in PARTS if part.group == "bench") <= 15
    assert sum(part.minutes for part in PARTS if part.group == "peers") <= 60


def test_outputs_in_other_formats_become_figures() -> None:
    host = {"vocabulary": 4096, "host_ms": 3.0, "passes": 7}
    found = read_host_time({"machine": {"cores": 2}, "rows": [host]})
    assert [bar.is_reached for bar in found.bars] == [True]
    process = {"method": "none", "tier": "ram", "parameters": 5, "planned": 100, "ratio": 0.93}
    assert not read_plan_memory([{**process, "peak": 93}]).bars[0].is_reached
    setting = {"setting": "1.0", "of_greedy": 0.96, "at_least": 0.95}
    greedy = {"setting": "greedy", "of_greedy": 1.0, "at_least": None}
    sampled = {"positions": 9, "entropy_nats": 2.2, "machine": {}, "rows": [greedy, setting]}
    assert [bar.is_reached for bar in read_sampling(sampled).bars] == [True]
    answer = {"model": "demo", "prompts": "starters", "temperature": "0", "answers": 3}
    row = {**answer, "tokens": 90, "passes": 10, "tokens_per_pass": 9.0}
    assert "| demo | starters | 0 | 3 | 90 | 9 |" in str(read_demo([row]))
