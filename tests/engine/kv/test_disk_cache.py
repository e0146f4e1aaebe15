"""Tests of idle KV on disk: what is found after a restart, and that nothing wrong is ever used."""

import os
import random
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from engine.cache_files import folders
from engine.kv.disk import store as store_module
from engine.kv.disk.block import Block, BlockName
from engine.kv.disk_cache import DiskCache
from engine.kv.page_pool import PAGE
from engine.streaming.packed_cache import entries, remove
from tests.engine.disk_caches import (
    FILE_BYTES,
    disk_cache,
    new_folder,
    open_read,
    read_all,
    save_all,
    store_of,
    write_and_end,
)
from tests.engine.kv_tokens import fill_pages, run_and_close, store_tokens, stored_tokens
from tests.engine.models import prompt
from tests.engine.page_traffic import Traffic

TEXT = prompt(3 * PAGE + 20)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def cache() -> Iterator[DiskCache]:
    """Yield a cache that was started after `TEXT` had been stored."""
    write_and_end(TEXT)
    made = disk_cache()
    yield made
    made.release()


def block_files(root: Path) -> list[Path]:
    """Return the files of pages in the order of the prefix."""
    found = [path for name in folders(root) for path in (root / name).iterdir()]
    parsed = [(BlockName.parse(path.name), path) for path in found]
    return [p for _, p in sorted((n.number, p) for n, p in parsed if n is not None)]


@pytest.mark.parametrize("length", [20, PAGE, PAGE + 1, 2 * PAGE, 3 * PAGE, 3 * PAGE + 20])
def test_a_prompt_goes_on_from_the_pages_on_disk(cache: DiskCache, length: int) -> None:
    asked = TEXT[:length]
    table = open_read(cache, asked)
    assert table.length == (length - 1) // PAGE * PAGE, "a partial page is found by all its tokens"
    assert stored_tokens(cache, table) == asked[: table.length]
    assert table.reading is None and cache.is_usable(table)


def test_the_next_turn_finds_the_partial_page_too(cache: DiskCache) -> None:
    table = open_read(cache, [*TEXT, 1, 2])
    assert table.length == len(TEXT)
    assert stored_tokens(cache, table) == TEXT
    store_tokens(cache, table, [*TEXT, 1, 2])
    assert stored_tokens(cache, table) == [*TEXT, 1, 2]


def test_pages_in_memory_are_not_read_again(cache: DiskCache) -> None:
    first = open_read(cache, TEXT)
    second = cache.open([*TEXT[: 3 * PAGE], 1, 2])
    assert second.reading is None and second.pages[:3] == first.pages[:3]
    report = store_of(cache).take_report()
    assert report is not None and (report.hits, report.tokens) == (1, 3 * PAGE)


def test_a_prefix_begins_in_memory_and_goes_on_on_disk(cache: DiskCache) -> None:
    run_and_close(cache, [*TEXT[:PAGE], 5])
    table = open_read(cache, TEXT)
    assert stored_tokens(cache, table) == TEXT[: 3 * PAGE]


def test_other_tokens_salts_and_identities_are_not_found(cache: DiskCache) -> None:
    assert cache.open(TEXT, salt=1).reading is None
    assert cache.open([1, *TEXT[1:]]).reading is None
    assert len(open_read(cache, [*TEXT[:PAGE], 1, *TEXT[PAGE + 1 :]]).pages) == 4
    other = disk_cache(identity="two")
    assert other.open(TEXT).reading is None
    other.release()


def test_what_is_on_disk_is_not_written_again(cache: DiskCache, root: Path) -> None:
    before = {path: path.stat().st_ino for path in block_files(root)}
    table = open_read(cache, TEXT)
    store_tokens(cache, table, TEXT)
    cache.close(table, TEXT)
    save_all(cache)
    assert {path: path.stat().st_ino for path in block_files(root)} == before


def test_evicted_pages_are_written_although_requests_run() -> None:
    cache = disk_cache(num_pages=4)
    run_and_close(cache, TEXT)
    fill_pages(cache, 1, 4)
    assert not cache.has_unsaved
    store_of(cache).flush(10.0)
    table = open_read(cache, TEXT)
    assert stored_tokens(cache, table) == TEXT[: 3 * PAGE]
    cache.release()


def test_pages_of_host_memory_are_written() -> None:
    cache = disk_cache(num_pages=4, host_pages=4)
    run_and_close(cache, TEXT)
    fill_pages(cache, 1, 4)
    assert cache.num_host_pages == 3
    cache.release()
    cache = disk_cache()
    assert stored_tokens(cache, open_read(cache, TEXT)) == TEXT[: 3 * PAGE]
    cache.release()


def test_a_paused_sequence_stops_reading(cache: DiskCache) -> None:
    table = cache.open(TEXT)
    assert cache.reserve(table, len(TEXT)) and table.reading is not None
    cache.close(table, TEXT)
    assert not cache._reading and cache.num_free_pages == cache.num_pages
    assert not cache.take_read(1.0)
    assert stored_tokens(cache, open_read(cache, TEXT)) == TEXT[: 3 * PAGE]


def test_files_are_readable_by_their_owner_only(cache: DiskCache, root: Path) -> None:
    files = block_files(root)
    assert len(files) == 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE(files[0].parent.stat().st_mode) == 0o700


def short(path: Path) -> None:
    os.truncate(path, FILE_BYTES - 1)


def long(path: Path) -> None:
    os.truncate(path, FILE_BYTES + 1)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def torn(path: Path) -> None:
    """Leave the second half as zeros, as when its bytes did not reach the disk."""
    os.truncate(path, FILE_BYTES // 2)
    os.truncate(path, FILE_BYTES)


def flip(place: int) -> Any:
    def spoil(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)

    return spoil


def foreign(path: Path) -> None:
    """Put a good page of another prefix in its place."""
    own = path.read_bytes()
    other = next(p for p in path.parent.iterdir() if p != path and p.suffix == ".page")
    assert own != other.read_bytes()
    path.write_bytes(other.read_bytes())


def linked(path: Path) -> None:
    target = path.parent.parent / "elsewhere"
    path.rename(target)
    path.symlink_to(target)


def missing(path: Path) -> None:
    path.unlink()


SPOILED = {
    "short": short,
    "long": long,
    "empty": empty,
    "torn": torn,
    "flipped": flip(-1),
    "flipped checksum": flip(16 * 3 + 4 + 4 + 8 + 4 + 64 * 8),
    "flipped token": flip(80),
    "flipped key": flip(20),
    "foreign": foreign,
    "link": linked,
    "missing": missing,
}


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("how", SPOILED)
def test_a_spoiled_file_is_dropped_and_never_used(
    how: str, number: int, cache: DiskCache, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The file is spoiled after the start has listed it."""
    path = block_files(root)[number]
    SPOILED[how](path)
    table = open_read(cache, TEXT)
    assert table.length == number * PAGE and cache.is_usable(table)
    assert len([r for r in caplog.records if str(path) in r.getMessage()]) == (how != "missing")
    assert not os.path.lexists(path), "it is removed"
    store_tokens(cache, table, TEXT)
    assert stored_tokens(cache, table) == TEXT
    cache.close(table)
    save_all(cache)
    assert path in block_files(root), "it is written again"
    again = disk_cache()
    assert stored_tokens(again, open_read(again, TEXT)) == TEXT[: 3 * PAGE]
    again.release()


@pytest.mark.parametrize("how", ["short", "long", "empty", "torn", "flipped", "foreign", "missing"])
def test_a_file_that_was_spoiled_before_the_start_is_not_used(how: str, root: Path) -> None:
    write_and_end(TEXT)
    SPOILED[how](block_files(root)[1])
    cache = disk_cache()
    assert stored_tokens(cache, open_read(cache, TEXT)) == TEXT[:PAGE]
    cache.release()


def test_an_unreadable_file_costs_only_its_tokens(
    cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(store_module, "read_block", fail)
    assert open_read(cache, TEXT).length == 0


def test_a_read_that_does_not_end_is_given_up(
    cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr(store_module, "read_block", lambda *_: release.wait())
    monkeypatch.setattr(store_module, "STALL_S", 0.01)
    table = cache.open(TEXT)
    assert cache.reserve(table, len(TEXT))
    while table.reading is not None:
        cache.wait_for_disk(0.05)
        cache.take_read(1.0)
    assert table.length == 0
    assert cache.open(TEXT).reading is None, "the disk is not asked while a read is late"
    release.set()


def test_an_error_of_the_disk_is_logged_once_and_nothing_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module, "write_block", fail)
    cache = disk_cache()
    run_and_close(cache, TEXT)
    save_all(cache)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    report = store_of(cache).take_report()
    assert report is not None and (report.dropped, report.written) == (3, 0)
    assert stored_tokens(cache, open_read(cache, TEXT)) == TEXT[: 3 * PAGE], "it is in memory"
    cache.release()


def test_a_folder_that_is_removed_meanwhile_is_made_again(cache: DiskCache, root: Path) -> None:
    (entry,) = entries()
    assert entry.holds_kv and not entry.is_packed
    assert entry.nbytes > 4 * FILE_BYTES
    remove(entry)
    assert not block_files(root) and not entries()
    assert open_read(cache, TEXT).length == 0
    run_and_close(cache, prompt(2 * PAGE, 9))
    save_all(cache)
    assert len(block_files(root)) == 2


def test_the_bound_is_kept_and_the_last_pages_of_old_prefixes_leave_first(root: Path) -> None:
    old, new = prompt(4 * PAGE + 1, 1), prompt(4 * PAGE + 1, 2)
    limit = 7 * FILE_BYTES
    write_and_end(old, limit=limit, num_pages=10)
    for path in block_files(root):
        os.utime(path, (1.0, 1.0))
    write_and_end(new, limit=limit, num_pages=10)
    assert sum(path.stat().st_size for path in block_files(root)) <= limit
    cache = disk_cache(limit=limit, num_pages=16)
    assert open_read(cache, [*new, 1]).length == len(new)
    left = open_read(cache, old)
    assert 0 < left.length < 4 * PAGE
    assert stored_tokens(cache, left) == old[: left.length]
    cache.release()


def test_a_prefix_larger_than_the_bound_keeps_its_beginning(root: Path) -> None:
    text = prompt(6 * PAGE + 1)
    write_and_end(text, limit=3 * FILE_BYTES)
    assert len(block_files(root)) <= 3
    cache = disk_cache()
    assert stored_tokens(cache, open_read(cache, text)) == text[: len(block_files(root)) * PAGE]
    cache.release()


def test_the_oldest_files_of_other_identities_make_room(root: Path) -> None:
    write_and_end(TEXT)
    for path in block_files(root):
        os.utime(path, (1.0, 1.0))
    cache = disk_cache(identity="two", limit=5 * FILE_BYTES)
    other = prompt(3 * PAGE, 7)
    run_and_close(cache, other)
    cache.release()
    assert len(block_files(root)) <= 5
    cache = disk_cache(identity="two")
    assert open_read(cache, [*other, 1]).length == 3 * PAGE
    cache.release()


def test_little_free_space_is_left_to_others(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    cache = disk_cache()
    monkeypatch.setattr(
        "engine.kv.disk.folder.shutil.disk_usage",
        lambda _: type("usage", (), {"total": 100 << 30, "free": (4 << 30) + FILE_BYTES // 2})(),
    )
    run_and_close(cache, TEXT)
    cache.release()
    assert not block_files(root)


def test_names_that_form_a_circle_do_no_harm(root: Path) -> None:
    write_and_end(TEXT)
    folder = block_files(root)[0].parent
    one, two = "1" * 32, "2" * 32
    for parent, own in ((one, two), (two, one)):
        (folder / f"{parent}-{own}-7-64.page").write_bytes(bytes(FILE_BYTES))
    made = new_folder(limit=2 * FILE_BYTES)
    assert made._before(Block("page", bytes.fromhex(one), (1,), 8)) == {
        bytes.fromhex(one),
        bytes.fromhex(two),
    }
    assert made.make_room(Block("page", bytes(16), (1,), 0))
    assert len(block_files(root)) <= 1


def test_two_caches_share_a_folder(root: Path) -> None:
    one, two = disk_cache(), disk_cache()
    for cache in (one, two):
        run_and_close(cache, TEXT)
    run_and_close(two, prompt(2 * PAGE, 5))
    for cache in (one, two):
        save_all(cache)
        cache.release()
    assert len(block_files(root)) == 5
    cache = disk_cache()
    assert stored_tokens(cache, open_read(cache, TEXT)) == TEXT[: 3 * PAGE]
    cache.release()


def test_what_a_killed_process_left_unfinished_is_removed_later(root: Path) -> None:
    write_and_end(TEXT)
    path = block_files(root)[0]
    left = path.with_name(f"{path.name}.{'a' * 16}.new")
    left.write_bytes(b"half")
    new_folder()
    assert left.exists(), "another process may be writing it"
    os.utime(left, (1.0, 1.0))
    new_folder()
    assert not left.exists() and path.exists()


class Restarts(Traffic):
    """Random traffic over caches that follow each other over one folder."""

    cache: DiskCache

    def arrive(self) -> None:
        before = self.cache.open

        def open_and_read(tokens: list[int], salt: int = 0) -> Any:
            table = before(tokens, salt)
            if table.reading is not None and self.cache.reserve(table, len(tokens) - table.length):
                read_all(self.cache)
            return table

        with patch.object(self.cache, "open", open_and_read):
            super().arrive()

    def restart(self, limit: int) -> None:
        self.finish_all()
        self.check()
        self.cache.release()
        self.cache = disk_cache(20, self.random.choice([0, 10]), limit)


@pytest.mark.parametrize("seed", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_random_traffic_finds_only_right_values_after_restarts(seed: int) -> None:
    chance = random.Random(seed)
    traffic = Restarts(disk_cache(20, 10), seed)
    hits = 0
    for _ in range(6):
        for _ in range(60):
            traffic.step()
            if chance.random() < 0.3 and traffic.cache.has_unsaved and traffic.cache.can_save:
                traffic.cache.save_next()
        traffic.check()
        report = store_of(traffic.cache).take_report()
        hits += report.hits if report is not None else 0
        traffic.restart(chance.choice([1 << 30, 30 * FILE_BYTES]))
    traffic.cache.release()
    assert hits > 3
