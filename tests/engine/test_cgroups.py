"""The memory cgroups of this process: whom the kernel has ended, and whom it ends first."""

import sys
from pathlib import Path
from subprocess import Popen

import pytest

from engine import cgroups
from engine.cgroups import OOM_SCORE, count_kills, let_die_first


@pytest.mark.parametrize(
    ("own", "file"),
    [("0::/a/b\n", "memory.events"), ("4:memory:/a/b\n0::/\n", "memory.oom_control")],
)
def test_kills_are_counted_in_the_own_group_and_above(
    own: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "CGROUPS", tmp_path)
    monkeypatch.setattr(cgroups, "OWN_CGROUPS", tmp_path / "own")
    (tmp_path / "own").write_text(own)
    mount = tmp_path / "memory" if ":memory:" in own else tmp_path
    assert count_kills() == 0, "a system without these files"
    (mount / "a" / "b").mkdir(parents=True)
    (mount / "a" / "b" / file).write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    (mount / "a" / file).write_text("low 0\nhigh 7\nmax 9\n")
    assert count_kills() == 2
    (mount / "a" / file).write_text("low 0\noom_kill 5\n")
    assert count_kills() == 2 + 5


def test_an_engine_dies_first() -> None:
    with Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        score = Path(f"/proc/{child.pid}/oom_score_adj")
        let_die_first(child.pid)
        assert int(score.read_text()) >= OOM_SCORE
        child.kill()
        child.wait()
    let_die_first(child.pid)
