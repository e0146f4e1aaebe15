"""Tests of reading files in pieces, directly or through the page cache: the bytes are the same."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.errors import ModelError
from engine.streaming import disk
from engine.streaming.disk import (
    PIECE_BYTES,
    UnitFile,
    direct_is_faster,
    read_gbps,
    split_pieces,
)
from engine.streaming.pinned import allocate_pages
from engine.weights.layout import PAGE_BYTES
from tests.engine.units import NumberedUnits, PiecedUnits

PAGES = 9


@pytest.fixture
def content() -> Tensor:
    bits = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (PAGES * PAGE_BYTES,), dtype=torch.uint8, generator=bits)


@pytest.fixture
def file(tmp_path: Path, content: Tensor) -> UnitFile:
    path = tmp_path / "0.unit"
    path.write_bytes(bytes(content.tolist()))
    opened = UnitFile(path)
    opened.is_direct = opened.open_direct()
    return opened


def test_pieces_cover_a_unit_without_gaps() -> None:
    for nbytes in (0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 4096):
        pieces = split_pieces(nbytes)
        assert [position for piece in pieces for position in (piece.start, piece.stop)][1:-1] == [
            border for first in range(PIECE_BYTES, nbytes, PIECE_BYTES) for border in (first, first)
        ]
        assert (pieces[0].start, pieces[-1].stop) == (0, nbytes)
        assert all(piece.start % PAGE_BYTES == 0 for piece in pieces)


def test_a_reader_without_pieces_is_read_whole() -> None:
    whole, pieced = NumberedUnits(1), PiecedUnits(1)
    assert whole.pieces(0) == [range(whole.layouts[0].nbytes)]
    memory = allocate_pages(whole.layouts[0].nbytes)
    whole.read_piece(0, whole.pieces(0)[0], memory)
    whole.check(0, whole.layouts[0].views(memory))
    assert len(pieced.pieces(0)) > 1


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize(("first", "last"), [(0, 9), (3, 5), (8, 9)])
def test_any_memory_is_filled(
    file: UnitFile, content: Tensor, first: int, last: int, shift: int
) -> None:
    """Direct reads need aligned memory; other memory is filled through the page cache."""
    nbytes = (last - first) * PAGE_BYTES
    memory = allocate_pages(nbytes + PAGE_BYTES)[shift : shift + nbytes]
    file.read(memory, first * PAGE_BYTES)
    assert torch.equal(memory, content[first * PAGE_BYTES : last * PAGE_BYTES])


@pytest.mark.parametrize("most", [PAGE_BYTES, 1000, 2 * PAGE_BYTES + 1])
def test_short_reads_are_continued(
    file: UnitFile, content: Tensor, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(descriptor: int, buffers: Sequence[Any], offset: int) -> int:
        data = file.path.read_bytes()[offset : offset + min(most, len(buffers[0]))]
        buffers[0][: len(data)] = data
        return len(data)

    monkeypatch.setattr(os, "preadv", short)
    memory = allocate_pages(PAGES * PAGE_BYTES)
    file.read(memory, 0)
    assert torch.equal(memory, content)


def test_without_direct_reads_files_are_read_through_the_page_cache(
    tmp_path: Path, content: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.open

    def refuse(path: Any, flags: int, *arguments: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return original(path, flags, *arguments)

    path = tmp_path / "0.unit"
    path.write_bytes(bytes(content.tolist()))
    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(disk, "MIN_MEASURED_BYTES", 0)
    file = UnitFile(path)
    assert not file.open_direct()
    assert not direct_is_faster([file])
    memory = allocate_pages(PAGES * PAGE_BYTES)
    file.read(memory, 0, direct=True)
    assert torch.equal(memory, content)


@pytest.mark.parametrize("after", [0, 1])
def test_a_failed_direct_read_is_repeated_through_the_page_cache(
    file: UnitFile, content: Tensor, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv, calls = os.preadv, list[int]()

    def refuse(descriptor: int, buffers: Sequence[Any], offset: int) -> int:
        calls.append(descriptor)
        if descriptor != calls[0]:
            return preadv(descriptor, buffers, offset)
        if len(calls) > after:
            raise OSError(errno.EINVAL, "Invalid argument")
        return preadv(descriptor, [buffers[0][:PAGE_BYTES]], offset)

    if not file.is_direct:
        pytest.skip("the folder of temporary files takes no direct reads")
    monkeypatch.setattr(os, "preadv", refuse)
    memory = allocate_pages(PAGES * PAGE_BYTES)
    file.read(memory, 0)
    assert torch.equal(memory, content)
    assert len(set(calls)) == 2


def test_the_error_of_a_dead_disk_names_the_file(
    file: UnitFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(descriptor: int, buffers: Sequence[Any], offset: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", dead)
    with pytest.raises(ModelError, match=r"0\.unit: read of .*Input/output error"):
        file.read(allocate_pages(PAGES * PAGE_BYTES), 0)


@pytest.mark.parametrize("left", [5 * PAGE_BYTES, 5 * PAGE_BYTES + 10, 0])
def test_a_file_that_is_truncated_while_open_is_an_error(file: UnitFile, left: int) -> None:
    os.truncate(file.path, left)
    with pytest.raises(ModelError, match=rf"0\.unit: ends at {left}, .*truncated"):
        file.read(allocate_pages(PAGES * PAGE_BYTES), 0)


# Which way is faster


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[UnitFile]:
    monkeypatch.setattr(disk, "PIECE_BYTES", PAGE_BYTES)
    monkeypatch.setattr(disk, "MIN_MEASURED_BYTES", 8 * PAGE_BYTES)
    for number in range(3):
        (tmp_path / f"{number}.unit").write_bytes(bytes(PAGES * PAGE_BYTES))
    return [UnitFile(tmp_path / f"{number}.unit") for number in range(3)]


def pretend(monkeypatch: pytest.MonkeyPatch, direct: float, cached: float, warm: int) -> list[bool]:
    """Make the trial rounds measure these speeds, with this number of files in the page cache."""
    rounds: list[bool] = []
    original = disk._trial

    def trial(*arguments: Any, **way: Any) -> float:
        original(*arguments, **way)  # the reads are real
        rounds.append(way["direct"])
        return direct if way["direct"] else cached

    monkeypatch.setattr(disk, "_trial", trial)
    monkeypatch.setattr(UnitFile, "is_cached", lambda file: int(file.path.stem) < warm)
    monkeypatch.setattr(UnitFile, "open_direct", lambda file: True)
    return rounds


@pytest.mark.parametrize(
    ("direct", "cached", "chosen"),
    [(2.0, 1.0, True), (0.9, 1.0, True), (0.5, 1.0, False)],
)
@pytest.mark.parametrize("warm", [0, 2])
def test_the_faster_way_is_chosen_and_direct_reads_if_they_are_close(
    files: list[UnitFile],
    monkeypatch: pytest.MonkeyPatch,
    direct: float,
    cached: float,
    chosen: bool,
    warm: int,
) -> None:
    rounds = pretend(monkeypatch, direct, cached, warm)
    assert direct_is_faster(files) is chosen
    assert rounds.count(True) == rounds.count(False) >= 1


def test_files_that_are_fully_cached_are_read_from_the_page_cache(
    files: list[UnitFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pretend(monkeypatch, 2.0, 1.0, warm=3) == []
    assert not direct_is_faster(files)


def test_small_files_are_not_measured(
    files: list[UnitFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = pretend(monkeypatch, 2.0, 1.0, warm=0)
    assert not direct_is_faster(files[:0])
    monkeypatch.setattr(disk, "MIN_MEASURED_BYTES", 100 * PAGE_BYTES)
    assert not direct_is_faster(files)
    assert rounds == []


def test_a_file_that_was_just_read_is_cached_until_it_is_evicted(file: UnitFile) -> None:
    """It is skipped on file systems that cannot tell whether a page is cached."""
    file.read(allocate_pages(PAGES * PAGE_BYTES), 0, direct=False)
    if not file.is_cached():
        pytest.skip("this file system does not tell")
    descriptor = os.open(file.path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    file.evict(range(PAGES * PAGE_BYTES))
    assert not file.is_cached()


@pytest.mark.parametrize("is_cached", [True, False])
def test_the_speed_is_that_of_the_place_where_the_file_is(
    file: UnitFile, is_cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in the page cache stays there; another one is read directly, if that is possible."""
    asked: list[bool] = []
    own = UnitFile.read

    def read(self: UnitFile, memory: Tensor, offset: int, *, direct: bool | None = None) -> None:
        asked.append(bool(direct))
        own(self, memory, offset, direct=direct)

    monkeypatch.setattr(UnitFile, "read", read)
    monkeypatch.setattr(UnitFile, "is_cached", lambda self: is_cached)
    evicted: list[range] = []
    monkeypatch.setattr(UnitFile, "evict", lambda self, piece: evicted.append(piece))
    assert read_gbps(file) > 0
    assert asked and bool(evicted) is not is_cached
    assert set(asked) == {not is_cached and file.open_direct()}
