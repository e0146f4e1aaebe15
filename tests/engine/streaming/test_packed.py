"""Tests of packed units: same bytes, no broken packing is loaded, the cache keeps its limit."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.cache_files import INDEX, cache_root, unit_name
from engine.errors import ModelError
from engine.messages import LoadProgress
from engine.streaming.packed import PackedUnits, pack
from engine.streaming.packed_cache import (
    CacheEntry,
    entries,
    open_or_pack,
    remove,
)
from engine.weights.layout import UnitReader, lay_out


class RandomUnits(UnitReader):
    """A reader of random bytes. The same seed gives the same bytes."""

    def __init__(self, seed: int = 0, units: int = 4, fail_at: int | None = None) -> None:
        self.seed = seed
        self.fail_at = fail_at
        shapes = {"a.weight": (torch.bfloat16, (5, 7)), "b": (torch.uint8, (2, 3, 3000))}
        self.layouts = [lay_out(f"model.layers.{i}", shapes) for i in range(units)]

    def read(self, index: int, buffer: Tensor) -> None:
        if index == self.fail_at:
            raise ModelError("shard 7: damaged")
        generator = torch.Generator().manual_seed(self.seed * 1000 + index)
        for view in self.layouts[index].views(buffer).values():
            data = torch.randint(0, 256, (view.nbytes,), dtype=torch.uint8, generator=generator)
            view.view(-1).view(torch.uint8).copy_(data)


def silent(step: LoadProgress) -> None:
    pass


def assert_same(units: PackedUnits, reader: RandomUnits) -> None:
    assert list(units.layouts) == list(reader.layouts)
    for index, layout in enumerate(reader.layouts):
        found, expected = (torch.zeros(layout.nbytes, dtype=torch.uint8) for _ in range(2))
        units.read(index, found)
        reader.read(index, expected)
        assert torch.equal(found, expected)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# One folder


def test_packed_units_equal_those_of_the_reader(root: Path) -> None:
    told: list[LoadProgress] = []
    reader = RandomUnits()
    units = pack(reader, root / "m", "key", told.append)
    assert_same(units, reader)
    assert_same(PackedUnits(root / "m", "key"), reader)
    total = reader.stored_bytes
    assert [step.done for step in told] == [total * i // 4 for i in (1, 2, 3, 4)]
    assert all(total == step.total for step in told)


def test_unit_files_are_whole_pages(root: Path) -> None:
    pack(RandomUnits(), root / "m", "key", silent)
    sizes = [path.stat().st_size for path in (root / "m").glob("*.unit")]
    assert len(sizes) == 4 and all(size % 4096 == 0 for size in sizes)


def test_an_unaligned_buffer_is_filled(root: Path) -> None:
    reader = RandomUnits()
    units = pack(reader, root / "m", "key", silent)
    nbytes = reader.layouts[0].nbytes
    memory = torch.zeros(nbytes + 2, dtype=torch.uint8)
    units.read(0, memory[1:])
    expected = torch.zeros(nbytes, dtype=torch.uint8)
    reader.read(0, expected)
    assert torch.equal(memory[1 : 1 + nbytes], expected) and memory[-1] == 0


def test_units_are_read_by_many_threads_at_once(root: Path) -> None:
    reader = RandomUnits(units=8)
    units = pack(reader, root / "m", "key", silent)
    failed: list[BaseException] = []

    def walk() -> None:
        try:
            assert_same(units, reader)
        except (AssertionError, ModelError) as error:
            failed.append(error)

    threads = [threading.Thread(target=walk) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_a_packing_that_fails_leaves_no_files(root: Path) -> None:
    with pytest.raises(ModelError, match="shard 7: damaged"):
        pack(RandomUnits(fail_at=2), root / "m", "key", silent)
    assert list(root.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from engine.streaming.packed import pack
from tests.engine.streaming.test_packed import RandomUnits

def kill_in_the_middle(step):
    if step.done == step.total // 4 * {quarters}:
        os.kill(os.getpid(), signal.SIGKILL)

pack(RandomUnits(), Path(sys.argv[1]), "key", kill_in_the_middle)
"""


@pytest.mark.parametrize("quarters", [1, 4])
def test_a_killed_packing_cannot_be_loaded_and_is_removed(root: Path, quarters: int) -> None:
    """After four quarters all units are written, but not the index."""
    root.mkdir()
    program = [sys.executable, "-c", KILLED.format(quarters=quarters), str(root / "m")]
    result = subprocess.run(program, cwd=Path(__file__).parents[3], check=False)
    assert result.returncode == -9
    left = list(root.iterdir())
    assert len(left) == 1 and left[0].name.endswith(".partial")
    assert entries() == []
    with pytest.raises(ModelError, match=INDEX):
        PackedUnits(left[0])
    assert_same(pack(RandomUnits(), root / "m", "key", silent), RandomUnits())
    assert list(root.iterdir()) == [root / "m"]


def test_a_running_packing_is_not_removed(root: Path) -> None:
    """Another engine packs the same model meanwhile, and its result is the one that is kept."""
    inner: list[PackedUnits] = []

    def pack_again(step: LoadProgress) -> None:
        if not inner:
            inner.append(pack(RandomUnits(), root / "m", "key", silent))

    outer = pack(RandomUnits(), root / "m", "key", pack_again)
    assert_same(outer, RandomUnits())
    assert_same(inner[0], RandomUnits())
    assert list(root.iterdir()) == [root / "m"]


def test_too_small_a_disk_is_an_error_with_the_numbers(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1_000}))
    with pytest.raises(ModelError, match=r"packing needs 0.00 GB, 0.00 GB are free.*prune"):
        pack(RandomUnits(), root / "m", "key", silent)
    assert list(root.iterdir()) == []


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_is_found_when_the_unit_is_first_read(root: Path) -> None:
    reader = RandomUnits()
    pack(reader, root / "m", "key", silent).close()
    flip_byte(root / "m" / unit_name(2))
    units = PackedUnits(root / "m", "key")
    buffer = torch.empty(reader.layouts[0].nbytes, dtype=torch.uint8)
    units.read(1, buffer)
    for _ in range(2):
        with pytest.raises(ModelError, match=r"00002.unit: wrong checksum"):
            units.read(2, buffer)


def test_a_file_that_shrinks_while_serving_is_an_error(root: Path) -> None:
    reader = RandomUnits()
    pack(reader, root / "m", "key", silent).close()
    units = PackedUnits(root / "m", "key")
    with open(root / "m" / unit_name(3), "r+b") as file:
        file.truncate(4096)
    with pytest.raises(ModelError, match=r"00003.unit: ends at 4096"):
        units.read(3, torch.empty(reader.layouts[3].nbytes, dtype=torch.uint8))


@pytest.mark.parametrize("damage", ["truncated", "missing", "index", "version", "key", "dtype"])
def test_the_error_of_a_damaged_folder_names_the_file(damage: str, root: Path) -> None:
    pack(RandomUnits(), root / "m", "key", silent).close()
    index = root / "m" / INDEX
    unit = root / "m" / unit_name(1)
    content = json.loads(index.read_text())
    match damage:
        case "truncated":
            os.truncate(unit, 4096)
        case "missing":
            unit.unlink()
        case "index":
            index.write_text("{")
        case "version":
            index.write_text(json.dumps({**content, "version": 0}))
        case "key":
            index.write_text(json.dumps({**content, "key": "other"}))
        case "dtype":
            content["units"][0]["fields"][0][1] = "bfloat17"
            index.write_text(json.dumps(content))
    name = unit_name(1) if damage in ("truncated", "missing") else INDEX
    with pytest.raises(ModelError, match=name):
        PackedUnits(root / "m", "key")


# The cache


def total(found: list[CacheEntry]) -> int:
    return sum(entry.nbytes for entry in found)


def test_a_model_is_packed_once(root: Path) -> None:
    open_or_pack(RandomUnits(), "org/m", "a", None, silent).close()
    (entry,) = entries()
    assert entry.model == "org/m" and entry.path.parent == root
    assert entry.nbytes > RandomUnits().stored_bytes

    def packs_again(step: LoadProgress) -> None:
        raise AssertionError("packed twice")

    assert_same(open_or_pack(RandomUnits(), "org/m", "a", None, packs_again), RandomUnits())


def test_another_identity_is_another_entry() -> None:
    first = open_or_pack(RandomUnits(0), "m", "commit 0, bfloat16", None, silent)
    second = open_or_pack(RandomUnits(1), "m", "commit 1, bfloat16", None, silent)
    assert_same(first, RandomUnits(0))
    assert_same(second, RandomUnits(1))
    assert len(entries()) == 2


@pytest.mark.parametrize("damage", [unit_name(1), INDEX])
def test_a_damaged_entry_is_packed_again(damage: str) -> None:
    open_or_pack(RandomUnits(), "m", "a", None, silent).close()
    os.truncate(entries()[0].path / damage, 10)
    assert_same(open_or_pack(RandomUnits(), "m", "a", None, silent), RandomUnits())


def test_an_entry_of_another_layout_is_packed_again() -> None:
    open_or_pack(RandomUnits(units=3), "m", "a", None, silent).close()
    assert_same(open_or_pack(RandomUnits(units=4), "m", "a", None, silent), RandomUnits(units=4))
    assert len(entries()) == 1


def use(entry: CacheEntry, when: float) -> None:
    os.utime(entry.path / INDEX, (when, when))


def test_least_recently_used_entries_of_other_models_are_removed_first() -> None:
    for age, model in enumerate(["own", "old", "young"]):
        open_or_pack(RandomUnits(), model, "a", None, silent).close()
        (entry,) = [entry for entry in entries() if entry.model == model]
        use(entry, 1000.0 + age)
    room_for_three = total(entries()) + 100
    open_or_pack(RandomUnits(), "own", "b", room_for_three, silent).close()
    assert [entry.model for entry in entries()] == ["own", "young", "own"]
    assert total(entries()) <= room_for_three


def test_opening_an_entry_counts_as_use() -> None:
    for model in ("first", "second"):
        open_or_pack(RandomUnits(), model, "a", None, silent).close()
        use(next(entry for entry in entries() if entry.model == model), 1000.0)
    open_or_pack(RandomUnits(), "first", "a", None, silent).close()
    assert [entry.model for entry in entries()] == ["second", "first"]


def test_an_entry_in_use_is_not_removed() -> None:
    units = open_or_pack(RandomUnits(), "m", "a", None, silent)
    (entry,) = entries()
    with pytest.raises(ModelError, match="in use"):
        remove(entry)
    limit = entry.nbytes + 100
    with pytest.raises(ModelError, match=r"in use by running engines; packing n needs"):
        open_or_pack(RandomUnits(), "n", "a", limit, silent)
    units.close()
    open_or_pack(RandomUnits(), "n", "a", limit, silent).close()
    (entry,) = entries()
    assert entry.model == "n"
    remove(entry)
    assert entries() == [] and not entry.path.exists()


def test_a_limit_below_the_models_size_is_an_error_with_the_numbers() -> None:
    open_or_pack(RandomUnits(), "m", "a", None, silent).close()
    with pytest.raises(ModelError, match=r"memory.cache: 0.00 GB, but packing n needs 0.00 GB"):
        open_or_pack(RandomUnits(), "n", "a", 1000, silent)
    assert len(entries()) == 1


def test_an_empty_cache_has_no_entries(root: Path) -> None:
    assert not root.exists() and entries() == []


def test_the_cache_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UNDERSTUDY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "understudy"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "understudy"
