"""Tests of the GPU run: its dry run on the CPU, its processes, and its summary."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.first_gpu_run import supervisor
from benchmarks.first_gpu_run.record import Record, read_record, write_record
from benchmarks.first_gpu_run.stage_process import Place
from benchmarks.first_gpu_run.stages import STAGES, Lane, Stage
from benchmarks.first_gpu_run.summary import summarize
from benchmarks.first_gpu_run.supervisor import Supervisor
from benchmarks.report_format import Figures

MODULE = "tests.benchmarks.gpu_run_stages"
CANNOT_RUN_HERE = {
    "sanitizer": "needs a CUDA device",
    "engine_memory": "allocator has no limit",
}
WEB = {"fastapi", "pydantic", "uvicorn", "starlette", "httpx", "server", "matplotlib"}


def dry_run(folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks.first_gpu_run", "--device", "cpu"]
    return subprocess.run(
        [*command, "--folder", str(folder), *options], capture_output=True, text=True, timeout=280
    )


@pytest.mark.slow
def test_the_dry_run_runs_every_stage_or_says_why_it_cannot(tmp_path: Path) -> None:
    done = dry_run(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    check_records(tmp_path / "cpu")
    check_summary(tmp_path / "cpu")
    check_that_records_are_kept(tmp_path)


def check_records(folder: Path) -> None:
    for stage in STAGES:
        record = read_record(folder, stage.name)
        assert record is not None, stage.name
        if stage.name in CANNOT_RUN_HERE:
            assert record.status == "skipped", record
            assert CANNOT_RUN_HERE[stage.name] in record.reason
        else:
            assert (record.status, record.reason) == ("done", ""), record
            assert record.results, stage.name


def check_summary(folder: Path) -> None:
    text = (folder / "summary.md").read_text()
    assert "dry run" in text.splitlines()[0]
    for quantity in (
        "pass / (W / measured bandwidth), strict",
        "pass / (W / measured bandwidth), fast",
        "draft step / time to read its bytes",
        "one user / serial SubSpec schedule",
        "strict against fast, time of a token",
        "strict answers that depend on draft or users: 0",
        "coded weights that are decoded to other bits: 0",
        "link with coded weights / with plain ones",
        "one user, coded weights / plain ones",
        "answers changed by coded weights: 0",
    ):
        assert f"- {quantity}" in text
    assert "Not measured: GPU tests that failed or did not end" in text
    assert (folder / "trace.json.gz").stat().st_size > 0


def check_that_records_are_kept(folder: Path) -> None:
    """Check that only stages without a record run, and those that are wanted again."""
    before = {path: path.stat().st_mtime_ns for path in (folder / "cpu").glob("*.json")}
    again = dry_run(folder, "--json", "--again", "latency")
    figures = Figures.from_json(json.loads(again.stdout))
    assert f"{len(STAGES) - 1} stages have a record" in again.stderr
    changed = {path.stem for path, at in before.items() if path.stat().st_mtime_ns != at}
    assert changed == {"latency"}
    assert figures.name == "first_gpu_run" and len(figures.bars) > 5


@pytest.mark.slow
def test_the_stages_need_no_web_stack() -> None:
    modules = ", ".join(sorted({stage.module for stage in STAGES}))
    code = f"import sys, {modules}; print(sorted({WEB} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_supervisor_needs_no_torch() -> None:
    code = "import sys, benchmarks.first_gpu_run.__main__; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def make_stage(part: str, seconds: float = 60, lane: Lane = "alone", **values: Any) -> Stage:
    module = values.pop("module", MODULE)
    return Stage(part, "a stage of a test", seconds, module, part, lane=lane, **values)


def supervise(folder: Path, *stages: Stage, seconds: float = 200) -> tuple[list[str], list[Record]]:
    """Run stages; return the names of those without time, and the records of all others."""
    place = Place("cpu", folder, folder / "kept")
    without_time = Supervisor(stages, place, seconds=seconds).run()
    found = [read_record(folder, stage.name) for stage in stages]
    return without_time, [record for record in found if record is not None]


def test_a_stage_that_ends_badly_loses_no_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "GRACE", 1.0)
    stages = [
        make_stage("killed"),
        make_stage("hangs", seconds=4),
        make_stage("raises"),
        make_stage("cannot"),
        make_stage("slow", seconds=3.5),
        make_stage("absent", module="tests.benchmarks.no_such_stage"),
        make_stage("good"),
    ]
    without_time, records = supervise(tmp_path, *stages)
    assert not without_time
    found = {record.stage: record for record in records}
    assert {name: record.status for name, record in found.items()} == {
        "killed": "failed",
        "hangs": "out of time",
        "raises": "failed",
        "cannot": "skipped",
        "slow": "out of time",
        "absent": "failed",
        "good": "done",
    }
    assert all(r.results["first"] == 1 for name, r in found.items() if name != "absent")
    assert [name for name, record in found.items() if "last" in record.results] == ["good"]
    assert "this is the log of killed" in found["killed"].reason
    assert found["killed"].reason.endswith("its process ended with code -9")
    assert "gpu_run_stages.py" in (tmp_path / "logs" / "hangs.log").read_text()  # where it hung
    assert found["raises"].reason.endswith("ValueError: the shape is wrong")
    assert found["cannot"].reason == "there is no such device"
    assert "no_such_stage" in found["absent"].reason
    assert not is_alive(int((tmp_path / "child").read_text()))


def is_alive(pid: int) -> bool:
    """Return whether a process still runs a moment later; one that was not waited for does not."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        if state == "Z":
            return False
        time.sleep(0.05)
    return True


def test_stages_without_time_have_no_record(tmp_path: Path) -> None:
    without_time, records = supervise(tmp_path, make_stage("good"), seconds=1)
    assert (without_time, records) == (["good"], [])


def test_a_stage_waits_for_what_it_needs_and_others_overtake_it(tmp_path: Path) -> None:
    held = replace(make_stage("runs until overtakes", lane="host"), name="held")
    stages = [held, make_stage("waits", needs="held"), make_stage("overtakes")]
    _, records = supervise(tmp_path, *stages)
    assert [record.status for record in records] == ["done"] * 3
    ends = {record.stage: record.results["last"] for record in records}
    assert ends["held"] < ends["waits"]


def test_stages_of_the_shared_lane_run_together_and_one_of_the_other_runs_alone(
    tmp_path: Path,
) -> None:
    one, two = (
        replace(make_stage(f"runs until {other}", lane="shared"), name=name)
        for name, other in (("one", "two"), ("two", "one"))
    )
    stages = [make_stage("before"), one, two, make_stage("after")]
    _, records = supervise(tmp_path, *stages)
    assert [record.status for record in records] == ["done"] * 4
    ends = {record.stage: record.results["last"] for record in records}
    assert ends["before"] < min(ends["one"], ends["two"])
    assert ends["after"] > max(ends["one"], ends["two"])


def test_an_older_record_is_replaced_when_a_stage_runs(tmp_path: Path) -> None:
    write_record(tmp_path, Record("killed", "done", results={"last": 1.0}))
    _, (record,) = supervise(tmp_path, make_stage("killed"))
    assert record.status == "failed" and "last" not in record.results


def bars_of(**results: dict[str, Any]) -> dict[str, tuple[float, bool]]:
    records = {name: Record(name, "done", results=own) for name, own in results.items()}
    figures = summarize(records, "cuda:0")
    return {bar.quantity: (bar.value, bar.is_reached) for bar in figures.bars}


def pace(tokens: float) -> dict[str, Any]:
    names = ("tokens_per_pass", "draft_ms", "ahead_ms", "pass_ms", "copy_stall_ms", "host_ms")
    return {"one user": dict.fromkeys((*names, "rows"), 1.0) | {"tokens_per_second": tokens}}


def test_bars_are_made_of_the_stages_figures() -> None:
    strict = {"tokens": {"alone": [1, 2], "beside others": [1, 2]}}
    found = bars_of(
        engine_ours_fast=pace(30.0),
        engine_serial_fast=pace(15.0) | {"step_over_reading": 1.4},
        engine_ours_strict=pace(25.0) | {"tokens": {"alone": [1, 2], "beside others": [1, 3]}},
        engine_plain_strict=strict | {"pass_over_travel": 1.1},
        rows={
            "bfloat16, down, 64 rows": {"holds": False, "rows_that_differ": {"again": 1}},
            "bfloat16, down, 256 rows": {"holds": True},
            "bfloat16, down, sums in full precision, 256 rows": {"holds": False},
        },
        tests_1={"chosen": 5, "outcomes": {"passed": 3, "failed": 1}, "failures": {"a": "b"}},
        engine_memory={"afterwards": {"answers_are_equal": True}},
        engine_coded_strict={"coded_over_plain": 1.3, "answers_are_equal": False},
    )
    assert found == {
        "pass / (W / measured bandwidth), strict": (1.1, False),
        "draft step / time to read its bytes": (1.4, True),
        "one user / serial SubSpec schedule": (2.0, True),
        "strict against fast, time of a token": (1.2, False),
        "products in which a row's bits change, 64 rows": (1, False),
        "products in which a row's bits change, 256 rows": (0, True),
        "GPU tests that failed or did not end": (2, False),
        "strict answers that depend on draft or users": (1, False),
        "answers changed by memory that ran out": (0, True),
        "one user, coded weights / plain ones": (1.3, False),
        "answers changed by coded weights": (1, False),
    }


def test_the_summary_names_what_is_missing_and_why() -> None:
    failed = Record("rows", "failed", "Traceback\nValueError: wrong")
    hung = Record("tests_1", "out of time", results={"running": "test_a"})
    text = str(summarize({"rows": failed, "tests_1": hung}, "cuda:0"))
    assert "Not measured: pass / (W / measured bandwidth), strict;" in text
    assert "| rows | failed | 0 | ValueError: wrong |" in text
    assert "| tests_1 | test_a | did not end |" in text
    assert "| link | not run |" in text
