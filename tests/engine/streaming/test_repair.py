"""Tests of repairs: a damaged unit alone is packed again, or an error says why it cannot be."""

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine import cache_files
from engine.cache_files import INDEX, replace_file, unit_name
from engine.errors import ModelError
from engine.streaming import disk, packed as packed_module
from engine.streaming.disk import UnitFile
from engine.streaming.packed import PackedUnits
from engine.streaming.packed_cache import entries, open_or_pack
from engine.streaming.unwritten import RETRY_S
from tests.engine.units import NumberedUnits

PAGE = 4096
ROWS = 1000  # of a unit: five pages


@pytest.fixture(autouse=True)
def small_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    for module in (disk, packed_module):
        monkeypatch.setattr(module, "PIECE_BYTES", PAGE)


def open_cache(source: NumberedUnits) -> PackedUnits:
    return open_or_pack(source, "m", "a", None, lambda *_: None)


@pytest.fixture
def source() -> NumberedUnits:
    return NumberedUnits(4, ROWS)


@pytest.fixture
def folder(source: NumberedUnits) -> Path:
    """Return a packed folder. The source counts its reads from then on."""
    open_cache(source).close()
    source.reads.clear()
    (entry,) = entries()
    return entry.path


def pages(nbytes: int) -> Tensor:
    return torch.frombuffer(bytearray(nbytes + PAGE), dtype=torch.uint8)[:nbytes]


def assert_whole(units: PackedUnits, source: NumberedUnits) -> None:
    for index, layout in enumerate(units.layouts):
        buffer = pages(layout.nbytes)
        units.read(index, buffer)
        source.check(index, layout.views(buffer))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[2 * PAGE + 7] ^= 4
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    os.truncate(path, PAGE + 5)


def lengthen(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


def replace_by_link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


Damage = Callable[[Path], object]
DAMAGES: list[Damage] = [flip, cut_off, lengthen, os.unlink, replace_by_link]


@pytest.mark.parametrize("damage", DAMAGES)
def test_at_a_start_only_the_damaged_unit_is_packed_again(
    damage: Damage, source: NumberedUnits, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    damage(folder / unit_name(2))
    units = open_cache(source)
    assert_whole(units, source)
    assert source.reads == {2: 1} and units.num_repaired == 1
    assert f"{folder / unit_name(2)}: " in caplog.text and "packed again" in caplog.text
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == content
    units.close()
    assert_whole(open_cache(source), source)
    assert source.reads == {2: 1}, "repaired for good"


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("damage", [flip, cut_off])
def test_damage_is_repaired_while_other_threads_read(
    damage: Damage, direct: bool, source: NumberedUnits, folder: Path
) -> None:
    units = open_cache(source)
    if direct and not all(file.open_direct() for file in units._files.values()):
        pytest.skip("no direct reads on this file system")
    for file in units._files.values() if direct else []:
        file.use_direct()
    damage(folder / unit_name(1))
    failed: list[BaseException] = []

    def walk() -> None:
        try:
            for _ in range(3):
                assert_whole(units, source)
        except (AssertionError, ModelError) as error:
            failed.append(error)

    threads = [threading.Thread(target=walk) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and source.reads == {1: 1}
    assert units._files[1].is_direct == direct


@pytest.mark.parametrize("text", ["{", "[]", "{}", "\xff", "[" * 10_000, "edited", "old"])
def test_all_units_are_packed_again_if_the_index_is_damaged(
    text: str, source: NumberedUnits, folder: Path
) -> None:
    index = json.loads((folder / INDEX).read_text())
    if text == "edited":  # a checksum that no unit has would never be right again
        index["units"][1]["crc32"][0] ^= 1
        text = json.dumps(index)
    if text == "old":  # of a version whose index had no checksum
        del index["crc32"]
        text = json.dumps(index)
    (folder / INDEX).write_text(text, encoding="latin-1")
    assert_whole(open_cache(source), source)
    assert source.reads == dict.fromkeys(range(4), 1)


def test_units_of_a_changed_checkpoint_are_not_mixed_with_packed_ones(
    source: NumberedUnits, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(folder / unit_name(2))
    units = open_cache(source)
    expected = source.expected(2)["norm.weight"]
    expected[5] += 1  # as if the checkpoint had been edited, with its old time
    with pytest.raises(ModelError, match=r"00002\.unit: wrong.*not what was packed.*Restart"):
        assert_whole(units, source)
    units.close()
    assert_whole(open_cache(source), source)  # all of it is of the new one


def test_a_repair_without_a_readable_checkpoint_is_an_error(
    source: NumberedUnits, folder: Path
) -> None:
    flip(folder / unit_name(2))
    units = open_cache(source)
    source.faults = {2: [ModelError("model.safetensors: the file was changed")]}
    told = r"00002\.unit: wrong checksum.*cannot be packed again: .*the file was changed"
    with pytest.raises(ModelError, match=told):
        assert_whole(units, source)
    assert_whole(units, source)


def refuse(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Let every write fail, as on a full disk or in a folder that may only be read."""

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    def read_only(path: Path, mode: str = "r") -> None:
        raise OSError(30, "Read-only file system")

    if kind == "full":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(cache_files, "open", read_only, raising=False)


@pytest.mark.parametrize("kind", ["full", "read-only"])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("is_open", [False, True], ids=["at a start", "while serving"])
def test_a_unit_that_cannot_be_written_is_made_from_the_checkpoint(
    kind: str,
    damage: Damage,
    is_open: bool,
    source: NumberedUnits,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if is_open and damage in (os.unlink, replace_by_link, lengthen):
        pytest.skip("an open file is read on")
    now = [time.monotonic()]
    units = open_cache(source) if is_open else None
    if units is not None:
        assert_whole(units, source)
    damage(folder / unit_name(2))
    reason = "No space left on device" if kind == "full" else "Read-only file system"
    with monkeypatch.context() as patched:
        refuse(patched, kind)
        units = units or open_cache(source)
        units._unwritten._clock = lambda: now[0]
        for _ in range(3):
            assert_whole(units, source)
        recheck_fails(units, reason)
        assert units.num_repaired == 0
        assert sum(source.reads.values()) <= 2, "the pieces of a unit are made together"
        assert caplog.text.count("makes the unit from the checkpoint") == 1
        assert f"{folder / unit_name(2)}: " in caplog.text and reason in caplog.text
        assert str(folder) in caplog.text.split("let the server write to")[1]
        now[0] += 2 * RETRY_S
        assert_whole(units, source)
    assert len(list(folder.iterdir())) <= 5, "nothing is left behind"
    now[0] += 2 * RETRY_S
    assert_whole(units, source)
    assert units.num_repaired == 1
    source.reads.clear()
    assert all(recheck(units, 2) for _ in range(2))
    assert_whole(units, source)
    assert_whole(open_cache(source), source)
    assert not source.reads, "it was written again"


def recheck_fails(units: PackedUnits, reason: str) -> None:
    with pytest.raises(ModelError, match=f"00002.*cannot be written again: {reason}"):
        recheck(units, 2)


def test_several_units_that_cannot_be_written_are_read_by_several_threads(
    source: NumberedUnits, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = open_cache(source)
    flip(folder / unit_name(1))
    flip(folder / unit_name(2))
    refuse(monkeypatch, "full")
    with ThreadPoolExecutor(4) as pool:
        for walk in [pool.submit(assert_whole, units, source) for _ in range(8)]:
            walk.result()
    assert source.reads.keys() == {1, 2}


def test_a_disk_that_damages_written_bytes_is_an_error(
    source: NumberedUnits, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(folder / unit_name(2))
    units = open_cache(source)

    def damaging(path: Path, memory: memoryview) -> None:
        replace_file(path, memory)
        flip(path)

    monkeypatch.setattr(packed_module, "replace_file", damaging)
    with pytest.raises(ModelError, match=r"wrong checksum.* again after it was packed again.*disk"):
        assert_whole(units, source)


def test_a_closed_folder_is_never_read(source: NumberedUnits, folder: Path) -> None:
    """Another file may get the number of a descriptor that was closed."""
    units = open_cache(source)
    units.close()
    others = [os.open(folder / INDEX, os.O_RDONLY) for _ in range(20)]
    with pytest.raises(ModelError, match="read after it was closed"):
        units.read(0, pages(units.layouts[0].nbytes))
    for other in others:
        os.close(other)


# Damage after the first read


def test_damage_after_the_first_read_is_found_by_the_next_one(
    source: NumberedUnits, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    units = open_cache(source)
    assert_whole(units, source)
    flip(folder / unit_name(3))
    caplog.set_level(logging.WARNING)
    assert_whole(units, source)
    assert "00003.unit: wrong checksum" in caplog.text
    assert units.num_repaired == 1 and source.reads == {3: 1}


def test_a_bit_that_flips_in_one_read_is_read_again(
    source: NumberedUnits, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = open_cache(source)
    assert_whole(units, source)
    read, count = UnitFile.read, 0

    def flip_every_third(file: UnitFile, memory: Tensor, offset: int) -> None:
        nonlocal count
        read(file, memory, offset)
        count += 1
        if count % 3 == 0:
            memory[count] ^= 1 << count % 8

    monkeypatch.setattr(UnitFile, "read", flip_every_third)
    assert_whole(units, source)
    assert count > 3
    assert units.num_repaired == 0 and not source.reads


# Checked again while nobody waits


def recheck(units: PackedUnits, index: int) -> bool:
    return all(units.recheck(index, piece, lambda: True) for piece in units.pieces(index))


@pytest.mark.parametrize("can_be_direct", [True, False])
def test_damage_after_the_first_read_is_found_and_repaired(
    can_be_direct: bool,
    source: NumberedUnits,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if not can_be_direct:
        monkeypatch.setattr(UnitFile, "open_direct", lambda file: False)
    units = open_cache(source)
    assert_whole(units, source)
    flip(folder / unit_name(3))
    caplog.set_level(logging.WARNING)
    assert all(recheck(units, index) for index in range(4))
    assert units.num_repaired == 1 and source.reads == {3: 1}
    assert "00003.unit: wrong checksum" in caplog.text
    assert_whole(units, source)
    assert_whole(open_cache(source), source)
    assert source.reads == {3: 1}


def test_the_next_read_checks_a_piece_that_could_not_be_repaired(
    source: NumberedUnits, folder: Path
) -> None:
    units = open_cache(source)
    assert_whole(units, source)
    flip(folder / unit_name(3))
    gone = ModelError("model.safetensors: the file was changed")
    source.faults = {3: [gone, gone]}
    for found in (lambda: recheck(units, 3), lambda: assert_whole(units, source)):
        with pytest.raises(
            ModelError, match=r"00003\.unit: wrong checksum.*cannot be packed again"
        ):
            found()


def test_a_check_ends_when_is_wanted_returns_false(
    source: NumberedUnits, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_module, "RECHECKED_BYTES", PAGE // 4)
    units = open_cache(source)
    flip(folder / unit_name(3))
    wanted = iter([True, True, False])
    assert not units.recheck(3, units.pieces(3)[2], lambda: next(wanted))
    assert units.num_repaired == 0
