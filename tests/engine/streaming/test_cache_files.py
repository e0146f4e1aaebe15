"""Tests of the cache's files: only packed models are removed, and links are not followed."""

import os
import tempfile
from pathlib import Path

import pytest

from engine.cache_files import INDEX, check_cache, lock, remove_folder, remove_stale, unit_name
from engine.errors import ModelError
from engine.streaming.packed_cache import entries, open_or_pack, remove, remove_leftovers
from tests.engine.units import NumberedUnits


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a home folder that is the cache's folder, with many files of other programs."""
    home = tmp_path / "home"
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(home))
    contents = {
        "notes.txt": "mine",
        "project/index.json": '{"name": "web", "key": "org/m\\nother"}',
        "project-0123456789abcdef/index.json": '{"key": "project"}',
        "project-0123456789abcdef/00000.unit": "mine",
        "index.json": "{}",
        "00000.unit": "mine",
        ".cache/index.json/file": "mine",
        ".backup.partial/00000.unit": "mine",
        ".partial": "mine",
        ".work.abcdefgh.partial/thesis.txt": "mine",
        ".work.abcdefgh.partial/index.json/file": "mine",
        "list-0123456789abcdef/index.json": "[1, 2]",
        "odd-0123456789abcdef/index.json": '{"key": {"a": 1}}',
    }
    for name, content in contents.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(content)
    return home


def everything(folder: Path) -> dict[str, str]:
    """Return the content of every file below a folder, and the target of every link, by path."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_text()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def pack_one(model: str = "m") -> Path:
    open_or_pack(NumberedUnits(2), model, "a", None, lambda *_: None).close()
    return next(entry.path for entry in entries() if entry.model == model)


def test_files_of_other_programs_are_kept(root: Path) -> None:
    before = everything(root)
    assert entries() == []
    pack_one()
    (entry,) = entries()
    remove_leftovers()
    remove(entry)
    assert everything(root) == before and not entry.path.exists()


def test_other_files_inside_an_entry_are_kept(root: Path) -> None:
    path = pack_one()
    (path / "notes.txt").write_text("mine")
    (path / "00001.unit.orig").write_text("mine")
    (path / f"{unit_name(7)}.0123456789abcdef.new").write_text("of a repair that was killed")
    remove(entries()[0])
    assert everything(path) == {"notes.txt": "mine", "00001.unit.orig": "mine"}
    assert entries() == []


@pytest.mark.parametrize("name", [unit_name(0), INDEX])
def test_a_link_in_an_entry_is_removed_but_not_its_target(root: Path, name: str) -> None:
    path, outside = pack_one(), root / "precious"
    (entry,) = entries()
    (path / name).rename(outside)
    (path / name).symlink_to(outside)
    before = outside.read_bytes()
    remove_folder(entry.path)
    assert outside.read_bytes() == before and not path.exists()


def test_a_link_to_a_folder_is_not_an_entry(root: Path, tmp_path: Path) -> None:
    path = pack_one()
    (entry,) = entries()
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    (root / ".m.abcdefgh.partial").symlink_to(tmp_path / "elsewhere")
    before = sorted(os.listdir(path))
    assert entries() == []
    remove(entry)  # it was an entry when it was listed
    remove_stale(root)
    assert sorted(os.listdir(tmp_path / "elsewhere")) == before


def test_an_index_that_is_a_link_counts_as_locked(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with lock(tmp_path / "link") as free:
        assert not free
    with lock(tmp_path / "there") as free:
        assert free


def test_a_pipe_in_place_of_the_index_does_not_block(root: Path) -> None:
    path = pack_one()
    (path / INDEX).unlink()
    os.mkfifo(path / INDEX)
    assert entries() == []
    open_or_pack(NumberedUnits(2), "m", "a", None, lambda *_: None).close()
    assert len(entries()) == 1


def test_only_the_owner_can_read_packed_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "new"))
    path = pack_one()
    assert [folder.stat().st_mode & 0o077 for folder in (path, path.parent)] == [0, 0]


def test_a_cache_is_made_and_may_be_read_only_once_it_has_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "new" / "cache"))
    check_cache()
    assert (tmp_path / "new" / "cache").is_dir() and not any((tmp_path / "new" / "cache").iterdir())

    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(ModelError, match=r"UNDERSTUDY_CACHE: .*new/cache: .*Permission denied"):
        check_cache()
    monkeypatch.undo()
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "new" / "cache"))
    pack_one()
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    check_cache()
