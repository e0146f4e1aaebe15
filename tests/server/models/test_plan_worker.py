"""The process that computes plans."""

import os
import subprocess
import sys
from pathlib import Path

from tests.server.models import plan_targets

ROOT = Path(__file__).parents[3]
FRONT_END = """
from multiprocessing import get_context
from server.models.plan_worker import Machine, main
from tests.server.conftest import entry
from tests.server.models import plan_targets

if __name__ == "__main__":
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=main, args=(theirs, plan_targets.tell_and_hang)).start()
    ours.send((entry("main"), Machine()))
    ours.recv()
"""


def test_no_process_outlives_the_front_end_in_the_middle_of_a_plan(tmp_path: Path) -> None:
    script, told = tmp_path / "front_end.py", tmp_path / "told"
    script.write_text(FRONT_END)
    os.mkfifo(told)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), plan_targets.TOLD: str(told)}
    with (
        subprocess.Popen([sys.executable, script], env=environment) as front_end,
        told.open() as lines,
    ):
        assert lines.readline() == "a plan is computed\n"
        front_end.kill()
        assert lines.read() == ""  # the process that holds the other end has ended
