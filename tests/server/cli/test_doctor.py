"""`understudy doctor`: what it prints, and what it says would go wrong."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.planning import checkup
from engine.planning.checkup import Checkup, find_problems
from server.cli import main

Capture = pytest.CaptureFixture[str]
GIB = 1 << 30

GOOD = Checkup(
    version="1",
    system="Linux",
    python="3.11",
    libraries={"torch": "2", "numba": "0.61"},
    cpu="a CPU",
    num_cores=8,
    ram=64 * GIB,
    free_ram=48 * GIB,
    driver="NVRM version: 1",
    torch_cuda="12.8",
    device="cuda:0: a GPU",
    device_memory=8 * GIB,
    is_pinned=True,
    link_gbps=25.0,
    cache="/cache",
    free_disk=500 * GIB,
    disk_gbps=3.0,
    problems=(),
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hide the user's files, and measure small sizes."""
    monkeypatch.chdir(tmp_path)
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "UNDERSTUDY_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.delenv("UNDERSTUDY_CONFIG", raising=False)
    monkeypatch.setattr(checkup, "FILE_BYTES", 1 << 20)
    monkeypatch.setattr(checkup, "PIECE_BYTES", 1 << 16)
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, None),
        ({"torch_cuda": ""}, "for CPUs only"),
        ({"torch_cuda": "", "driver": ""}, None),
        ({"is_pinned": False}, "pin memory"),
        ({"is_pinned": None}, None),
        ({"free_ram": GIB}, "1.0 GiB of RAM"),
        ({"free_disk": GIB}, "free for the cache"),
        ({"free_disk": None}, None),
        ({"disk_gbps": 0.2}, "reads 0.20 GB/s"),
        ({"disk_gbps": None}, "/cache"),
        ({"libraries": {"numba": ""}}, "numba"),
    ],
)
def test_each_figure_that_would_hurt_is_named(changed: dict[str, Any], words: str | None) -> None:
    problems = list(find_problems(replace(GOOD, **changed)))
    assert len(problems) == (words is not None)
    assert all(words is not None and words in one.what and one.remedy for one in problems)


def test_it_measures_this_machine(capsys: Capture, home: Path) -> None:
    assert main.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ram"] >= found["free_ram"] > 0 and found["num_cores"] > 0
    assert found["libraries"]["torch"] and found["cpu"] and found["disk_gbps"] > 0
    assert found["cache"] == str(home / "understudy_cache")
    assert list((home / "understudy_cache").iterdir()) == []
    assert main.main(["doctor"]) == 0
    out = capsys.readouterr().out
    for words in ("RAM", "NVIDIA driver", "PyTorch for", "cache", "reads"):
        assert words in out, words


@pytest.mark.parametrize("place", ["file", "configuration"])
def test_what_prevents_serving_is_a_problem(
    place: str, capsys: Capture, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == "file":
        (home / "file").touch()
        monkeypatch.setenv("UNDERSTUDY_CACHE", str(home / "file"))
    else:
        (home / "configs" / "models").mkdir(parents=True)
        (home / "configs" / "models" / "bad.yaml").write_text("target: {source: a/b}\ndrafts: 1")
    assert main.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "problem: " in out
    assert ("UNDERSTUDY_CACHE" if place == "file" else "drafts: unknown key") in out
