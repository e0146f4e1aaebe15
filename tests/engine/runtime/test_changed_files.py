"""Tests of files that change while requests run: texts stay the same, or the requests fail."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import ModelError
from engine.messages import Failed
from engine.runtime import target_files
from engine.runtime.engine import Engine
from engine.spec import StreamSpec, Tier
from engine.text.tokenizer import read_tokenizer
from tests.engine.models import PLAIN, SUBSPEC, checkpoint, exact, load, prompt, request, run

TIERS: dict[str, StreamSpec] = {
    "resident": StreamSpec(tier="resident"),
    "ram": StreamSpec(tier="ram", slots=2, simulate_gbps=8.0),
    "disk": StreamSpec(tier="disk", slots=2),
}
ASKED = [request(name, prompt(30, seed)) for seed, name in enumerate("ab")]


def overwrite(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\x3c" * (path.stat().st_size // 2))


def cut_off(path: Path) -> None:
    os.truncate(path, 100)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def replace(path: Path) -> None:
    other = path.with_suffix(".other")
    other.write_bytes(b"\x3c" * path.stat().st_size)
    other.rename(path)


Change = Callable[[Path], object]
IN_PLACE: list[Change] = [overwrite, cut_off, empty]
BY_NAME: list[Change] = [replace, os.unlink]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of a checkpoint, and use an empty cache."""
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    shutil.copytree(checkpoint("llama"), tmp_path / "model")
    return tmp_path / "model"


def change_all(folder: Path, pattern: str, change: Change) -> None:
    for path in sorted(folder.glob(pattern)):
        change(path)


def changed_after(passes: int, engine: Engine, folder: Path, change: Change) -> list[object]:
    """Serve requests, change their checkpoint after some passes, and return all results."""
    for message in ASKED:
        engine.add(message)
    events: list[object] = []
    for number in range(1000):
        if number == passes:
            change_all(folder, "*.safetensors", change)
        if not engine.has_work():
            break
        events += engine.step()
    assert not engine.has_work()
    return events


@pytest.mark.parametrize("change", BY_NAME)
@pytest.mark.parametrize("tier", TIERS)
def test_files_that_are_replaced_or_removed_change_no_text(
    tier: Tier, change: Change, folder: Path
) -> None:
    expected = exact(run(load(checkpoint("llama"), PLAIN), ASKED))
    engine = load(folder, SUBSPEC, stream=TIERS[tier])
    assert not any(isinstance(e, Failed) for e in changed_after(2, engine, folder, change))
    assert exact(run(engine, ASKED)) == expected


@pytest.mark.parametrize("change", IN_PLACE)
@pytest.mark.parametrize("tier", TIERS)
def test_requests_fail_with_the_name_of_a_file_that_is_written_to(
    tier: Tier, change: Change, folder: Path
) -> None:
    """In every tier, only rows of the embedding are still read from the checkpoint."""
    engine = load(folder, SUBSPEC, stream=TIERS[tier])
    failed = [e for e in changed_after(2, engine, folder, change) if isinstance(e, Failed)]
    assert {e.request_id for e in failed} == {"a", "b"}
    assert {e.code for e in failed} == {"weights_unreadable"}
    told = ("the file was changed", "the file was truncated")
    assert all(any(text in e.message.lower() for text in told) for e in failed)
    assert all(".safetensors: " in e.message for e in failed)


@pytest.mark.parametrize("change", [*IN_PLACE, *BY_NAME])
def test_a_packed_unit_that_is_damaged_fails_no_request(
    change: Change, folder: Path, tmp_path: Path
) -> None:
    """The first read of a piece after a start compares its checksum."""
    expected = exact(run(load(checkpoint("llama"), PLAIN), ASKED))
    load(folder, PLAIN, stream=TIERS["disk"]).close()
    change_all(tmp_path / "cache", "*/*.unit", change)
    assert exact(run(load(folder, PLAIN, stream=TIERS["disk"]), ASKED)) == expected


def test_files_that_change_while_they_are_loaded_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changing(path: Path) -> object:
        change_all(path, "*.safetensors", lambda file: os.utime(file, (1, 1)))
        return read_tokenizer(path)

    monkeypatch.setattr(target_files, "read_tokenizer", changing)
    with pytest.raises(ModelError, match="its files changed while they were read"):
        load(folder, PLAIN)
