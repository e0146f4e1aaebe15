"""A fixed sample of the hostile files of `make fuzz`."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CASES = 30


@pytest.mark.slow
def test_hostile_files_are_answered_or_refused_by_name(tmp_path: Path) -> None:
    """In a process of its own: one that has computed with threads cannot be forked."""
    command = [sys.executable, "-m", "tests.fuzz", "--cases", str(CASES), "--out"]
    done = subprocess.run(
        [*command, str(tmp_path / "cases.jsonl")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"{CASES} cases: ")
    assert len((tmp_path / "cases.jsonl").read_text().splitlines()) == CASES
